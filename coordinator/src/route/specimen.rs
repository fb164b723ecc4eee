//! Servers that tests of routes plan over.

use std::time::Duration;

use umbel_protocol::announcement::{Announcement, Throughput, UnixTime};
use umbel_protocol::{ModelId, PeerId, Span};

/// A server of some of eight blocks, with all that routes do not ask for as it is at first.
pub(super) fn server(name: u8, start: u32, end: u32, throughput: Throughput) -> Announcement {
    Announcement {
        peer: PeerId::from_public_key([name; 32]),
        model: ModelId::from_bytes([0; 32]),
        model_name: String::new(),
        span: Span::new(start, end).unwrap(),
        block_count: 8,
        addresses: Vec::new(),
        version: String::new(),
        throughput,
        kv_tokens_free: 1_000,
        queue_depth: 0,
        draining: false,
        issued: UnixTime::after_epoch(Duration::ZERO),
        expires: UnixTime::after_epoch(Duration::from_secs(60)),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: false,
    }
}
