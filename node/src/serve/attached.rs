//! A gateway in the process of a server: it asks the swarm as any client does.

use std::io::Write as _;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use umbel_client::{SessionOptions, Speculate, Swarm, SwarmConfig};
use umbel_protocol::PeerId;
use umbel_shard::{ModelSource, PartsNeeded};

use crate::commands::session::{Blocks, Opened, open_ends};
use crate::config::Config;
use crate::gateway::Front;

/// A gateway that runs, until this is dropped.
pub(super) struct Attached {
    task: JoinHandle<()>,
    /// Told to stop it, with whether the server stays for its answers.
    tell: Option<oneshot::Sender<bool>>,
}

impl Attached {
    /// Begins to answer, once the model's ends are here and the swarm is joined, in the process of that
    /// server.
    pub(super) fn start(
        front: Front,
        source: ModelSource,
        way: (PeerId, SwarmConfig),
        config: Config,
    ) -> Self {
        let (tell, told) = oneshot::channel();
        let task = tokio::spawn(async move {
            if let Err(error) = answer(front, source, way, &config, told).await {
                let error: &dyn std::error::Error = error.as_ref();
                tracing::warn!(error, "the gateway has ended; the server goes on");
            }
        });
        Self { task, tell: Some(tell) }
    }

    /// Takes no more requests, and waits for the answers under way, but not long. The server may stay for
    /// them although it says that it leaves.
    pub(super) async fn stop(attached: &mut Option<Self>, server_stays: bool) {
        if let Some(attached) = attached {
            if let Some(tell) = attached.tell.take() {
                // A task that has ended has said so.
                let _ended = tell.send(server_stays);
            }
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
    (server, join): (PeerId, SwarmConfig),
    config: &Config,
    told: oneshot::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut told = told.map(|server_stays| server_stays.unwrap_or(false));
    let opening = async {
        let model = open_ends(source, config, PartsNeeded::ends()).await?;
        anyhow::Ok((model, Arc::new(Swarm::join(join).await?)))
    };
    let (model, swarm) = tokio::select! {
        opened = opening => opened?,
        _ = &mut told => return Ok(()),
    };
    let staying = Arc::clone(&swarm);
    let told = told.map(move |server_stays| {
        if server_stays {
            staying.stay_with(server);
        }
    });
    let opened = Opened { model, blocks: Blocks::Swarm(swarm, SessionOptions::default()) };
    if let Err(error) = writeln!(std::io::stdout(), "gateway {}", front.url()) {
        tracing::warn!(%error, "nobody reads stdout");
    }
    if let Some(opened) = front.serve(opened, Speculate::Auto, &config.cache_dir, told).await {
        opened.leave().await;
    }
    Ok(())
}
