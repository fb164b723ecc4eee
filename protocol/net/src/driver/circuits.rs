//! Places at relays by which others come in, which are asked for again when they are lost.

use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use tokio::time::Instant;

/// How long after a place was lost it is asked for again: a relay that starts anew is there by then.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The places that this peer has or wants.
#[derive(Debug, Default)]
pub(super) struct Circuits {
    held: Vec<(ListenerId, Multiaddr)>,
    lost: Vec<Multiaddr>,
    again_at: Option<Instant>,
}

impl Circuits {
    /// A place is asked for.
    pub(super) fn asked(&mut self, listener: ListenerId, address: Multiaddr) {
        self.held.push((listener, address));
    }

    /// A listener has closed, that of a place perhaps.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) {
        if let Some(place) = self.held.iter().position(|(held, _)| *held == listener) {
            let (_, address) = self.held.swap_remove(place);
            tracing::warn!(%address, "a relay does not pass on any more; it is asked again");
            self.fail(address, now);
        }
    }

    /// A place cannot be asked for just now.
    pub(super) fn fail(&mut self, address: Multiaddr, now: Instant) {
        self.lost.push(address);
        self.again_at.get_or_insert(now + AGAIN_AFTER);
    }

    /// When some are to be asked for again.
    pub(super) const fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// Those that were lost.
    pub(super) fn take_lost(&mut self) -> Vec<Multiaddr> {
        self.again_at = None;
        std::mem::take(&mut self.lost)
    }
}
