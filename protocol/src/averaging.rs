//! What trainers who share a run say to each other.
//!
//! Each member opens a link to each other one, on which it alone speaks: first its name for the run and
//! where others are found, and then what the machine of the rounds has to say.

mod wire;

use std::collections::BTreeMap;

use crate::PeerId;

/// Members of a run that a message names: more than a machine takes.
pub const MEMBERS_NAMED_MAX: usize = 64;

/// Most values of a run's adapter: a state of them, with a momentum for each, fills the largest frame.
pub const RUN_VALUES_MAX: usize = 1 << 23;

/// Values that share a scale.
pub const GROUP_VALUES: usize = 256;

/// Where a member stands: a state of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stand {
    /// Rounds that are behind it.
    pub round: u64,
    /// SHA-256 over the whole of it.
    pub digest: [u8; 32],
}

/// What a member says.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberMessage {
    /// Who takes part in what.
    Hello {
        /// A digest of all that members agree on.
        run: [u8; 32],
        /// Where the sender listens.
        addresses: Vec<String>,
        /// Others that it knows, and where they listen.
        members: BTreeMap<PeerId, Vec<String>>,
    },
    /// Where the sender stands; `None` where it has no state.
    Stand(Option<Stand>),
    /// What a member has learned.
    Contribution {
        /// Where the round began.
        start: Stand,
        /// Whose it is; `None` where it is the sender's.
        author: Option<PeerId>,
        /// A scale for each [`GROUP_VALUES`] values.
        scales: Vec<f32>,
        /// A whole number for each value.
        steps: Vec<i8>,
    },
    /// Which deltas are to count.
    Proposal {
        /// Where the round began.
        start: Stand,
        /// Whose, and their digests.
        deltas: BTreeMap<PeerId, [u8; 32]>,
    },
    /// Send what another has learned.
    WantDelta {
        /// Where the round began.
        start: Stand,
        /// Whose.
        author: PeerId,
    },
    /// Send the state at which you stand, if it is this one.
    WantState(Stand),
    /// It.
    State {
        /// Rounds that are behind it.
        round: u64,
        /// The adapter's values.
        values: Vec<f32>,
        /// As many.
        momentum: Vec<f32>,
    },
}
