//! The peers that are connected, and what they say of themselves.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use libp2p::Multiaddr;
use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;
use umbel_protocol::PeerId;

use crate::address::{is_loopback, is_quic, is_relayed, quic_socket, relay_of, split_peer};

/// The connected peers. The limit on connections bounds them.
#[derive(Default)]
pub(super) struct Peers(BTreeMap<libp2p::PeerId, Connected>);

#[derive(Default)]
struct Connected {
    connections: Vec<Connection>,
    identified: Option<Identified>,
    /// Who waits for it to say what it speaks.
    waiting: Vec<oneshot::Sender<bool>>,
}

struct Connection {
    id: ConnectionId,
    quic: bool,
    /// The other end, where that is a UDP socket which was dialled: a router that lets a peer out
    /// may refuse to let any other socket in by the same port.
    socket: Option<SocketAddr>,
    loopback: bool,
    way: Way,
}

/// How a connection leads to its peer.
enum Way {
    /// By itself. Where it was dialled without any help, others can dial the address as well.
    Direct { dialled: Option<Multiaddr> },
    /// By a relay, as far as its name is known.
    Relayed { relay: Option<libp2p::PeerId> },
}

/// What a peer says of itself.
pub(super) struct Identified {
    /// Whether it is a peer of Umbel at all.
    pub(super) umbel: bool,
    /// Whether it takes part in the hash table, as servers do.
    pub(super) server: bool,
    /// Where it listens.
    pub(super) addresses: Vec<Multiaddr>,
    /// Whether it passes on for others; `None` where the connection does not tell.
    pub(super) relays: Option<bool>,
}

impl Peers {
    pub(super) fn connected(
        &mut self,
        peer: libp2p::PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let remote = endpoint.get_remote_address();
        let connections = &mut self.0.entry(peer).or_default().connections;
        let by = match endpoint {
            ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => local_addr,
            ConnectedPoint::Listener { .. } | ConnectedPoint::Dialer { .. } => remote,
        };
        let way = if endpoint.is_relayed() {
            Way::Relayed { relay: relay_of(by) }
        } else {
            // What was found out by way of a relay may be open to this peer alone.
            let unaided = endpoint.is_dialer() && !connections.iter().any(Connection::is_relayed);
            Way::Direct { dialled: unaided.then(|| remote.clone()) }
        };
        let is_direct = matches!(way, Way::Direct { .. });
        connections.push(Connection {
            id,
            quic: is_direct && is_quic(remote),
            socket: quic_socket(remote).filter(|_| is_direct && endpoint.is_dialer()),
            loopback: is_loopback(by),
            way,
        });
    }

    /// Forgets a connection, and with its last one the peer; whether that was the last one.
    pub(super) fn disconnected(&mut self, peer: libp2p::PeerId, id: ConnectionId) -> bool {
        let Some(connected) = self.0.get_mut(&peer) else {
            return true;
        };
        connected.connections.retain(|connection| connection.id != id);
        let last = connected.connections.is_empty();
        if last {
            self.0.remove(&peer);
        }
        last
    }

    /// The connection on which a link is opened: a direct one, over QUIC, of those the oldest, since both
    /// sides then leave the same one idle.
    pub(super) fn best_connection(&self, peer: libp2p::PeerId) -> Option<ConnectionId> {
        self.best(peer).map(|best| best.id)
    }

    /// That connection and the socket at its other end, where it was dialled over QUIC; where it leads by
    /// a relay, those of the relay, with which it ends.
    pub(super) fn quic_socket(&self, peer: libp2p::PeerId) -> Option<(ConnectionId, SocketAddr)> {
        let best = self.best(peer)?;
        let best = match best.way {
            Way::Direct { .. } => best,
            Way::Relayed { relay } => self.best(relay?)?,
        };
        Some((best.id, best.socket?))
    }

    /// Whether the peer is connected by a relay alone.
    pub(super) fn is_relayed(&self, peer: libp2p::PeerId) -> bool {
        self.best(peer).is_some_and(Connection::is_relayed)
    }

    /// Whether one of its connections leads by a relay.
    pub(super) fn is_relayed_too(&self, peer: libp2p::PeerId) -> bool {
        self.0.get(&peer).is_some_and(|peer| peer.connections.iter().any(Connection::is_relayed))
    }

    /// Whether this connection leads by a relay.
    pub(super) fn leads_by_relay(&self, peer: libp2p::PeerId, id: ConnectionId) -> bool {
        let mut connections = self.0.get(&peer).into_iter().flat_map(|peer| &peer.connections);
        connections.any(|connection| connection.id == id && connection.is_relayed())
    }

    fn best(&self, peer: libp2p::PeerId) -> Option<&Connection> {
        let connections = &self.0.get(&peer)?.connections;
        connections.iter().min_by_key(|connection| (connection.is_relayed(), !connection.quic))
    }

    /// Where peers that pass on for others give places, if others can dial them as this peer did.
    pub(super) fn relays(&self) -> Vec<Multiaddr> {
        let mut relays = Vec::new();
        for (peer, connected) in &self.0 {
            // Who needs a relay itself is none for others.
            let relays_for_all = connected.identified.as_ref().is_some_and(|identified| {
                identified.relays == Some(true) && !identified.addresses.iter().any(is_relayed)
            });
            let dialled = connected.connections.iter().find_map(Connection::dialled);
            if let Some(address) = dialled.filter(|_| relays_for_all) {
                let (bare, _) = split_peer(address.clone());
                relays.push(bare.with(Protocol::P2p(*peer)).with(Protocol::P2pCircuit));
            }
        }
        relays
    }

    /// Where the peer was dialled without any help, as its connections have it.
    pub(super) fn dialled(&self, peer: libp2p::PeerId) -> Vec<Multiaddr> {
        let connections = self.0.get(&peer).into_iter().flat_map(|peer| &peer.connections);
        connections.filter_map(Connection::dialled).cloned().collect()
    }

    /// Those that say that they are servers.
    pub(super) fn servers(&self) -> Vec<PeerId> {
        let is_server = |connected: &Connected| {
            connected.identified.as_ref().is_some_and(|identified| identified.server)
        };
        let servers = self.0.iter().filter(|(_, connected)| is_server(connected));
        servers.filter_map(|(peer, _)| own_name(peer)).collect()
    }

    /// Whether the peer is on this machine, so that its loopback addresses lead to it.
    pub(super) fn is_local(&self, peer: libp2p::PeerId) -> bool {
        let local = |connected: &Connected| connected.connections.iter().any(|c| c.loopback);
        self.0.get(&peer).is_some_and(local)
    }

    pub(super) fn identified(&mut self, peer: libp2p::PeerId, mut identified: Identified) {
        let Some(connected) = self.0.get_mut(&peer) else {
            return;
        };
        let before = connected.identified.as_ref().and_then(|before| before.relays);
        identified.relays = identified.relays.or(before);
        for reply in connected.waiting.drain(..) {
            let _unwanted = reply.send(identified.umbel);
        }
        connected.identified = Some(identified);
    }

    /// Answers when the peer has said what it speaks; not at all where it has gone before.
    pub(super) fn identify(&mut self, peer: libp2p::PeerId, reply: oneshot::Sender<bool>) {
        let Some(connected) = self.0.get_mut(&peer) else {
            return;
        };
        match &connected.identified {
            Some(identified) => {
                let _unwanted = reply.send(identified.umbel);
            }
            None => connected.waiting.push(reply),
        }
    }

    pub(super) fn addresses(&self, peer: libp2p::PeerId) -> Vec<Multiaddr> {
        let identified = self.0.get(&peer).and_then(|connected| connected.identified.as_ref());
        identified.map(|identified| identified.addresses.clone()).unwrap_or_default()
    }
}

impl Connection {
    const fn dialled(&self) -> Option<&Multiaddr> {
        match &self.way {
            Way::Direct { dialled } => dialled.as_ref(),
            Way::Relayed { .. } => None,
        }
    }

    const fn is_relayed(&self) -> bool {
        matches!(self.way, Way::Relayed { .. })
    }
}

/// The name by which the rest of Umbel knows a peer.
pub(super) fn own_name(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_multihash(&peer.to_bytes()).ok()
}
