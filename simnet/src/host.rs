//! A server of the simulated world: the production machine and a toy accelerator.

use std::collections::VecDeque;
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

/// Whether a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It runs.
    Up,
    /// It stands still, and goes on later as if nothing had been.
    Frozen,
    /// It is gone, with everything that it held.
    Down,
}

/// One server.
#[derive(Debug)]
pub struct Host<E> {
    /// The machine that production runs.
    pub server: Server,
    /// Its accelerator.
    pub oracle: Oracle,
    /// How fast that is.
    pub speed: Speed,
    /// Its name.
    pub peer: PeerId,
    /// With what it starts.
    pub config: ServerConfig,
    /// Whether it runs.
    pub condition: Condition,
    /// How often it has started: what was meant for an earlier life is lost.
    pub life: u32,
    /// The timer that is armed.
    pub armed: Option<Time>,
    /// The job that is computed, and its result.
    pub computing: Option<(JobId, Tensor, Duration)>,
    /// What waits while it is frozen.
    pub held: VecDeque<E>,
    /// Whether it has been told to leave.
    pub leaving: bool,
}

impl<E> Host<E> {
    /// An idle server.
    #[must_use]
    pub fn new(config: ServerConfig, speed: Speed) -> Self {
        Self {
            server: Server::new(config.clone()),
            oracle: Oracle::default(),
            speed,
            peer: config.peer,
            config,
            condition: Condition::Up,
            life: 0,
            armed: None,
            computing: None,
            held: VecDeque::new(),
            leaving: false,
        }
    }

    /// Starts it anew, with nothing of what it held.
    pub fn restart(&mut self) {
        let life = self.life + 1;
        *self = Self { life, ..Self::new(self.config.clone(), self.speed) };
    }

    /// How long a step of `tokens` through `blocks` blocks takes.
    #[must_use]
    pub fn duration(&self, blocks: u32, tokens: u32) -> Duration {
        (self.speed.per_block + self.speed.per_token * tokens) * blocks
    }
}
