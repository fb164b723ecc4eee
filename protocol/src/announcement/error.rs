//! Why an announcement is not believed.

use std::time::Duration;

use super::{AHEAD_MAX, ANNOUNCEMENT_BYTES_MAX, BLOCK_COUNT_MAX, LIFETIME_MAX};
use crate::error::ProtocolViolation;
use crate::{PeerId, Span};

/// An announcement that must not be believed or handed on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AnnouncementError {
    /// It is larger than any needs to be.
    #[error("an announcement of {bytes} bytes; the most is {ANNOUNCEMENT_BYTES_MAX}")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// It is no announcement.
    #[error("not an announcement")]
    Malformed(#[from] ProtocolViolation),
    /// It was not signed by the peer that it speaks of, or was changed on the way.
    #[error("the announcement of {peer} does not have that peer's signature")]
    WrongSignature {
        /// Of whom it speaks.
        peer: PeerId,
    },
    /// It does not hold any more.
    #[error("the announcement of {peer} expired {} s ago", ago.as_secs())]
    Expired {
        /// Of whom it speaks.
        peer: PeerId,
        /// How long ago.
        ago: Duration,
    },
    /// It comes from the future.
    #[error(
        "the announcement of {peer} is dated {} s ahead, more than the {} s that clocks may \
         differ: check the clocks of both machines",
        ahead.as_secs(),
        AHEAD_MAX.as_secs()
    )]
    FromTheFuture {
        /// Of whom it speaks.
        peer: PeerId,
        /// By how much.
        ahead: Duration,
    },
    /// It would hold for too long.
    #[error(
        "the announcement of {peer} is to hold for {} s; the most is {} s",
        lifetime.as_secs(),
        LIFETIME_MAX.as_secs()
    )]
    LifetimeTooLong {
        /// Of whom it speaks.
        peer: PeerId,
        /// How long.
        lifetime: Duration,
    },
    /// It claims blocks that the model does not have, or a model of too many.
    #[error(
        "{peer} claims blocks {span} of a model of {block_count} (the most is {BLOCK_COUNT_MAX})"
    )]
    WrongBlocks {
        /// Of whom it speaks.
        peer: PeerId,
        /// The blocks.
        span: Span,
        /// Blocks of the model, as claimed.
        block_count: u32,
    },
    /// A speed that is negative, infinite, or no number.
    #[error("{peer} claims a speed that is no number")]
    WrongThroughput {
        /// Of whom it speaks.
        peer: PeerId,
    },
    /// A text that would garble a terminal.
    #[error("the announcement of {peer} has control characters in {field}")]
    ControlCharacters {
        /// Of whom it speaks.
        peer: PeerId,
        /// In which text.
        field: &'static str,
    },
}
