//! The libp2p protocol by which links are opened and accepted: each link is one stream.

mod handler;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use libp2p::Multiaddr;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use tokio::sync::mpsc;
use umbel_protocol::{LinkProtocol, PeerId};

use crate::error::AcceptError;
use crate::link::Link;
use crate::local;
use crate::rates::Rates;

use handler::Handler;
pub(crate) use handler::{OpenStream, Opened, StreamError};

/// Links that wait to be taken from an [`Incoming`]. Taking one is quick, so this is a burst of
/// clients that come at once; those beyond it find their link closed and try elsewhere.
const LINKS_WAITING_MAX: usize = 256;

/// Links that peers open to this one, for one protocol.
#[derive(Debug)]
pub struct Incoming {
    links: mpsc::Receiver<(PeerId, Link)>,
}

impl Incoming {
    /// The next link, and who opened it; `None` once the network is shut down.
    pub async fn next(&mut self) -> Option<(PeerId, Link)> {
        self.links.recv().await
    }
}

/// Who accepts which links.
#[derive(Debug, Default)]
pub(crate) struct Acceptors(Mutex<BTreeMap<LinkProtocol, mpsc::Sender<(PeerId, Link)>>>);

impl Acceptors {
    pub(crate) fn accept(&self, protocol: LinkProtocol) -> Result<Incoming, AcceptError> {
        let mut acceptors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if acceptors.get(&protocol).is_some_and(|acceptor| !acceptor.is_closed()) {
            return Err(AcceptError::AlreadyAccepting { protocol });
        }
        let (acceptor, links) = mpsc::channel(LINKS_WAITING_MAX);
        acceptors.insert(protocol, acceptor);
        Ok(Incoming { links })
    }

    /// The protocols that are accepted at the moment.
    fn protocols(&self) -> Vec<LinkProtocol> {
        let acceptors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = acceptors.iter().filter(|(_, acceptor)| !acceptor.is_closed());
        open.map(|(protocol, _)| *protocol).collect()
    }

    /// Whether links for this purpose are accepted.
    pub(crate) fn accepts(&self, protocol: LinkProtocol) -> bool {
        self.protocols().contains(&protocol)
    }

    pub(crate) fn deliver(&self, link: Link) {
        let (peer, protocol) = (link.peer(), link.protocol());
        let acceptors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let delivered = acceptors
            .get(&protocol)
            .is_some_and(|acceptor| acceptor.try_send((peer, link)).is_ok());
        if !delivered {
            tracing::warn!(%peer, %protocol, "refused a link: {LINKS_WAITING_MAX} wait");
        }
    }

    /// Lets every [`Incoming`] end.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Opens streams for links on connections that are there, and accepts those of others.
pub(crate) struct Behaviour {
    acceptors: Arc<Acceptors>,
    rates: Arc<Rates>,
    requests: VecDeque<ToSwarm<Infallible, OpenStream>>,
}

impl Behaviour {
    pub(crate) const fn new(acceptors: Arc<Acceptors>, rates: Arc<Rates>) -> Self {
        Self { acceptors, rates, requests: VecDeque::new() }
    }

    /// Asks for a stream. The task that calls this polls the `libp2p::Swarm` next, so nothing
    /// needs to be woken. Where the connection has gone meanwhile, the request is dropped.
    pub(crate) fn open(
        &mut self,
        peer: libp2p::PeerId,
        connection: ConnectionId,
        request: OpenStream,
    ) {
        self.requests.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: request,
        });
    }

    /// Peers whose key is no Ed25519 key have no name here, and are turned away.
    fn handler(
        &self,
        peer: libp2p::PeerId,
        remote: &Multiaddr,
        listener: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        let peer = PeerId::from_multihash(&peer.to_bytes()).map_err(ConnectionDenied::new)?;
        let port = local::listened_port(remote, listener);
        Ok(Handler::new(peer, Arc::clone(&self.acceptors), Arc::clone(&self.rates), port))
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _connection: ConnectionId,
        peer: libp2p::PeerId,
        listener: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(peer, remote, listener)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _connection: ConnectionId,
        peer: libp2p::PeerId,
        remote: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(peer, remote, remote)
    }

    fn on_swarm_event(&mut self, _event: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _peer: libp2p::PeerId,
        _connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        self.requests.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
