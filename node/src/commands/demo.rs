//! `umbel demo`

use std::sync::Arc;

use umbel_client::{SessionOptions, Swarm, SwarmConfig};
use umbel_shard::{ModelSource, PartsNeeded};

use super::chat::{self, Conversation};
use super::local_swarm::LocalSwarm;
use super::session::{Blocks, Opened, open_ends, sampling};
use crate::args::DemoArguments;
use crate::config::Config;

pub(super) async fn run(arguments: DemoArguments, config: &Config) -> anyhow::Result<()> {
    let sampling = sampling(&arguments.sampling, chat::SAMPLING)?;
    let name = arguments.model.name();
    // The whole model is fetched here, once, so that the servers find it on this machine.
    let model = open_ends(ModelSource::parse(name)?, config, PartsNeeded::everything()).await?;
    let block_count = model.config().block_count;
    eprintln!("starting {} servers for the {block_count} blocks of {name}", arguments.servers);
    let servers = LocalSwarm::start(name, block_count, arguments.servers, None, config).await?;
    for (blocks, address) in servers.servers() {
        eprintln!("  blocks {blocks:<8} {address}");
    }
    let join = SwarmConfig { join: vec![servers.address().clone()], ..SwarmConfig::default() };
    let swarm = Arc::new(Swarm::join(join).await?);
    let opened = Opened { model, blocks: Blocks::Swarm(swarm, SessionOptions::default()) };
    let mut conversation = Conversation::new(&opened, sampling, arguments.max_tokens, None);
    let result = match &arguments.prompt {
        Some(prompt) => conversation.answer(prompt).await,
        None => conversation.converse().await,
    };
    conversation.close().await;
    opened.leave().await;
    servers.stop().await;
    result
}
