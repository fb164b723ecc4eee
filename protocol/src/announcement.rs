//! What a server says of itself, signed with its key.

mod error;
mod proposal;
mod signed;
mod time;

use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use prost::Message as _;

use crate::generated as v1;
use crate::{ModelId, PeerId, Span, wire};

pub use error::AnnouncementError;
pub use proposal::{PROPOSED_MOVES_MAX, Proposal, ProposedMove};
pub use signed::{
    ADAPTER_BYTES_MAX, ADAPTERS_MAX, AHEAD_MAX, ANNOUNCEMENT_BYTES_MAX, BLOCK_COUNT_MAX,
    LIFETIME_MAX, MODEL_NAME_BYTES_MAX, NEXT_HOPS_MAX, SignedAnnouncement, VERSION_BYTES_MAX,
};
pub use time::UnixTime;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Announcement {
    /// The server, which is also the signer.
    pub peer: PeerId,
    /// The model that it serves.
    pub model: ModelId,
    /// The model's name, for people; at most [`MODEL_NAME_BYTES_MAX`] bytes.
    pub model_name: String,
    /// The blocks that it serves.
    pub span: Span,
    /// Blocks of the whole model.
    pub block_count: u32,
    /// Multiaddresses, the best first: at most 16 of at most 256 bytes each.
    pub addresses: Vec<String>,
    /// The version of its software; at most [`VERSION_BYTES_MAX`] bytes.
    pub version: String,
    /// How fast it computes.
    pub throughput: Throughput,
    /// Tokens of KV cache that no session has reserved.
    pub kv_tokens_free: u32,
    /// Steps that wait or are being computed.
    pub queue_depth: u32,
    /// Whether it is about to leave and takes no new sessions.
    pub draining: bool,
    /// When this was said.
    pub issued: UnixTime,
    /// When it ceases to hold.
    pub expires: UnixTime,
    /// How far servers are that are likely to follow it on a route; at most [`NEXT_HOPS_MAX`],
    /// the most useful first.
    pub next_hops: Vec<NextHopLatency>,
    /// Adapters that sessions may ask for, by name: at most [`ADAPTERS_MAX`] of at most
    /// [`ADAPTER_BYTES_MAX`] bytes each.
    pub adapters: Vec<String>,
    /// The blocks that it is loading and will serve instead of the span; `None` where it stays.
    pub moving_to: Option<Span>,
    /// Most blocks that it can hold at once while it moves; 0 where it is not to be asked to.
    pub held_blocks_max: u32,
    /// Moves that it asks others to make with it.
    pub proposal: Option<Proposal>,
    /// Whose proposal makes it move, its own or another's, once everybody asked will do so; `None`
    /// where it moves by itself, or has begun.
    pub joined: Option<PeerId>,
    /// Whether it holds the ends of the model that its span touches, the embedding and the head, so
    /// that clients need not.
    pub holds_ends: bool,
}

/// How fast a server computes and sends; 0 where it has not been measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Throughput {
    /// Tokens a second through one block, one token at a time.
    pub decode_tokens_per_second: f32,
    /// Tokens a second through one block, many tokens of one session at once.
    pub prefill_tokens_per_second: f32,
    /// Tokens a second through one block, summed over eight sessions that decode together.
    pub decode_batch_tokens_per_second: f32,
    /// Bytes a second over its network, in the slower direction.
    pub network_bytes_per_second: u64,
}

/// How far another server is from the one that announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHopLatency {
    /// The other server.
    pub peer: PeerId,
    /// Time there and back, without computing.
    pub round_trip: Duration,
}

impl Announcement {
    /// Signs the announcement. Texts and lists above their limits are cut to them, adapters whose
    /// names are too long are left out, and a speed that is no number counts as not measured. What
    /// is still above [`ANNOUNCEMENT_BYTES_MAX`] then loses next hops, addresses but the first,
    /// and adapters, in this order and the last ones first. Everything else is signed as it
    /// stands, also where no reader will take it (see [`SignedAnnouncement::verify`]).
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> SignedAnnouncement {
        let mut announcement = self.to_wire();
        signed::cut_to_size(&mut announcement);
        let bytes = announcement.encode_to_vec();
        let signature = key.sign(&signed::signed_message(&bytes)).to_bytes();
        SignedAnnouncement::new(bytes.into(), signature)
    }

    fn to_wire(&self) -> v1::Announcement {
        let text =
            |text: &str, max| wire::cut(text.chars().filter(|c| !c.is_control()).collect(), max);
        let speed = |speed: f32| {
            if speed.is_finite() { speed.max(0.0) } else { 0.0 }
        };
        v1::Announcement {
            peer: wire::peer_bytes(self.peer),
            model: wire::model_bytes(self.model),
            model_name: text(&self.model_name, MODEL_NAME_BYTES_MAX),
            span: Some(wire::span_to_wire(self.span)),
            block_count: self.block_count,
            addresses: wire::addresses_to_wire(self.addresses.clone()),
            version: text(&self.version, VERSION_BYTES_MAX),
            decode_tokens_per_second: speed(self.throughput.decode_tokens_per_second),
            prefill_tokens_per_second: speed(self.throughput.prefill_tokens_per_second),
            decode_batch_tokens_per_second: speed(self.throughput.decode_batch_tokens_per_second),
            network_bytes_per_second: self.throughput.network_bytes_per_second,
            kv_tokens_free: self.kv_tokens_free,
            queue_depth: self.queue_depth,
            draining: self.draining,
            issued_ns: wire::nanoseconds(self.issued.since_epoch()),
            expires_ns: wire::nanoseconds(self.expires.since_epoch()),
            next_hops: self
                .next_hops
                .iter()
                .take(NEXT_HOPS_MAX)
                .map(|next| v1::NextHopLatency {
                    peer: wire::peer_bytes(next.peer),
                    round_trip_ns: wire::nanoseconds(next.round_trip),
                })
                .collect(),
            adapters: self
                .adapters
                .iter()
                .filter(|name| signed::is_adapter_name(name))
                .take(ADAPTERS_MAX)
                .cloned()
                .collect(),
            moving_to: self.moving_to.map(wire::span_to_wire),
            held_blocks_max: self.held_blocks_max,
            proposal: self.proposal.as_ref().map(Proposal::to_wire),
            joined: self.joined.map(wire::peer_bytes).unwrap_or_default(),
            holds_ends: self.holds_ends,
        }
    }
}

#[cfg(test)]
mod tests;
