//! A server of the simulated world: the production machine and a toy accelerator.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::server::{JobId, PageId, PageOrder, Server, ServerConfig};
use umbel_protocol::prefix::PAGE_TOKENS;
use umbel_protocol::{PeerId, SessionId, Span, Tensor};

use crate::oracle::Oracle;

/// How long the accelerator takes for a block: for each pass the longer of reading the weights and
/// of the arithmetic of all its tokens, and then for reading the context of each session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// For reading the weights of a block, once a pass: their bytes by the memory's bandwidth, and
    /// what else a block costs however many tokens there are.
    pub per_block: Duration,
    /// For the arithmetic of each token and block.
    pub per_token: Duration,
    /// For reading the keys and values of each token of the context, once a pass and block.
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
        let blocks = Span::new(0, blocks).expect("a step goes through some block");
        self.pass(&[Row { blocks, position, tokens }])
    }

    /// How long a pass of these rows takes: each block reads its weights once for all of them.
    #[must_use]
    pub fn pass(&self, rows: &[Row]) -> Duration {
        let begin = rows.iter().map(|row| row.blocks.start()).min().unwrap_or(0);
        let end = rows.iter().map(|row| row.blocks.end()).max().unwrap_or(0);
        (begin..end).map(|block| self.block(rows, block)).sum()
    }

    fn block(&self, rows: &[Row], block: u32) -> Duration {
        let here = rows.iter().filter(|row| row.blocks.contains(block));
        let (mut tokens, mut context) = (0, 0);
        for row in here {
            tokens += row.tokens;
            context += row.position + row.tokens;
        }
        if tokens == 0 {
            return Duration::ZERO;
        }
        self.per_block.max(self.per_token * tokens) + self.per_context * context
    }
}

/// Consecutive tokens of one session in a pass.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The blocks that they go through.
    pub blocks: Span,
    /// Where the first one stands.
    pub position: u32,
    /// How many there are.
    pub tokens: u32,
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
    /// How long the thread that reads its links takes for a message.
    pub per_message: Duration,
    /// Messages that wait for that thread, the first of which it is at.
    pub unread: VecDeque<E>,
    /// How many times slower than `speed` it is now.
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
    /// The pass that is computed, its results, and how long it takes.
    pub computing: Option<(JobId, Vec<Tensor>, Duration)>,
    /// What waits while it is frozen.
    pub held: VecDeque<E>,
    /// Whether it has been told to leave.
    pub leaving: bool,
    /// Whether its answers have the wrong shape.
    pub lies: bool,
    /// Pages of no session, by a count of our own.
    pub idle: BTreeSet<PageId>,
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
            per_message: Duration::ZERO,
            unread: VecDeque::new(),
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
            idle: BTreeSet::new(),
            reserved: BTreeMap::new(),
        }
    }

    /// Starts it anew, with nothing of what it held.
    pub fn restart(&mut self) {
        let life = self.life + 1;
        let per_message = self.per_message;
        let anew = Self::new(self.config.clone(), self.speed, self.group);
        *self = Self { life, per_message, ..anew };
    }

    /// Does what the machine wants done with pages.
    pub fn order(&mut self, orders: Vec<PageOrder>) {
        for order in orders {
            match order {
                PageOrder::Keep { session, number, page } => {
                    self.oracle.keep(session, number, page);
                }
                PageOrder::Idle(page) => {
                    self.idle.insert(page);
                }
                PageOrder::Drop(page) => {
                    self.oracle.drop_page(page);
                    self.idle.remove(&page);
                }
            }
        }
    }

    /// Makes room for a session, with pages that it begins with.
    pub fn open(&mut self, session: SessionId, blocks: Span, prefix: &[PageId]) {
        self.oracle.open_with(session, blocks, prefix);
        for page in prefix {
            self.idle.remove(page);
        }
    }

    /// Blocks times tokens of what sessions have reserved, and of what is kept of none.
    #[must_use]
    pub fn used(&self) -> u64 {
        let reserved: u64 = self.reserved.values().map(|(room, _)| *room).sum();
        let page = |page: &PageId| self.oracle.page_blocks(*page) as u64 * u64::from(PAGE_TOKENS);
        reserved + self.idle.iter().map(page).sum::<u64>()
    }

    /// As many as there are.
    #[must_use]
    pub fn budget(&self) -> u64 {
        u64::from(self.config.kv_tokens_max) * u64::from(self.config.span.block_count())
    }

    /// How long a pass of these rows takes now.
    #[must_use]
    pub fn duration(&self, rows: &[Row]) -> Duration {
        self.speed.pass(rows) * self.slower
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

    #[test]
    fn a_pass_reads_the_weights_of_each_block_once_and_the_context_of_each_session() {
        let speed = Speed {
            per_block: Duration::from_millis(10),
            per_token: Duration::from_millis(1),
            per_context: Duration::from_micros(1),
        };
        let row = |start, end, position, tokens| Row {
            blocks: Span::new(start, end).unwrap(),
            position,
            tokens,
        };
        // One block of both, one of each alone, and between them one of nobody.
        let rows = [row(0, 2, 99, 1), row(1, 2, 49, 1), row(3, 4, 0, 20)];
        let blocks = [10_100, 10_150, 0, 20_020].map(Duration::from_micros);
        assert_eq!(speed.pass(&rows), blocks.iter().sum::<Duration>());
        assert_eq!(speed.pass(&[row(5, 9, 7, 3)]), speed.step(4, 7, 3));
    }
}
