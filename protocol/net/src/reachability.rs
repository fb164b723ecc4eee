//! Whether others can come in, as they have found out.

use libp2p::Multiaddr;
use umbel_protocol::PeerId;

/// What came of a peer's try to dial this one where it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reachability {
    /// The address that it tried: this peer's own, or that of a router before it.
    pub address: Multiaddr,
    /// Who tried.
    pub by: PeerId,
    /// Why it did not come in; `None` where it did.
    pub failure: Option<String>,
}
