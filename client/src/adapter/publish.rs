//! An adapter that this process provides for others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use umbel_engine::train::PeftFiles;
use umbel_net::{Identity, Link, LinkProtocol, Multiaddr, Network, NetworkConfig, Role, SwarmKey};
use umbel_protocol::AdapterId;
use umbel_protocol::published::{
    AdapterAnswer, AdapterRequest, KeepAdapter, KeepRefusal, Keeping, PART_BYTES_MAX,
};

pub use crate::swarm::enter::EnterError;
use crate::swarm::enter::{Entered, enter};

/// Links that are served at once: each keeps one part of a megabyte under way.
const LINKS_MAX: usize = 64;

/// How long a link may stay silent, or an answer unread.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Where an adapter is published.
#[derive(Debug, Clone)]
pub struct PublishSettings {
    /// Where this peer listens.
    pub listen: Vec<Multiaddr>,
    /// Peers of the swarm, any one of which is enough.
    pub join: Vec<Multiaddr>,
    /// The secret of a private swarm, if it is one.
    pub swarm_key: Option<SwarmKey>,
}

/// An adapter that is provided as long as this lives.
pub struct Publication {
    network: Network,
    id: AdapterId,
    serving: JoinSet<()>,
}

impl Publication {
    /// Comes into the swarm as a peer of its own, tells the hash table of the adapter, and answers those
    /// who ask for it.
    ///
    /// # Errors
    /// [`EnterError`] where the network cannot be started, or nobody answers.
    pub async fn start(files: PeftFiles, settings: PublishSettings) -> Result<Self, EnterError> {
        let config = NetworkConfig {
            listen: settings.listen,
            swarm_key: settings.swarm_key,
            ..NetworkConfig::new(Identity::ephemeral(), Role::Server)
        };
        let entered = enter(config, &settings.join, LinkProtocol::Adapter).await?;
        let Entered { network, mut incoming, .. } = entered;
        let id = files.id();
        let held = Arc::new(Provided::new(files));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut links = JoinSet::new();
            while let Some((peer, link)) = incoming.next().await {
                while links.try_join_next().is_some() {}
                if links.len() < LINKS_MAX {
                    tracing::debug!(%peer, "asked for the adapter");
                    links.spawn(Arc::clone(&held).answer(link));
                }
            }
        });
        network.provide(*id.as_bytes()).await;
        Ok(Self { network, id, serving })
    }

    /// The name by which others fetch it.
    #[must_use]
    pub const fn id(&self) -> AdapterId {
        self.id
    }

    /// Where this peer is.
    #[must_use]
    pub fn address(&self) -> Multiaddr {
        self.network.preferred_address()
    }

    /// Provides it no more.
    pub async fn end(mut self) {
        self.network.stop_providing(*self.id.as_bytes()).await;
        self.serving.abort_all();
        self.network.shutdown().await;
    }
}

/// An adapter as it is sent to those who ask for it.
#[derive(Debug)]
pub struct Provided {
    id: AdapterId,
    config_bytes: u64,
    weights_bytes: u64,
    /// The configuration and the weights.
    bytes: Bytes,
}

impl Provided {
    /// One of these files.
    #[must_use]
    pub fn new(files: PeftFiles) -> Self {
        let (id, config_bytes) = (files.id(), files.config.len() as u64);
        let weights_bytes = files.weights.len() as u64;
        Self {
            id,
            config_bytes,
            weights_bytes,
            bytes: [files.config, files.weights].concat().into(),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> AdapterId {
        self.id
    }

    /// The answer to who asks for its bytes from `offset` on.
    #[must_use]
    pub fn part(&self, offset: u64) -> AdapterAnswer {
        let Some(bytes) = self.bytes_from(offset) else { return AdapterAnswer::Unknown };
        let (config_bytes, weights_bytes) = (self.config_bytes, self.weights_bytes);
        AdapterAnswer::Part { config_bytes, weights_bytes, bytes }
    }

    /// The question whether somebody keeps it, with the bytes from `offset` on, or none.
    pub(super) fn keep(&self, offset: Option<u64>) -> Option<AdapterRequest> {
        let bytes = match offset {
            Some(offset) => self.bytes_from(offset)?,
            None => Bytes::new(),
        };
        let (id, offset) = (self.id, offset.unwrap_or(0));
        let (config_bytes, weights_bytes) = (self.config_bytes, self.weights_bytes);
        Some(AdapterRequest::Keep(KeepAdapter { id, config_bytes, weights_bytes, offset, bytes }))
    }

    fn bytes_from(&self, offset: u64) -> Option<Bytes> {
        let offset = usize::try_from(offset).ok().filter(|at| *at <= self.bytes.len())?;
        let end = self.bytes.len().min(offset.saturating_add(PART_BYTES_MAX));
        Some(self.bytes.slice(offset..end))
    }

    /// Answers what is asked on a link until it closes, is silent or does not read for too long, or breaks the
    /// protocol.
    async fn answer(self: Arc<Self>, link: Link) {
        let (mut sender, mut receiver) = link.split();
        while let Ok(Ok(Some(frame))) = tokio::time::timeout(SILENCE_MAX, receiver.receive()).await
        {
            let answer = match AdapterRequest::decode(frame) {
                Ok(AdapterRequest::Part { id, offset }) if id == self.id => self.part(offset),
                Ok(AdapterRequest::Part { .. }) => AdapterAnswer::Unknown,
                // It is here as long as somebody provides it, and for nothing else.
                Ok(AdapterRequest::Keep(_)) => {
                    AdapterAnswer::Keeping(Keeping::Refused(KeepRefusal::Full))
                }
                Err(_) => return,
            };
            if !sender.send_within(answer.encode(), SILENCE_MAX).await {
                return;
            }
        }
    }
}
