//! `umbel gateway`

use std::io::Write as _;

use anyhow::{Context as _, bail};
use futures::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::session::Opened;
use super::speculate;
use crate::args::GatewayArguments;
use crate::config::Config;
use crate::gateway::{Gateway, Keys, Limits};
use crate::shutdown::Shutdown;

pub(super) async fn run(arguments: GatewayArguments, config: &Config) -> anyhow::Result<()> {
    if arguments.chain.thin {
        bail!(
            "--thin is of no use to a gateway: log probabilities, penalties, forms of answers and \
             embeddings need the model's ends here; leave it out"
        );
    }
    let listen = arguments.listen;
    let keys = arguments.keys.as_deref().map(Keys::read).transpose()?;
    if !listen.ip().is_loopback() && keys.is_none() && !arguments.allow_anyone {
        bail!(
            "{listen} can be reached from other machines, and whoever reaches it may ask: name who may \
             with --keys FILE, or say --allow-anyone"
        );
    }
    let mut stop = Shutdown::listen().context("signals cannot be caught")?;
    // Before the model is fetched: a port that is taken is found out at once.
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr().context("the system does not say where it listens")?;
    let opening = async {
        let opened = Opened::open(arguments.model.name(), &arguments.chain, config).await?;
        let speculate = speculate::open(&arguments.speculate, &opened.model, config).await?;
        anyhow::Ok((opened, speculate))
    };
    let (opened, speculate) = tokio::select! {
        opened = opening => opened?,
        _ = stop.requested() => return Ok(()),
    };
    let limits =
        Limits { answers: usize::from(arguments.answers), waiting: usize::from(arguments.waiting) };
    let model = opened.model.shard().name().to_owned();
    tracing::info!(%model, "answering at http://{address}/v1");
    if let Err(error) = writeln!(std::io::stdout(), "ready http://{address}") {
        tracing::warn!(%error, "nobody reads stdout");
    }
    let (tell, told) = oneshot::channel::<()>();
    // Whether it is said or who would say it is gone: both are the end.
    let serving = Gateway::new(opened, speculate, limits, keys).serve(listener, told.map(drop));
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        _ = &mut serving => return Ok(()),
        signal = stop.requested() => {
            tracing::info!(signal, "stopping when the answers are over; once more stops at once");
            drop(tell);
        }
    }
    tokio::select! {
        opened = serving => if let Some(opened) = opened {
            opened.leave().await;
        },
        _ = stop.requested() => {}
    }
    Ok(())
}
