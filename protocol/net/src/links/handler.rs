//! The streams of one connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::Stream;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
};
use tokio::sync::oneshot;
use umbel_protocol::version::Side;
use umbel_protocol::{LinkProtocol, PeerId};

use super::Acceptors;
use crate::address::innermost;
use crate::link::Link;
use crate::rates::Rates;

/// A stream that is wanted.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub(crate) protocol: LinkProtocol,
    pub(crate) reply: oneshot::Sender<Result<Stream, StreamError>>,
}

/// A stream that was not opened.
#[derive(Debug)]
pub(crate) enum StreamError {
    Unsupported,
    Broken(String),
}

/// Opens and accepts streams on one connection.
pub(crate) struct Handler {
    peer: PeerId,
    acceptors: Arc<Acceptors>,
    rates: Arc<Rates>,
    requests: VecDeque<OpenStream>,
}

impl Handler {
    pub(super) const fn new(peer: PeerId, acceptors: Arc<Acceptors>, rates: Arc<Rates>) -> Self {
        Self { peer, acceptors, rates, requests: VecDeque::new() }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenStream;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Result<Stream, StreamError>>;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.acceptors.protocols()), ())
    }

    fn on_behaviour_event(&mut self, request: OpenStream) {
        self.requests.push_back(request);
    }

    fn poll(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Offer, Self::OutboundOpenInfo, Infallible>> {
        let Some(OpenStream { protocol, reply }) = self.requests.pop_front() else {
            return Poll::Pending;
        };
        let protocol = SubstreamProtocol::new(Offer(vec![protocol]), reply);
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "an open enum of libp2p")]
    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Offer, Offer, (), Self::OutboundOpenInfo>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                info: (),
            }) => {
                let (peer, side) = (self.peer, Side::Acceptor);
                self.acceptors.deliver(Link::new(peer, protocol, side, stream, &self.rates));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info: reply,
            }) => {
                // Who asked may have stopped waiting; the stream closes with the reply then.
                let _unwanted = reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info: reply }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => StreamError::Unsupported,
                    StreamUpgradeError::Timeout => {
                        StreamError::Broken("the peer does not answer".to_owned())
                    }
                    StreamUpgradeError::Io(error) => StreamError::Broken(innermost(&error)),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _unwanted = reply.send(Err(error));
            }
            _ => {}
        }
    }
}

/// The protocols that one side of a stream would speak, the best first.
#[derive(Debug, Clone)]
pub(crate) struct Offer(Vec<LinkProtocol>);

/// A protocol, as negotiation wants to see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name(LinkProtocol);

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self.0.name()
    }
}

impl UpgradeInfo for Offer {
    type Info = Name;
    type InfoIter = std::vec::IntoIter<Name>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.iter().copied().map(Name).collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = (Stream, LinkProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, Name(protocol): Name) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = (Stream, LinkProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, Name(protocol): Name) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
