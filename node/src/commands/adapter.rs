//! `umbel adapter`

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use umbel_client::adapter::publish::{Publication, PublishSettings};
use umbel_client::adapter::{fetch, leave};
use umbel_client::{NamedAdapter, Swarm, SwarmConfig};
use umbel_engine::train::PeftFiles;
use umbel_net::{Identity, Way};
use umbel_protocol::AdapterId;
use umbel_protocol::error::in_one_line;

use super::session::{Blocks, Opened};
use crate::args::{AdapterArguments, AdapterCommand, PublishArguments};
use crate::config::Config;
use crate::serve;
use crate::shutdown::Shutdown;

/// The largest file of weights that is published: it is in memory as long as it is.
const WEIGHTS_BYTES_MAX: u64 = 1 << 30;

/// Servers with which an adapter is left: two may go before it is lost.
const COPIES: usize = 3;

/// What the files of identities are called with which adapters are left.
const PUBLISHER: &str = "publisher";

pub(super) async fn run(arguments: AdapterArguments, config: &Config) -> anyhow::Result<()> {
    match arguments.what {
        AdapterCommand::Publish(arguments) => publish(arguments, config).await,
    }
}

async fn publish(arguments: PublishArguments, config: &Config) -> anyhow::Result<()> {
    let PublishArguments { folder, join, leave, identity, listen } = arguments;
    let read = PeftFiles::read_within(&folder, WEIGHTS_BYTES_MAX);
    let files = read.with_context(|| folder.display().to_string())?;
    let Way { addresses, swarm_key } = Way::new(&join, None)?;
    if leave {
        let identity = serve::identity(identity.as_deref(), &config.data_dir, PUBLISHER)?.0;
        let join = SwarmConfig { join: addresses, swarm_key, ..SwarmConfig::default() };
        return leave_with_servers(files, identity, join).await;
    }
    let anywhere = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
    // The peers of a private swarm speak TCP alone.
    let anywhere = if swarm_key.is_some() { &anywhere[..1] } else { &anywhere[..] };
    let listen = if listen.is_empty() {
        anywhere.iter().map(|text| text.parse().expect("a multiaddress")).collect()
    } else {
        listen
    };
    let mut shutdown = Shutdown::listen().context("signals cannot be caught")?;
    let settings = PublishSettings { listen, join: addresses, swarm_key };
    let publication = tokio::select! {
        publication = Publication::start(files, settings) => publication?,
        _ = shutdown.requested() => return Ok(()),
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}\nready {}", publication.id(), publication.address())
        .and_then(|()| out.flush())
        .context("stdout is closed")?;
    let signal = shutdown.requested().await;
    tracing::info!(%signal, "provided no more");
    publication.end().await;
    Ok(())
}

/// Leaves an adapter with some servers, which know by the identity what else is this publisher's.
async fn leave_with_servers(
    files: PeftFiles,
    identity: Identity,
    join: SwarmConfig,
) -> anyhow::Result<()> {
    let (id, swarm) = (files.id(), Swarm::join_as(identity, join).await?);
    let left = leave::leave(&swarm, files, COPIES).await;
    swarm.leave().await;
    let (mut said, mut reasons) = (format!("{id}\n"), Vec::new());
    for (peer, kept) in &left {
        match kept {
            Ok(()) => said += &format!("kept by {peer}\n"),
            Err(error) => reasons.push(format!("{peer}: {}", in_one_line(error))),
        }
    }
    if reasons.len() == left.len() {
        bail!(
            "no server keeps the adapter: `umbel serve --keep-adapters BYTES` does, and without --leave it \
             is provided from here ({})",
            reasons.join("; ")
        );
    }
    let mut out = std::io::stdout();
    out.write_all(said.as_bytes()).and_then(|()| out.flush()).context("stdout is closed")
}

/// The adapter that `--adapter` names: that of a folder, or one that was published.
pub(crate) async fn named(
    opened: &Opened,
    named: &Path,
    config: &Config,
) -> anyhow::Result<NamedAdapter> {
    let id: Option<AdapterId> = named.to_str().and_then(|text| text.parse().ok());
    let Some(id) = id.filter(|_| !named.exists()) else {
        return opened.adapter(named).await;
    };
    let (cache, model) = (config.cache(), opened.model.config());
    let files = match &opened.blocks {
        Blocks::Swarm(swarm, _) => fetch::fetch(swarm, cache.root(), id, model).await,
        Blocks::Local(..) => match fetch::cached(cache.root(), id, model) {
            Some(files) => Ok(files),
            None => {
                bail!("--adapter {id} was not fetched before: --join ADDR for a swarm that has it")
            }
        },
    };
    let files = files.with_context(|| format!("--adapter {id}"))?;
    let model = Arc::clone(&opened.model);
    let read = move || NamedAdapter::new(&files, model.config());
    tokio::task::spawn_blocking(read).await?.with_context(|| format!("--adapter {id}"))
}
