//! What clients and servers say to each other in a session.
//!
//! A client opens a link to each server of its route and the session on each link; it sends steps
//! to the first server. Each server pushes its result to the next one over a link of their own,
//! and the last one answers the client. A session ends with its client's link.
//!
//! A route is mended while its session lasts: a server keeps a journal of its results, from which
//! it refills the one that takes a failed neighbour's place ([`Redirect`], [`Adopt`]). So the same
//! session has another name on each server, and a server that is used twice is not confused.

mod adapter;
mod draw;
mod repair;
mod step;
mod wire;

use crate::prefix::PageDigest;
use crate::{DType, ErrorCode, ModelId, PeerId, SessionId, Span, StepId};

pub use adapter::{AdapterPart, SessionAdapter};
pub use draw::{Draw, END_IDS_MAX, Sampling};
pub use repair::{Adopt, Destination, Neighbour, NextHop, Redirect, Trouble};
pub use step::{AnswerRows, HOPS_MAX, HopTiming, Step};

/// Most bytes of the words that go with an error; longer ones are cut when they are sent.
pub const DETAIL_BYTES_MAX: usize = 512;

/// What a client says to a server of its route.
#[derive(Debug, Clone, PartialEq)]
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
    /// Send results elsewhere; the answer is [`ServerMessage::Redirected`].
    Redirect(Redirect),
    /// Take pushes from another server; the answer is [`ServerMessage::Adopted`].
    Adopt(Adopt),
    /// Say that you are there; the answer is [`ServerMessage::Pong`].
    Ping {
        /// Which session.
        session: SessionId,
    },
    /// Keep pages for later sessions; there is no answer.
    Keep(KeepPages),
    /// Draw tokens like this from now on; the answer is [`ServerMessage::DrawTaken`].
    Draw(Draw),
    /// Values of the session's adapter, which [`ServerMessage::AdapterWanted`] has asked for.
    Adapter(AdapterPart),
}

/// What a session needs of one server.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenSession {
    /// Its name on this server, drawn by the client.
    pub session: SessionId,
    /// The model that the server must serve.
    pub model: ModelId,
    /// The blocks through which steps go.
    pub blocks: Span,
    /// Tokens for which to keep room.
    pub tokens_max: u32,
    /// The only server that may push steps into the session. `None`: the client sends them.
    pub previous: Option<PeerId>,
    /// Where results go.
    pub next: Destination,
    /// Tokens whose results the destination has already, so that a replay stops here.
    pub next_position: u32,
    /// The first step whose results the destination lacks: nothing of earlier ones goes there.
    pub next_step: StepId,
    /// How results are written. What is narrower than the arithmetic is rounded once, when it is
    /// computed; journals hold what was sent.
    pub results: DType,
    /// Whether large results may be packed, since a link of the route is slow.
    pub compress: bool,
    /// How the keys and values of a head of a token are kept. What is narrower than binary32 takes
    /// less room, and is rounded once, when it is computed.
    pub cache: DType,
    /// The pages that the session is to begin with, at most
    /// [`PREFIX_PAGES_MAX`](crate::prefix::PREFIX_PAGES_MAX): it takes over what the server has
    /// kept of them for the same client.
    pub prefix: Vec<PageDigest>,
    /// Whether ids of tokens enter the first block and leave the last one. A server with an end of
    /// the model among its blocks must hold that end.
    pub thin: bool,
    /// Of a thin session on its first server: who draws tokens, and may push them.
    pub drawer: Option<PeerId>,
    /// What is added to the matrices of the blocks, if anything is.
    pub adapter: Option<SessionAdapter>,
}

/// Pages of a session that later sessions of the same client may take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepPages {
    /// Which session.
    pub session: SessionId,
    /// All steps before this one are answered; who has seen a later one ignores the message, since
    /// that one may have taken tokens back.
    pub next_step: StepId,
    /// The number of the first page.
    pub first: u32,
    /// The digests of that page and of those behind it, at most
    /// [`PREFIX_PAGES_MAX`](crate::prefix::PREFIX_PAGES_MAX).
    pub pages: Vec<PageDigest>,
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
        /// Tokens of the prefix that are in the cache already; `None` where the server keeps no
        /// pages.
        kept: Option<u32>,
        /// Whether the adapter that the session asked for is added to the matrices.
        adapter: bool,
    },
    /// The session is opened once the server has its adapter.
    AdapterWanted {
        /// Which session.
        session: SessionId,
        /// The first value that is to be sent; `None` where another session of the client sends them.
        offset: Option<u64>,
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
    /// Results go where they were redirected.
    Redirected {
        /// Which session.
        session: SessionId,
        /// Whether it was a mirror that was asked for.
        mirror: bool,
        /// Whether the journal held everything that the destination lacks. If not, nothing was
        /// sent, and results are dropped until the steps that lead to them come anew.
        complete: bool,
    },
    /// Pushes are taken from the server that was named.
    Adopted {
        /// Which session.
        session: SessionId,
        /// Tokens in the cache once every waiting step is computed.
        position: u32,
    },
    /// The server is there.
    Pong {
        /// Which session.
        session: SessionId,
        /// Tokens in the cache once every waiting step is computed.
        received: u32,
        /// Tokens in the cache.
        computed: u32,
    },
    /// The server is about to leave, or to drop these blocks: take another, in peace.
    Draining {
        /// Which session.
        session: SessionId,
    },
    /// The session stays open, but cannot go on with a neighbour.
    Trouble(Trouble),
    /// Tokens are drawn as was asked for.
    DrawTaken {
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
