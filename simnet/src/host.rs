//! A server of the simulated world: the production machine and a toy accelerator.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::server::{JobId, Server, ServerConfig};
use umbel_protocol::{PeerId, SessionId, Tensor};

use crate::oracle::Oracle;

/// How long the accelerator takes for a block: for each step the longer of reading the weights and
/// of the arithmetic of all its tokens, and then for reading the context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// For reading the weights of a block, once a step: their bytes by the memory's bandwidth, and
    /// what else a block costs however many tokens there are.
    pub per_block: Duration,
    /// For the arithmetic of each token and block.
    pub per_token: Duration,
    /// For reading the keys and values of each token of the context, once a step and block.
    pub per_context: Duration,
}

impl Speed {
    /// An accelerator for which the length of the context does not matter.
    #[must_use]
    pub const fn new(per_block: Duration, per_token: Duration) -> Self {
        Self { per_block, per_token, per_context: Duration::ZERO }
    }

    /// How long a step of `tokens` from `position` on through `blocks` blocks takes.
    #[must_use]
    pub fn step(&self, blocks: u32, position: u32, tokens: u32) -> Duration {
        let arithmetic = self.per_token * tokens;
        (self.per_block.max(arithmetic) + self.per_context * (position + tokens)) * blocks
    }
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
    /// How many times slower than that it is now.
    pub slower: u32,
    /// Its name.
    pub peer: PeerId,
    /// Where it stands.
    pub group: usize,
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
    /// Whether its answers have the wrong shape.
    pub lies: bool,
    /// Blocks times tokens, and tokens, that its sessions have room for, by a count of our own.
    pub reserved: BTreeMap<SessionId, (u64, u32)>,
}

impl<E> Host<E> {
    /// An idle server.
    #[must_use]
    pub fn new(config: ServerConfig, speed: Speed, group: usize) -> Self {
        Self {
            server: Server::new(config.clone()),
            oracle: Oracle::default(),
            speed,
            slower: 1,
            peer: config.peer,
            group,
            config,
            condition: Condition::Up,
            life: 0,
            armed: None,
            computing: None,
            held: VecDeque::new(),
            leaving: false,
            lies: false,
            reserved: BTreeMap::new(),
        }
    }

    /// Starts it anew, with nothing of what it held.
    pub fn restart(&mut self) {
        let life = self.life + 1;
        *self = Self { life, ..Self::new(self.config.clone(), self.speed, self.group) };
    }

    /// How long a step of `tokens` from `position` on through `blocks` blocks takes now.
    #[must_use]
    pub fn duration(&self, blocks: u32, position: u32, tokens: u32) -> Duration {
        self.speed.step(blocks, position, tokens) * self.slower
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_few_tokens_reads_weights_and_one_of_many_computes() {
        let speed = Speed {
            per_block: Duration::from_millis(10),
            per_token: Duration::from_millis(1),
            per_context: Duration::from_micros(1),
        };
        assert_eq!(speed.step(2, 99, 1), Duration::from_micros(2 * 10_100));
        assert_eq!(speed.step(2, 0, 100), Duration::from_micros(2 * 100_100));
    }
}
