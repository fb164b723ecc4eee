//! What can go wrong between peers, one type for each operation.

use std::fmt;
use std::io;
use std::time::Duration;

use libp2p::Multiaddr;
use umbel_protocol::frame::FrameError;
use umbel_protocol::{LinkProtocol, PeerId};

/// The network could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartNetworkError {
    /// A private swarm is to be served over QUIC.
    #[error(
        "{address}: the peers of a private swarm speak TCP alone, since QUIC's handshake has no \
         place for its secret; give a TCP address"
    )]
    QuicInPrivate {
        /// Where.
        address: Multiaddr,
    },
    /// An address to listen on is taken, or is none of this machine.
    #[error("cannot listen on {address} ({reason}): choose another address, or port 0 for any")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the system says of it.
        reason: String,
    },
    /// An address to listen on led to no socket in time.
    #[error("listening on {address} did not begin within {} s", after.as_secs())]
    ListenTimedOut {
        /// The address.
        address: Multiaddr,
        /// How long the network waited.
        after: Duration,
    },
    /// An address to tell others leads nowhere.
    #[error("{address} cannot be announced: {reason}")]
    Announce {
        /// The address.
        address: Multiaddr,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Sockets, encryption or name resolution cannot be set up on this machine.
    #[error("the {part} cannot be set up on this machine: {reason}")]
    SetUp {
        /// Which part.
        part: &'static str,
        /// What the system says.
        reason: String,
    },
}

/// An address that did not lead to a peer, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressFailure {
    /// The address, if one was tried.
    pub address: Option<Multiaddr>,
    /// The reason, in one line.
    pub reason: String,
    /// Whether it will be the same later: nobody can be dialled by such an address, or the two sides are in
    /// different swarms.
    pub lasts: bool,
    /// Whether it is this peer itself that answers there.
    pub is_own: bool,
}

impl fmt::Display for AddressFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "{address}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// No address of the swarm answers.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There was none to try.
    #[error("no address to join by was given")]
    NoAddress,
    /// Each was tried.
    #[error("no peer answers: {}", list(failures))]
    Unreachable {
        /// The addresses, each with its reason.
        failures: Vec<AddressFailure>,
    },
    /// The network was shut down meanwhile.
    #[error("the network was shut down")]
    ShutDown,
}

/// A link could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenLinkError {
    /// No connection could be made.
    #[error("{peer} cannot be reached: {}", list(failures))]
    Unreachable {
        /// Whom it was to lead to.
        peer: PeerId,
        /// The addresses, each with its reason.
        failures: Vec<AddressFailure>,
    },
    /// Nobody knows where the peer is.
    #[error("no address of {peer} is known")]
    NoAddress {
        /// Whom it was to lead to.
        peer: PeerId,
    },
    /// The peer does not accept such links.
    #[error("{peer} does not accept links of {protocol}")]
    Unsupported {
        /// Whom it was to lead to.
        peer: PeerId,
        /// What it was for.
        protocol: LinkProtocol,
    },
    /// The connection broke meanwhile.
    #[error("the connection to {peer} broke: {reason}")]
    Broken {
        /// Whom it was to lead to.
        peer: PeerId,
        /// What the system says.
        reason: String,
    },
    /// It took too long.
    #[error("{peer} did not answer within {} s", after.as_secs())]
    TimedOut {
        /// Whom it was to lead to.
        peer: PeerId,
        /// How long it was given.
        after: Duration,
    },
    /// The network was shut down meanwhile.
    #[error("the network was shut down")]
    ShutDown,
}

/// Links cannot be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// Somebody in this process does so already.
    #[error("links of {protocol} are accepted elsewhere in this process already")]
    AlreadyAccepting {
        /// Which protocol.
        protocol: LinkProtocol,
    },
}

/// A frame could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The reader would refuse it, so nothing was sent and the link is as it was.
    #[error("a frame that the link does not allow")]
    Frame(#[from] FrameError),
    /// The link is closed.
    #[error("the link is closed")]
    Closed,
    /// The link broke.
    #[error("the link broke while a frame was sent")]
    Io(#[source] io::Error),
}

/// No further frame can be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The peer claims a frame that is larger than the link allows. The link is closed.
    #[error("the peer broke the protocol")]
    Frame(#[from] FrameError),
    /// The peer closed the link within a frame.
    #[error("the link was closed within a frame")]
    Truncated,
    /// The link broke.
    #[error("the link broke while a frame was received")]
    Io(#[source] io::Error),
}

impl JoinError {
    /// Whether somebody may answer later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { failures } => failures.iter().all(|failure| !failure.lasts),
            Self::NoAddress | Self::ShutDown => false,
        }
    }
}

fn list(failures: &[AddressFailure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
