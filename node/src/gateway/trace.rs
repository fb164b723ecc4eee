//! Where the time of a token went, for those who ask with `trace`: an addition of Umbel's own.

use serde_json::{Value, json};
use umbel_client::{HopTime, Token};

use crate::overview::milliseconds;

/// The field of a chunk in which it stands.
pub(super) const FIELD: &str = "umbel";

/// Of several tokens that came with one step, the first has its time and the others have no hops.
pub(super) fn of(token: &Token) -> Value {
    let hop = |hop: &HopTime| {
        json!({
            "peer": hop.peer.map(|peer| peer.to_string()),
            "start": hop.blocks.start(),
            "end": hop.blocks.end(),
            "compute_ms": milliseconds(hop.compute),
            "queue_ms": milliseconds(hop.queue),
            "network_ms": milliseconds(hop.network),
        })
    };
    let hops: Vec<_> = token.time.hops.iter().map(hop).collect();
    json!({ "total_ms": milliseconds(token.time.total), "hops": hops })
}
