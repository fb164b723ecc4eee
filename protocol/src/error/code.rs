//! Error codes, and what to do about each.

use std::fmt;

use crate::generated as v1;

/// Why a server refuses a session or ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// As many sessions or steps as the server takes are there already.
    Busy,
    /// The KV cache has no room for the session's tokens.
    KvFull,
    /// The server serves another model.
    UnknownModel,
    /// The server does not serve all of the session's blocks.
    BlocksNotServed,
    /// The session is not open here.
    UnknownSession,
    /// More tokens than the session was opened for, or than the model can take.
    ContextExceeded,
    /// A tensor that is no hidden states of the model.
    WrongShape,
    /// A step that begins beyond the end of the cache.
    WrongPosition,
    /// The server cannot reach the next hop of the route.
    NextHopUnreachable,
    /// The peer may not do this.
    NotAllowed,
    /// The server is about to leave.
    Draining,
    /// The session was not used for longer than the server keeps one.
    LeaseEnded,
    /// The peer broke the protocol.
    Violation,
    /// The server failed.
    Internal,
    /// A code of a newer version, as it came.
    Unknown(i32),
}

/// Whether to try again, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same request fails everywhere.
    Never,
    /// The same server may take it, in a session that is opened anew.
    Here,
    /// Another server may take it.
    Elsewhere,
}

impl ErrorCode {
    /// Whether to try again, and where.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::ContextExceeded | Self::WrongShape | Self::NotAllowed | Self::Violation => {
                Retry::Never
            }
            Self::UnknownSession | Self::WrongPosition | Self::LeaseEnded => Retry::Here,
            Self::Busy
            | Self::KvFull
            | Self::UnknownModel
            | Self::BlocksNotServed
            | Self::NextHopUnreachable
            | Self::Draining
            | Self::Internal
            | Self::Unknown(_) => Retry::Elsewhere,
        }
    }

    /// One line for people.
    #[must_use]
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Busy => "the server takes no more work at the moment",
            Self::KvFull => "the server has no memory left for a session of this length",
            Self::UnknownModel => "the server serves another model",
            Self::BlocksNotServed => "the server does not serve these blocks",
            Self::UnknownSession => "the server does not know the session",
            Self::ContextExceeded => "the text is longer than the session or the model allows",
            Self::WrongShape => "the tensor is no hidden states of this model",
            Self::WrongPosition => "the step begins beyond what the server has in its cache",
            Self::NextHopUnreachable => "the server cannot reach the next one of the route",
            Self::NotAllowed => "the server does not allow this",
            Self::Draining => "the server is about to leave",
            Self::LeaseEnded => "the session was unused for too long",
            Self::Violation => "the server says that this side broke the protocol",
            Self::Internal => "the server failed",
            Self::Unknown(_) => "an error that only newer versions know",
        }
    }

    pub(crate) const fn to_wire(self) -> i32 {
        let code = match self {
            Self::Busy => v1::ErrorCode::Busy,
            Self::KvFull => v1::ErrorCode::KvFull,
            Self::UnknownModel => v1::ErrorCode::UnknownModel,
            Self::BlocksNotServed => v1::ErrorCode::BlocksNotServed,
            Self::UnknownSession => v1::ErrorCode::UnknownSession,
            Self::ContextExceeded => v1::ErrorCode::ContextExceeded,
            Self::WrongShape => v1::ErrorCode::WrongShape,
            Self::WrongPosition => v1::ErrorCode::WrongPosition,
            Self::NextHopUnreachable => v1::ErrorCode::NextHopUnreachable,
            Self::NotAllowed => v1::ErrorCode::NotAllowed,
            Self::Draining => v1::ErrorCode::Draining,
            Self::LeaseEnded => v1::ErrorCode::LeaseEnded,
            Self::Violation => v1::ErrorCode::Violation,
            Self::Internal => v1::ErrorCode::Internal,
            Self::Unknown(code) => return code,
        };
        code as i32
    }

    pub(crate) fn from_wire(code: i32) -> Self {
        let Ok(known) = v1::ErrorCode::try_from(code) else {
            return Self::Unknown(code);
        };
        match known {
            v1::ErrorCode::Unspecified => Self::Unknown(code),
            v1::ErrorCode::Busy => Self::Busy,
            v1::ErrorCode::KvFull => Self::KvFull,
            v1::ErrorCode::UnknownModel => Self::UnknownModel,
            v1::ErrorCode::BlocksNotServed => Self::BlocksNotServed,
            v1::ErrorCode::UnknownSession => Self::UnknownSession,
            v1::ErrorCode::ContextExceeded => Self::ContextExceeded,
            v1::ErrorCode::WrongShape => Self::WrongShape,
            v1::ErrorCode::WrongPosition => Self::WrongPosition,
            v1::ErrorCode::NextHopUnreachable => Self::NextHopUnreachable,
            v1::ErrorCode::NotAllowed => Self::NotAllowed,
            v1::ErrorCode::Draining => Self::Draining,
            v1::ErrorCode::LeaseEnded => Self::LeaseEnded,
            v1::ErrorCode::Violation => Self::Violation,
            v1::ErrorCode::Internal => Self::Internal,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.explanation())?;
        match self {
            Self::Unknown(code) => write!(f, " (code {code})"),
            Self::Busy
            | Self::KvFull
            | Self::UnknownModel
            | Self::BlocksNotServed
            | Self::UnknownSession
            | Self::ContextExceeded
            | Self::WrongShape
            | Self::WrongPosition
            | Self::NextHopUnreachable
            | Self::NotAllowed
            | Self::Draining
            | Self::LeaseEnded
            | Self::Violation
            | Self::Internal => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_and_an_unknown_one_as_it_came() {
        for code in (-3..40).chain([i32::MIN, i32::MAX]) {
            assert_eq!(ErrorCode::from_wire(code).to_wire(), code);
        }
        assert_eq!(ErrorCode::from_wire(0), ErrorCode::Unknown(0), "unspecified means nothing");
        assert_eq!(ErrorCode::Unknown(99).retry(), Retry::Elsewhere);
    }
}
