//! What a hop costs in time.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_protocol::announcement::Announcement;
use umbel_protocol::{PeerId, Span};

/// Time that a hop adds besides computing: encoding, decoding and wake-ups, and a one-way delay
/// that nobody has measured yet. Petals counts 18 ms for the first alone.
pub const HOP_UNKNOWN: Duration = Duration::from_millis(18);

/// What a server without room for the session's tokens costs: so much that it is taken only where
/// nobody else serves the block, since its figure may be out of date (Petals' penalty).
pub const NO_ROOM: Duration = Duration::from_secs(10);

/// Tokens a second through one block, where a server has not said: what Petals assumes.
pub const DECODE_UNKNOWN: f32 = 300.0;

/// What the planner knows beyond the announcements.
#[derive(Debug, Clone, Default)]
pub struct Costs {
    /// Round trips that the planner's own peer has measured.
    pub round_trips: BTreeMap<PeerId, Duration>,
}

impl Costs {
    /// Time to reach `server` and to wait in its queue.
    #[must_use]
    pub fn reach(&self, server: &Announcement, tokens_max: u32) -> Duration {
        let delay = self.round_trips.get(&server.peer).map_or(HOP_UNKNOWN, |trip| *trip / 2);
        let wait = compute(server, server.span) * server.queue_depth.min(1_000);
        let room = if server.kv_tokens_free < tokens_max { NO_ROOM } else { Duration::ZERO };
        delay + wait + room
    }
}

/// Time that `server` takes to decode one token through `blocks`.
#[must_use]
pub fn compute(server: &Announcement, blocks: Span) -> Duration {
    let announced = server.throughput.decode_tokens_per_second;
    let rate = if announced > 0.0 { announced.max(1e-3) } else { DECODE_UNKNOWN };
    Duration::from_secs_f32(1.0 / rate) * blocks.block_count()
}
