//! The peers that are connected, and what they say of themselves.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use libp2p::Multiaddr;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;
use umbel_protocol::PeerId;

use crate::address::{is_loopback, is_quic, quic_socket};

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
}

/// What a peer says of itself.
pub(super) struct Identified {
    /// Whether it is a peer of Umbel at all.
    pub(super) umbel: bool,
    /// Where it listens.
    pub(super) addresses: Vec<Multiaddr>,
}

impl Peers {
    pub(super) fn connected(
        &mut self,
        peer: libp2p::PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let remote = endpoint.get_remote_address();
        let connection = Connection {
            id,
            quic: is_quic(remote),
            socket: quic_socket(remote).filter(|_| endpoint.is_dialer()),
            loopback: is_loopback(remote),
        };
        self.0.entry(peer).or_default().connections.push(connection);
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

    /// The connection on which a link is opened: QUIC, of those the oldest, since both sides then
    /// leave the same one idle.
    pub(super) fn best_connection(&self, peer: libp2p::PeerId) -> Option<ConnectionId> {
        self.best(peer).map(|best| best.id)
    }

    /// That connection and the socket at its other end, where it was dialled over QUIC.
    pub(super) fn quic_socket(&self, peer: libp2p::PeerId) -> Option<(ConnectionId, SocketAddr)> {
        let best = self.best(peer)?;
        Some((best.id, best.socket?))
    }

    fn best(&self, peer: libp2p::PeerId) -> Option<&Connection> {
        let connections = &self.0.get(&peer)?.connections;
        connections.iter().min_by_key(|connection| !connection.quic)
    }

    /// Whether the peer is on this machine, so that its loopback addresses lead to it.
    pub(super) fn is_local(&self, peer: libp2p::PeerId) -> bool {
        let local = |connected: &Connected| connected.connections.iter().any(|c| c.loopback);
        self.0.get(&peer).is_some_and(local)
    }

    pub(super) fn identified(&mut self, peer: libp2p::PeerId, identified: Identified) {
        let Some(connected) = self.0.get_mut(&peer) else {
            return;
        };
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

/// The name by which the rest of Umbel knows a peer.
pub(super) fn own_name(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_multihash(&peer.to_bytes()).ok()
}
