//! A gateway in the process of a server: it asks the swarm as any client does.

use std::io::Write as _;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use umbel_client::{SessionOptions, Speculate, Swarm, SwarmConfig};
use umbel_shard::{ModelSource, PartsNeeded};

use crate::commands::session::{Blocks, Opened, open_ends};
use crate::config::Config;
use crate::gateway::Front;

/// A gateway that runs, until this is dropped.
pub(super) struct Attached {
    task: JoinHandle<()>,
    /// Dropped to stop it.
    tell: Option<oneshot::Sender<()>>,
}

impl Attached {
    /// Begins to answer, once the model's ends are here and the swarm is joined.
    pub(super) fn start(
        front: Front,
        source: ModelSource,
        join: SwarmConfig,
        config: Config,
    ) -> Self {
        let (tell, told) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            if let Err(error) = answer(front, source, join, &config, told).await {
                let error: &dyn std::error::Error = error.as_ref();
                tracing::warn!(error, "the gateway has ended; the server goes on");
            }
        });
        Self { task, tell: Some(tell) }
    }

    /// Takes no more requests, and waits for the answers under way, but not long.
    pub(super) async fn stop(attached: &mut Option<Self>) {
        if let Some(attached) = attached {
            attached.tell = None;
            // A task that panicked has said so.
            let _ended = (&mut attached.task).await;
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    front: Front,
    source: ModelSource,
    join: SwarmConfig,
    config: &Config,
    told: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let mut told = told.map(drop);
    let opening = async {
        let model = open_ends(source, config, PartsNeeded::ends()).await?;
        let swarm = Arc::new(Swarm::join(join).await?);
        anyhow::Ok(Opened { model, blocks: Blocks::Swarm(swarm, SessionOptions::default()) })
    };
    let opened = tokio::select! {
        opened = opening => opened?,
        () = &mut told => return Ok(()),
    };
    if let Err(error) = writeln!(std::io::stdout(), "gateway {}", front.url()) {
        tracing::warn!(%error, "nobody reads stdout");
    }
    if let Some(opened) = front.serve(opened, Speculate::Auto, &config.cache_dir, told).await {
        opened.leave().await;
    }
    Ok(())
}
