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
use crate::link::{self, Link};
use crate::rates::Rates;

/// A stream that is wanted.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub(crate) protocol: LinkProtocol,
    /// Whether one will do by which to ask for a link within the machine, where that may be.
    pub(crate) local: bool,
    pub(crate) reply: StreamReply,
}

/// How it is answered.
pub(crate) type StreamReply = oneshot::Sender<Result<Opened, StreamError>>;

/// A stream that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    /// What both have agreed on.
    pub(crate) protocol: LinkProtocol,
    /// As [`Link::listened_port`] has it.
    pub(crate) listened_port: Option<u16>,
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
    listened_port: Option<u16>,
    requests: VecDeque<OpenStream>,
}

impl Handler {
    pub(super) const fn new(
        peer: PeerId,
        acceptors: Arc<Acceptors>,
        rates: Arc<Rates>,
        listened_port: Option<u16>,
    ) -> Self {
        Self { peer, acceptors, rates, listened_port, requests: VecDeque::new() }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenStream;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = StreamReply;

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
        let Some(OpenStream { protocol, local, reply }) = self.requests.pop_front() else {
            return Poll::Pending;
        };
        let local = (local && self.listened_port.is_some()).then_some(LinkProtocol::Local);
        let offer = Offer(local.into_iter().chain([protocol]).collect());
        let protocol = SubstreamProtocol::new(offer, reply);
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
                let stream = link::Stream::Network(stream);
                let link = Link::new(self.peer, protocol, Side::Acceptor, stream, &self.rates);
                self.acceptors.deliver(link.beside(self.listened_port));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, protocol),
                info: reply,
            }) => {
                let opened = Opened { stream, protocol, listened_port: self.listened_port };
                // Who asked may have stopped waiting; the stream closes with the reply then.
                let _unwanted = reply.send(Ok(opened));
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
