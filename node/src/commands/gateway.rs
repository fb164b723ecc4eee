//! `umbel gateway`

use std::convert::Infallible;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use umbel_engine::heap;

use super::session::Opened;
use super::speculate;
use crate::args::GatewayArguments;
use crate::config::Config;
use crate::gateway::{Front, Trains, Tuning};
use crate::metrics;
use crate::shutdown::Shutdown;

/// How often freed memory goes back to the system: what a hundred sessions leave is some 10 MB, and
/// giving it back takes milliseconds.
const GIVE_BACK_INTERVAL: Duration = Duration::from_secs(10);

pub(super) async fn run(arguments: GatewayArguments, config: &Config) -> anyhow::Result<()> {
    if arguments.chain.thin {
        bail!(
            "--thin is of no use to a gateway: log probabilities, penalties, forms of answers and \
             embeddings need the model's ends here; leave it out"
        );
    }
    let mut stop = Shutdown::listen().context("signals cannot be caught")?;
    // Before the model is fetched: a port that is taken is found out at once.
    let front = Front::bind(arguments.listen, &arguments.front).await?;
    let trains = Trains {
        model: arguments.model.name().to_owned(),
        chain: arguments.chain.clone(),
        config: config.clone(),
    };
    let tuning = arguments.fine_tuning.as_deref().map(|folder| Tuning::start(folder, trains));
    let front = front.with_tuning(tuning.transpose()?);
    if let Some(address) = arguments.metrics {
        let mut registry = metrics::registry();
        front.counters().register(&mut registry);
        tokio::spawn(metrics::serve(metrics::bind(address).await?, registry));
    }
    let opening = async {
        let opened = Opened::open(arguments.model.name(), &arguments.chain, config).await?;
        let speculate = speculate::open(&arguments.speculate, &opened.model, config).await?;
        anyhow::Ok((opened, speculate))
    };
    let (opened, speculate) = tokio::select! {
        opened = opening => opened?,
        _ = stop.requested() => return Ok(()),
    };
    let (model, url) = (opened.model.shard().name().to_owned(), front.url());
    tracing::info!(%model, "answering at {url}/v1");
    if let Err(error) = writeln!(std::io::stdout(), "ready {url}") {
        tracing::warn!(%error, "nobody reads stdout");
    }
    let stopping = |signal| {
        tracing::info!(%signal, "stopping when the answers are over; once more stops at once");
    };
    let cache = &config.cache_dir;
    tokio::select! {
        _ = front.serve_until_stopped(opened, speculate, cache, &mut stop, stopping) => Ok(()),
        never = give_back() => match never {},
    }
}

/// Gives freed memory back to the system now and then.
async fn give_back() -> Infallible {
    loop {
        tokio::time::sleep(GIVE_BACK_INTERVAL).await;
        let given = tokio::task::spawn_blocking(heap::give_back).await;
        given.expect("the allocator does not panic");
    }
}
