//! What a hop costs in time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use umbel_protocol::announcement::Announcement;
use umbel_protocol::{PeerId, Span};

/// Time that a hop adds besides computing: encoding, decoding and wake-ups, and a one-way delay
/// that nobody has measured yet. Petals counts 18 ms for the first alone.
pub const HOP_UNKNOWN: Duration = Duration::from_millis(18);

/// Longest one-way delay that is believed (Petals' bound): a server is dear enough at this, and a
/// figure beyond it is a clock that jumped or a lie.
pub const DELAY_MAX: Duration = Duration::from_secs(5);

/// What a server without room for the session's tokens costs: so much that it is taken only where
/// nobody else serves the block, since its figure may be out of date (Petals' penalty).
pub const NO_ROOM: Duration = Duration::from_secs(10);

/// What a server costs that is about to serve other blocks: the session will have to fail over,
/// and replaying a few thousand tokens into another server takes about a second.
pub const MOVING: Duration = Duration::from_secs(1);

/// Tokens a second through one block, where a server has not said: what Petals assumes.
pub const DECODE_UNKNOWN: f32 = 300.0;

/// Bytes a second, where a server has not said: the 100 Mbit/s that Petals assumes.
pub const NETWORK_UNKNOWN: u64 = 12_500_000;

/// Most waiting steps that are believed: at a millisecond each they take a second, after which
/// the order of servers does not change any more.
const QUEUE_DEPTH_MAX: u32 = 1_000;

/// What the planner knows beyond the announcements. What it has measured itself counts more than
/// what a server says of itself.
#[derive(Debug, Clone, Default)]
pub struct Costs {
    /// Round trips that the planner's own peer has measured.
    pub round_trips: BTreeMap<PeerId, Duration>,
    /// Round trips between an earlier and a later server, as the traces of the planner's own
    /// sessions show them.
    pub link_round_trips: BTreeMap<(PeerId, PeerId), Duration>,
    /// Time of one token through one block, as the traces of the planner's own sessions show it.
    pub block_times: BTreeMap<PeerId, Duration>,
    /// Pairs of which the first cannot reach the second. The planner's own peer need not be named:
    /// whom it cannot reach, it excludes.
    pub unreachable: BTreeSet<(PeerId, PeerId)>,
}

impl Costs {
    /// Nothing has been measured yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            round_trips: BTreeMap::new(),
            link_round_trips: BTreeMap::new(),
            block_times: BTreeMap::new(),
            unreachable: BTreeSet::new(),
        }
    }

    /// One-way delay between the planner's own peer and `server`.
    #[must_use]
    pub fn own_delay(&self, server: PeerId) -> Duration {
        self.round_trips.get(&server).map_or(HOP_UNKNOWN, |trip| one_way(*trip))
    }

    /// The part of `server` in the one-way delay between two servers whose distance nobody has
    /// measured: as far as from it to the planner's own peer, as if the way led past that one.
    /// Two servers of which nothing is known are [`HOP_UNKNOWN`] apart.
    #[must_use]
    pub fn star_delay(&self, server: PeerId) -> Duration {
        self.round_trips.get(&server).map_or(HOP_UNKNOWN / 2, |trip| one_way(*trip))
    }

    /// Time that `server` takes to decode one token through one block.
    #[must_use]
    pub fn block_time(&self, server: &Announcement) -> Duration {
        self.block_times.get(&server.peer).copied().unwrap_or_else(|| {
            let announced = server.throughput.decode_tokens_per_second;
            time_of_one(if announced > 0.0 { announced } else { DECODE_UNKNOWN })
        })
    }

    /// Time that a step spends on `server` before it is computed: the steps that wait, and what it
    /// means that there is no room for `tokens_max` or that the server is about to move.
    #[must_use]
    pub fn wait(&self, server: &Announcement, tokens_max: u32) -> Duration {
        let batch = server.throughput.decode_batch_tokens_per_second;
        let alone = self.block_time(server);
        // Steps that wait are computed together where that is faster.
        let each = if batch > 0.0 { time_of_one(batch).min(alone) } else { alone };
        let steps = server.queue_depth.min(QUEUE_DEPTH_MAX);
        let queue = each.saturating_mul(server.span.block_count()).saturating_mul(steps);
        let room = if server.kv_tokens_free < tokens_max { NO_ROOM } else { Duration::ZERO };
        let moving = if server.moving_to.is_some() { MOVING } else { Duration::ZERO };
        queue.saturating_add(room).saturating_add(moving)
    }

    /// Time that `server` takes to decode one token through `blocks`.
    #[must_use]
    pub fn compute(&self, server: &Announcement, blocks: Span) -> Duration {
        self.block_time(server).saturating_mul(blocks.block_count())
    }
}

/// Half a round trip, at most [`DELAY_MAX`].
#[must_use]
pub fn one_way(round_trip: Duration) -> Duration {
    (round_trip / 2).min(DELAY_MAX)
}

/// Time for `bytes` to pass through the network of `server`, in or out.
#[must_use]
pub fn transfer(server: &Announcement, bytes: u32) -> Duration {
    let announced = server.throughput.network_bytes_per_second;
    let rate = if announced > 0 { announced } else { NETWORK_UNKNOWN };
    Duration::from_nanos(u64::from(bytes).saturating_mul(1_000_000_000) / rate)
}

/// A rate below one in a thousand seconds counts as that.
fn time_of_one(tokens_per_second: f32) -> Duration {
    Duration::from_secs_f32(1.0 / tokens_per_second.max(1e-3))
}
