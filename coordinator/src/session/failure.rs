//! Why hops lose their places, and sessions end.

use std::time::Duration;

use umbel_protocol::PeerId;
use umbel_protocol::error::{ErrorCode, ProtocolViolation};

use crate::route::{Hop, NoRoute};
use crate::swarm::health::is_failure;

/// Why a session ended before its caller closed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionFailure {
    /// Some blocks are served by nobody any more.
    #[error("{no_route}{}", because(.last.as_ref()))]
    NoRoute {
        /// Which ones.
        no_route: NoRoute,
        /// The last hop that failed before, if one did.
        last: Option<HopFailure>,
    },
    /// A hop refused what every hop would refuse, or too many have failed.
    #[error(transparent)]
    Hop(HopFailure),
    /// The first hop failed after more tokens than this side keeps: begin anew from the tokens.
    #[error("what was sent to the first server is no longer kept")]
    JournalLost,
}

impl SessionFailure {
    /// Whether servers of the blocks are there and have no room: later one may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoRoute { last: Some(failure), .. } | Self::Hop(failure) => {
                failure.reason.is_full()
            }
            Self::NoRoute { last: None, .. } | Self::JournalLost => false,
        }
    }
}

fn because(last: Option<&HopFailure>) -> String {
    last.map_or_else(String::new, |failure| format!(" (the last one to fail: {failure})"))
}

/// A hop that lost its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} ({blocks}) failed the session: {reason}", peer = hop.peer, blocks = hop.blocks)]
pub struct HopFailure {
    /// The hop.
    pub hop: Hop,
    /// What it did.
    pub reason: FailureReason,
}

/// What a hop did to lose its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailureReason {
    /// Its link closed, or could not be opened.
    #[error("{detail}")]
    LinkLost {
        /// What the network said.
        detail: String,
    },
    /// It answered with an error.
    #[error("{code}: {detail}")]
    Refused {
        /// The kind of error, which says whether another server may do better.
        code: ErrorCode,
        /// Its own words.
        detail: String,
    },
    /// It did not open the session in time.
    #[error("it did not open the session within {:.1} s", after.as_secs_f64())]
    NotOpened {
        /// How long the client waited.
        after: Duration,
    },
    /// It does not say that it is there.
    #[error("it was silent for {:.1} s", after.as_secs_f64())]
    Silent {
        /// How long the client waited.
        after: Duration,
    },
    /// Nothing reaches it from the hop before it.
    #[error("nothing reaches it from {from}: {detail}")]
    Unreachable {
        /// The hop before it.
        from: PeerId,
        /// What that hop said.
        detail: String,
    },
    /// It computes far slower than it did.
    #[error("it has computed one step for {:.1} s", after.as_secs_f64())]
    Slow {
        /// For how long.
        after: Duration,
    },
    /// It does not say that it takes its neighbours, or how it is to draw.
    #[error("it did not confirm in time what it was told")]
    NotAgreed,
    /// It has lost what it was filled with, again and again.
    #[error("it was filled {times} times and still lacked tokens of the session")]
    NotFilled {
        /// How often it was filled anew before it was given up.
        times: u32,
    },
    /// It is about to leave, and another has taken its place.
    #[error("it is about to leave")]
    Leaving,
    /// It broke the protocol.
    #[error("it broke the protocol: {0}")]
    Violation(ProtocolViolation),
}

impl FailureReason {
    /// Whether the server is worse than others for it; not where it only has no room, forgot the
    /// session, or leaves.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        match self {
            Self::Leaving => false,
            Self::Refused { code, .. } => {
                is_failure(*code) || matches!(code, ErrorCode::NextHopUnreachable)
            }
            Self::LinkLost { .. }
            | Self::NotOpened { .. }
            | Self::Silent { .. }
            | Self::Unreachable { .. }
            | Self::Slow { .. }
            | Self::NotAgreed
            | Self::NotFilled { .. }
            | Self::Violation(_) => true,
        }
    }

    /// Whether the server only has no room at the moment.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Refused { code: ErrorCode::Busy | ErrorCode::KvFull, .. })
    }
}
