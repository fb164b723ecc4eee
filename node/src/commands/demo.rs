//! `umbel demo`

use std::io::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use umbel_client::{SessionOptions, Speculate, Swarm, SwarmConfig};
use umbel_shard::{ModelSource, PartsNeeded};

use super::chat::{self, Conversation};
use super::local_swarm::{LocalSwarm, ServerOptions};
use super::session::{Blocks, Opened, open_ends, sampling};
use crate::args::DemoArguments;
use crate::config::Config;
use crate::gateway::{End, Front};
use crate::shutdown::Shutdown;
use crate::telemetry::say;

pub(super) async fn run(arguments: DemoArguments, config: &Config) -> anyhow::Result<()> {
    let front = match arguments.gateway {
        Some(listen) => Some(Front::bind(listen, &arguments.front).await?),
        None => None,
    };
    let name = arguments.model.name();
    // The whole model is fetched here, once, so that the servers find it on this machine.
    let model = open_ends(ModelSource::parse(name)?, config, PartsNeeded::everything()).await?;
    let block_count = model.config().block_count;
    say(format_args!(
        "starting {} servers for the {block_count} blocks of {name}",
        arguments.servers
    ));
    let servers =
        LocalSwarm::start(name, block_count, arguments.servers, ServerOptions::default(), config)
            .await?;
    for (blocks, address) in servers.servers() {
        say(format_args!("  blocks {blocks:<8} {address}"));
    }
    let join = SwarmConfig { join: vec![servers.address().clone()], ..SwarmConfig::default() };
    let swarm = Arc::new(Swarm::join(join).await?);
    let opened = Opened { model, blocks: Blocks::Swarm(swarm, SessionOptions::default()) };
    let result = match front {
        Some(front) => answer(front, opened, config).await,
        None => converse(&arguments, opened).await.map(|()| End::InOrder),
    };
    match result {
        // They are killed as they are dropped, and have sessions that nobody waits for.
        Ok(End::AtOnce) => drop(servers),
        Ok(End::InOrder) | Err(_) => servers.stop().await,
    }
    result.map(drop)
}

async fn converse(arguments: &DemoArguments, opened: Opened) -> anyhow::Result<()> {
    let sampling = sampling(&arguments.sampling, chat::SAMPLING)?;
    let mut conversation = Conversation::new(&opened, sampling, arguments.max_tokens, None)?;
    let result = match &arguments.prompt {
        Some(prompt) => conversation.answer(prompt).await,
        None => conversation.converse().await,
    };
    conversation.close().await;
    opened.leave().await;
    result
}

/// Answers over HTTP until a signal, and those answers that are under way then until the next.
async fn answer(front: Front, opened: Opened, config: &Config) -> anyhow::Result<End> {
    let mut stop = Shutdown::listen().context("signals cannot be caught")?;
    writeln!(std::io::stdout(), "ready {}", front.url()).context("stdout is closed")?;
    say("Ctrl-C stops it");
    let stopping = |_| say("stopping when the answers are over; Ctrl-C once more stops at once");
    let cache = &config.cache_dir;
    Ok(front.serve_until_stopped(opened, Speculate::Auto, cache, &mut stop, stopping).await)
}
