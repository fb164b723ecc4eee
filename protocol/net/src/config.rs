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
    /// Whether links to processes of this machine that want so too do without the network (on Linux).
    pub local_links: bool,
    /// Whether it passes on what others send to peers that cannot be reached, and how much of it.
    pub relays: Option<RelayLimits>,
    /// Which addresses others are told, and whether relays are sought by which they come in.
    pub reach: Reach,
    /// Relays that are asked for a place before any other ([`relayed_by`](crate::relayed_by)), where places
    /// are sought.
    pub relayed_by: Vec<Multiaddr>,
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
            local_links: false,
            relays: None,
            reach: Reach::Direct,
            relayed_by: Vec::new(),
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

/// How others are to reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Where it listens, or what it announces, whether others come in there or not.
    Direct,
    /// The same, and by relays too once those who dialled it back did not come in. It then asks to be
    /// dialled back, whatever [`NetworkConfig::asks_reachability`] says.
    Auto,
    /// By relays alone: nobody is told where else it listens.
    Relayed,
}

/// What a peer that passes on for others does so within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Circuits at once: each is between two peers, whatever they say to each other.
    pub circuits: usize,
    /// Bytes that one circuit carries, both ways together, before it ends and the two must ask anew.
    pub circuit_bytes: u64,
}

impl Default for RelayLimits {
    /// 256 circuits, since of a hundred servers without a direct way each talks to several; and 2 GiB, which
    /// is what the widest hidden states (16 KiB a token, there and back) take of an hour at 18 tokens a
    /// second, or of sixty prompts of 2,000 tokens.
    fn default() -> Self {
        Self { circuits: 256, circuit_bytes: 2 << 30 }
    }
}
