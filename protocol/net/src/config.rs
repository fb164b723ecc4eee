//! How a peer takes part in the network.

use std::time::Duration;

use libp2p::Multiaddr;

use crate::{Identity, RateLimits, SwarmKey};

/// How often each connected peer is pinged. Routes are planned by these round trips, so they must
/// not be much older than a route's life; a ping takes some 100 bytes.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// What a peer starts with.
#[derive(Debug)]
pub struct NetworkConfig {
    /// Who it is.
    pub identity: Identity,
    /// Whether it serves others.
    pub role: Role,
    /// Where it listens, `/ip4/0.0.0.0/udp/0/quic-v1` for example, or by which relays
    /// ([`relayed_by`](crate::relayed_by)); a client need not.
    pub listen: Vec<Multiaddr>,
    /// Where others reach it, if that is not where it listens: behind a port that is forwarded, say.
    /// They are told these addresses alone.
    pub announce: Vec<Multiaddr>,
    /// The secret of a private swarm, whose members alone it connects to, over TCP alone.
    pub swarm_key: Option<SwarmKey>,
    /// Whether it finds peers on the local network, and they it.
    pub mdns: bool,
    /// Whether it asks peers that serve to dial it back where they see it, so that
    /// [`Network::reachability`](crate::Network::reachability) can tell.
    pub asks_reachability: bool,
    /// Whether it passes on what others send to peers that cannot be reached, within bounds.
    pub relays: bool,
    /// Whether links to processes of this machine that want so too do without the network (on Linux).
    pub local_links: bool,
    /// What its links take of its connection at most.
    pub rate_limits: RateLimits,
    /// How often each connected peer is pinged.
    pub ping_interval: Duration,
}

impl NetworkConfig {
    /// A peer that does not listen and does not look around on the local network.
    #[must_use]
    pub const fn new(identity: Identity, role: Role) -> Self {
        Self {
            identity,
            role,
            listen: Vec::new(),
            announce: Vec::new(),
            swarm_key: None,
            mdns: false,
            asks_reachability: false,
            relays: false,
            local_links: false,
            rate_limits: RateLimits { upload: None, download: None },
            ping_interval: PING_INTERVAL,
        }
    }
}

/// What a peer does for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It serves, and holds its part of the hash table.
    Server,
    /// It asks and leaves; the hash table does not count on it.
    Client,
}
