//! Why a session fails, and what a peer must not do.

mod code;

use crate::SessionId;
use crate::span::EmptySpan;
use crate::tensor::InvalidTensor;

pub use code::{ErrorCode, Retry};

/// Something that a peer said and must not say.
///
/// It is the fault of the peer, never of this side: its link is closed, and others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolViolation {
    /// The header is no message of the kind that the link carries.
    #[error("the header is no {message}")]
    Malformed {
        /// What it should have been.
        message: &'static str,
        /// Where it stops making sense.
        source: prost::DecodeError,
    },
    /// A message of a kind that this version does not know, or of none.
    #[error("a {message} of no known kind; the peer may run a newer version")]
    UnknownKind {
        /// What it should have been.
        message: &'static str,
    },
    /// A field without which the message means nothing.
    #[error("{field} is missing")]
    Missing {
        /// Which field.
        field: &'static str,
    },
    /// A name whose length is fixed has another one.
    #[error("{field} has {found} bytes; it must have {expected}")]
    WrongLength {
        /// Which field.
        field: &'static str,
        /// Bytes that it must have.
        expected: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// A text that is too long.
    #[error("{field} has {found} bytes; the most is {max}")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Bytes that it may have.
        max: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// A number, or several, that mean nothing.
    #[error("{field} is out of its bounds")]
    OutOfBounds {
        /// Which field.
        field: &'static str,
    },
    /// Too many of something.
    #[error("{found} {field}; the most is {max}")]
    TooMany {
        /// Of what.
        field: &'static str,
        /// How many there may be.
        max: usize,
        /// How many there are.
        found: usize,
    },
    /// A span without blocks.
    #[error(transparent)]
    EmptySpan(#[from] EmptySpan),
    /// An element type that this version does not know.
    #[error("element type {code} is unknown; the peer may run a newer version")]
    UnknownDType {
        /// Its number.
        code: i32,
    },
    /// A way to write elements that this version does not know.
    #[error("packing {code} of a tensor is unknown; the peer may run a newer version")]
    UnknownPacking {
        /// Its number.
        code: i32,
    },
    /// A wish for an answer that this version does not know.
    #[error("answer rows {code} are unknown; the peer may run a newer version")]
    UnknownAnswerRows {
        /// Its number.
        code: i32,
    },
    /// Shape and payload do not fit each other.
    #[error(transparent)]
    InvalidTensor(#[from] InvalidTensor),
    /// A payload behind a message that has none.
    #[error("{bytes} bytes of payload behind a {message}, which has none")]
    UnexpectedPayload {
        /// Which message.
        message: &'static str,
        /// Bytes of the payload.
        bytes: usize,
    },
    /// A step without tokens.
    #[error("a step without tokens")]
    NoTokens,
    /// A step beyond any context.
    #[error("a step of {tokens} tokens at position {position} goes beyond 32 bits")]
    PositionOverflow {
        /// Where it begins.
        position: u32,
        /// How many tokens it has.
        tokens: u32,
    },
    /// A way to choose tokens that is none.
    #[error("{field} is {value}, out of its range")]
    OutOfRange {
        /// Of what.
        field: &'static str,
        /// What it was.
        value: String,
    },
    /// A message at a time at which it means nothing.
    #[error("{message} at the wrong time")]
    Unexpected {
        /// Which message.
        message: &'static str,
    },
    /// A message from somebody who has no right to send it.
    #[error("{message} from a peer that has no right to it")]
    NotAllowed {
        /// Which message.
        message: &'static str,
    },
    /// A session that this link knows nothing of.
    #[error("session {session} is not one of this link")]
    UnknownSession {
        /// Which session.
        session: SessionId,
    },
    /// An answer of another shape than the question.
    #[error("a tensor of shape {found:?} where {expected:?} was asked for")]
    WrongShape {
        /// What was asked for.
        expected: Vec<u32>,
        /// What came.
        found: Vec<u32>,
    },
}

/// An error and its causes in one line.
#[must_use]
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
