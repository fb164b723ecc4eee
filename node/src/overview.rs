//! A picture of the swarm, made of what its servers announce: for tables, for the terminal and for
//! the page of the gateway.

mod change;
mod table;
pub mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use umbel_protocol::announcement::Announcement;
use umbel_protocol::text::printable;
use umbel_protocol::{ModelId, PeerId, Span};

pub use change::{Change, changes};
pub use table::text;

/// All models that are served, in the order of their ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overview {
    /// Each with its servers.
    pub models: Vec<ModelOverview>,
}

/// One model and who serves it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelOverview {
    /// Its id.
    pub id: ModelId,
    /// What its servers call it: their own word, made fit to be shown.
    pub name: String,
    /// Blocks of all of it.
    pub block_count: u32,
    /// By their blocks.
    pub servers: Vec<ServerOverview>,
}

/// One server, by its own word but for the round trip.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerOverview {
    /// Its name.
    pub peer: PeerId,
    /// What it serves.
    pub span: Span,
    /// Where it is going, if it moves.
    pub moving_to: Option<Span>,
    /// The version of its software, made fit to be shown.
    pub version: String,
    /// Tokens a second through all blocks of its span, one at a time.
    pub decode_tokens_per_second: f64,
    /// The same for many tokens of one session at once.
    pub prefill_tokens_per_second: f64,
    /// Tokens of KV cache that no session has reserved.
    pub kv_tokens_free: u32,
    /// Steps that wait or are being computed.
    pub queue_depth: u32,
    /// Whether it is about to leave.
    pub draining: bool,
    /// From here and back, where that has been measured.
    pub round_trip: Option<Duration>,
    /// Where it can be reached.
    pub addresses: Vec<String>,
}

impl Overview {
    /// What `servers` say, and how far away they are.
    #[must_use]
    pub fn new<'a>(
        servers: impl IntoIterator<Item = &'a Announcement>,
        round_trip: impl Fn(PeerId) -> Option<Duration>,
    ) -> Self {
        let mut models: BTreeMap<ModelId, ModelOverview> = BTreeMap::new();
        for server in servers {
            let model = models.entry(server.model).or_insert_with(|| ModelOverview {
                id: server.model,
                name: printable(&server.model_name),
                block_count: 0,
                servers: Vec::new(),
            });
            model.block_count = model.block_count.max(server.block_count);
            model.servers.push(ServerOverview::new(server, round_trip(server.peer)));
        }
        let mut models: Vec<_> = models.into_values().collect();
        for model in &mut models {
            model.servers.sort_by_key(|server| (server.span, server.peer));
        }
        Self { models }
    }

    /// The same of a model that is known to have so many blocks: nobody adds to them who says otherwise.
    #[must_use]
    pub fn of_blocks(
        servers: &[Announcement],
        block_count: u32,
        round_trip: impl Fn(PeerId) -> Option<Duration>,
    ) -> Self {
        let right = servers.iter().filter(|server| server.block_count == block_count);
        Self::new(right, round_trip)
    }

    /// The servers of all models.
    #[must_use]
    pub fn server_count(&self) -> usize {
        self.models.iter().map(|model| model.servers.len()).sum()
    }
}

impl ModelOverview {
    /// How many servers each block has that take new sessions.
    #[must_use]
    pub fn replicas(&self) -> Vec<usize> {
        let servers = |block| {
            let serves = |server: &&ServerOverview| !server.draining && server.span.contains(block);
            self.servers.iter().filter(serves).count()
        };
        (0..self.block_count).map(servers).collect()
    }

    /// The blocks that nobody serves.
    #[must_use]
    pub fn unserved(&self) -> Vec<u32> {
        (0..)
            .zip(self.replicas())
            .filter(|(_, count)| *count == 0)
            .map(|(block, _)| block)
            .collect()
    }
}

impl ServerOverview {
    fn new(server: &Announcement, round_trip: Option<Duration>) -> Self {
        let through =
            |per_block: f32| f64::from(per_block) / f64::from(server.span.block_count().max(1));
        Self {
            peer: server.peer,
            span: server.span,
            moving_to: server.moving_to,
            version: printable(&server.version),
            decode_tokens_per_second: through(server.throughput.decode_tokens_per_second),
            prefill_tokens_per_second: through(server.throughput.prefill_tokens_per_second),
            kv_tokens_free: server.kv_tokens_free,
            queue_depth: server.queue_depth,
            draining: server.draining,
            round_trip,
            addresses: server.addresses.iter().map(|address| printable(address)).collect(),
        }
    }

    /// Whether others come to it by relays: nobody comes in where it listens, by its own word.
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        is_relayed(&self.addresses)
    }

    /// What is special about it; empty where nothing is.
    #[must_use]
    pub fn state(&self) -> String {
        let course = match (self.draining, self.moving_to) {
            (true, None) => Some("leaving".to_owned()),
            (_, Some(span)) => Some(format!("to {span}")),
            (false, None) => None,
        };
        let relayed = self.is_relayed().then(|| "by a relay".to_owned());
        course.into_iter().chain(relayed).collect::<Vec<_>>().join(", ")
    }

    /// The same for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "peer": self.peer.to_string(),
            "start": self.span.start(),
            "end": self.span.end(),
            "moving_to": self.moving_to.map(|span| [span.start(), span.end()]),
            "version": self.version,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "kv_tokens_free": self.kv_tokens_free,
            "queue_depth": self.queue_depth,
            "draining": self.draining,
            "relayed": self.is_relayed(),
            "round_trip_ms": self.round_trip.map(milliseconds),
        })
    }
}

/// Whether some of these addresses lead by a relay.
#[must_use]
pub fn is_relayed(addresses: &[String]) -> bool {
    addresses.iter().any(|address| address.contains("/p2p-circuit"))
}

/// For people and for JSON.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests;
