//! What clients and servers say to each other in a session.
//!
//! A client opens a link to each server of its route and the session on each link; it sends steps
//! to the first server. Each server pushes its result to the next one over a link of their own,
//! and the last one answers the client. A session ends with its client's link.

mod step;
mod wire;

use crate::{ErrorCode, ModelId, PeerId, SessionId, Span, StepId};

pub use step::{HOPS_MAX, HopTiming, Step};

/// Most bytes of the words that go with an error; longer ones are cut when they are sent.
pub const DETAIL_BYTES_MAX: usize = 512;

/// What a client says to a server of its route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// Keep room for a session.
    Open(OpenSession),
    /// Compute these tokens; the answer is [`ServerMessage::Output`] from the last server.
    Step(Step),
    /// Free the session's room; the answer is [`ServerMessage::Closed`].
    Close {
        /// Which session.
        session: SessionId,
    },
}

/// What a session needs of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSession {
    /// Its name, drawn by the client.
    pub session: SessionId,
    /// The model that the server must serve.
    pub model: ModelId,
    /// The blocks through which steps go.
    pub blocks: Span,
    /// Tokens for which to keep room.
    pub tokens_max: u32,
    /// The only server that may push steps into the session. `None`: the client sends them.
    pub previous: Option<PeerId>,
    /// Where results go. `None`: to the client.
    pub next: Option<NextHop>,
}

/// A server and where it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// Its name.
    pub peer: PeerId,
    /// Multiaddresses, the best first: at most 16 of at most 256 bytes each; what is beyond that
    /// is not sent.
    pub addresses: Vec<String>,
}

/// What a server answers to a client, on the same link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage {
    /// There is room for the session.
    Opened {
        /// Which session.
        session: SessionId,
        /// Tokens for which there is room.
        tokens_max: u32,
    },
    /// What leaves the last block of the route.
    Output(Step),
    /// The session is refused or has failed; it is not open any more.
    Error(SessionError),
    /// The session was closed as asked.
    Closed {
        /// Which session.
        session: SessionId,
    },
}

/// Why a session is not open any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionError {
    /// Which session.
    pub session: SessionId,
    /// The step at fault, if it is one step's.
    pub step: Option<StepId>,
    /// What kind of error it is, and thereby whether a retry helps.
    pub code: ErrorCode,
    /// The server's own words, at most [`DETAIL_BYTES_MAX`] bytes.
    pub detail: String,
}

/// What a server says to the next server of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushMessage {
    /// Compute these tokens.
    Step(Step),
}
