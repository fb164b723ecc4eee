//! A server of the simulated world: the production machine and a toy accelerator.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::server::{JobId, Server, ServerConfig};
use umbel_protocol::{PeerId, Tensor};

use crate::oracle::Oracle;

/// How long the accelerator takes.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// For reading the weights of a block, once a step.
    pub per_block: Duration,
    /// For each token and block.
    pub per_token: Duration,
}

/// One server.
#[derive(Debug)]
pub struct Host {
    /// The machine that production runs.
    pub server: Server,
    /// Its accelerator.
    pub oracle: Oracle,
    /// How fast that is.
    pub speed: Speed,
    /// Its name.
    pub peer: PeerId,
    /// The timer that is armed.
    pub armed: Option<Time>,
    /// The job that is computed, and its result.
    pub computing: Option<(JobId, Tensor, Duration)>,
}

impl Host {
    /// An idle server.
    #[must_use]
    pub fn new(config: ServerConfig, speed: Speed) -> Self {
        let peer = config.peer;
        let server = Server::new(config);
        Self { server, oracle: Oracle::default(), speed, peer, armed: None, computing: None }
    }

    /// How long a step of `tokens` through `blocks` blocks takes.
    #[must_use]
    pub fn duration(&self, blocks: u32, tokens: u32) -> Duration {
        (self.speed.per_block + self.speed.per_token * tokens) * blocks
    }
}
