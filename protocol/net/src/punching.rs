//! Direct connections between peers that met by a relay (libp2p's DCUtR), where their routers let them.
//!
//! libp2p's own behaviour keeps a connection by a relay alive for as long as it has an attempt left, and so
//! for good where the first one succeeds, and dials as many addresses as a peer names. This one lets such
//! connections end as any other that nobody uses, and refuses lists that are too long.

use std::collections::HashSet;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, dcutr};

/// Addresses of a peer that are dialled for a direct connection: as many as libp2p's peers name.
const ADDRESSES_MAX: usize = 20;

/// Attempts that are handed over and not begun yet. Handshakes are bounded elsewhere.
const DIALS_MAX: usize = 128;

pub(crate) struct Behaviour {
    inner: dcutr::Behaviour,
    /// Attempts of this behaviour whose addresses have not been looked at.
    dials: HashSet<ConnectionId>,
}

impl Behaviour {
    pub(crate) fn new(peer: libp2p::PeerId) -> Self {
        Self { inner: dcutr::Behaviour::new(peer), dials: HashSet::new() }
    }
}

/// A peer that names more than its own machine can have.
#[derive(Debug, thiserror::Error)]
#[error("a peer behind a relay names {0} addresses, or names of machines among them")]
struct Refused(usize);

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler<THandler<dcutr::Behaviour>>;
    type ToSwarm = dcutr::Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<libp2p::PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let too_much = addresses.len() > ADDRESSES_MAX || addresses.iter().any(is_name);
        if self.dials.remove(&connection) && too_much {
            return Err(ConnectionDenied::new(Refused(addresses.len())));
        }
        self.inner.handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: libp2p::PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let handler =
            self.inner.handle_established_inbound_connection(connection, peer, local, remote);
        handler.map(Handler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: libp2p::PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let handler = self
            .inner
            .handle_established_outbound_connection(connection, peer, address, role, port_use);
        handler.map(Handler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: libp2p::PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let polled = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &polled {
            if self.dials.len() >= DIALS_MAX {
                self.dials.clear();
            }
            self.dials.insert(opts.connection_id());
        }
        polled
    }
}

/// Whether the address is to be looked up by a name.
fn is_name(address: &Multiaddr) -> bool {
    let dns = |part| {
        matches!(
            part,
            Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)
        )
    };
    address.iter().any(dns)
}

/// The handler of libp2p, which keeps no connection alive.
pub(crate) struct Handler<H>(H);

impl<H: ConnectionHandler> ConnectionHandler for Handler<H> {
    type FromBehaviour = H::FromBehaviour;
    type ToBehaviour = H::ToBehaviour;
    type InboundProtocol = H::InboundProtocol;
    type OutboundProtocol = H::OutboundProtocol;
    type InboundOpenInfo = H::InboundOpenInfo;
    type OutboundOpenInfo = H::OutboundOpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<H::InboundProtocol, H::InboundOpenInfo> {
        self.0.listen_protocol()
    }

    fn connection_keep_alive(&self) -> bool {
        false
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<H::OutboundProtocol, H::OutboundOpenInfo, H::ToBehaviour>>
    {
        self.0.poll(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<H::ToBehaviour>> {
        self.0.poll_close(cx)
    }

    fn on_behaviour_event(&mut self, event: H::FromBehaviour) {
        self.0.on_behaviour_event(event);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            H::InboundProtocol,
            H::OutboundProtocol,
            H::InboundOpenInfo,
            H::OutboundOpenInfo,
        >,
    ) {
        self.0.on_connection_event(event);
    }
}
