//! How long a session waits for an answer, and what it learns from hops that were not dead after all.
//!
//! Whether a hop that has been given up for its silence is dead or merely late is not known when it is
//! given up. So its link stays open for a while: what still comes from it shows that the patience was
//! too short. A hop that stays silent was rightly given up, and costs none.

use std::time::Duration;

use super::{FailureReason, HopId, Output, Session};
use crate::time::Time;

/// How many times a session may double its patience: on a machine or a way that is too busy for its
/// first patience, giving up one good hop after another helps nobody.
const DOUBLINGS_MAX: u32 = 4;

/// After so many answers without a mistake one doubling is taken back.
const CALM_STEPS: u32 = 100;

/// How many times more patient a session is with its spares, as doublings: nobody waits for them, they
/// are sent a whole prompt at once, and one that is given up in error is no spare when it is needed.
const SPARE_DOUBLINGS: u32 = 2;

/// How fast a link is taken to be until it proves slower: 32 Mbit/s, as a home uploads, or as one of
/// dozens of clients gets whose prompts reach a server at once. A ping goes behind what is still
/// leaving, so its answer may take that much longer.
const LINK_BYTES_PER_SECOND: u32 = 4_000_000;

/// The slowest that a link is taken to be: 1 Mbit/s.
pub(super) const LINK_BYTES_PER_SECOND_MIN: u32 = 125_000;

/// How long it is listened to a hop that has been given up: as long as the most patient session waits
/// for a pong.
const SUSPECTED_FOR: Duration = Duration::from_secs(5);

/// Hops that are listened to at once; of more, the first is forgotten.
const SUSPECTS_MAX: usize = 8;

/// How patient a session is with its hops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// What links are taken to carry.
    pub(super) link_bytes_per_second: u32,
    pub(super) doublings: u32,
    /// When it was last doubled.
    doubled: Option<Time>,
    calm_steps: u32,
}

/// A hop that has been given up for its silence.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) hop: HopId,
    since: Time,
    /// Until when it is listened to.
    pub(super) until: Time,
    /// Whether it was still being sent something, or was sending.
    laden: bool,
}

impl Patience {
    pub(super) const fn new() -> Self {
        Self {
            link_bytes_per_second: LINK_BYTES_PER_SECOND,
            doublings: 0,
            doubled: None,
            calm_steps: 0,
        }
    }

    /// What it is with a hop beside the route.
    pub(super) const fn with_spares(self) -> Self {
        Self { doublings: self.doublings + SPARE_DOUBLINGS, ..self }
    }

    /// A hop that was given up is there. Those given up before patience was last doubled were given
    /// up for the same impatience, and count once.
    fn mistaken(&mut self, suspect: &Suspect, now: Time) {
        if suspect.laden {
            let slower = self.link_bytes_per_second / 4;
            self.link_bytes_per_second = slower.max(LINK_BYTES_PER_SECOND_MIN);
        }
        if self.doubled.is_none_or(|doubled| suspect.since > doubled) {
            self.doublings = (self.doublings + 1).min(DOUBLINGS_MAX);
            self.doubled = Some(now);
            self.calm_steps = 0;
        }
    }

    /// A step was answered.
    pub(super) fn answered(&mut self) {
        self.calm_steps += 1;
        if self.calm_steps >= CALM_STEPS {
            self.calm_steps = 0;
            self.doublings = self.doublings.saturating_sub(1);
        }
    }
}

impl Session {
    /// Gives up the hop at `index`, and goes on listening to it if it was merely silent.
    pub(super) fn suspect(&mut self, index: usize, reason: FailureReason, now: Time) {
        if let FailureReason::Silent { .. } = reason {
            if self.suspects.len() >= SUSPECTS_MAX {
                let Suspect { hop, .. } = self.suspects.remove(0);
                self.outputs.push_back(Output::Disconnect { hop });
            }
            let place = &self.places[index];
            let (hop, laden) = (place.id, place.watch.is_laden());
            self.suspects.push(Suspect { hop, since: now, until: now + SUSPECTED_FOR, laden });
        }
        self.drop_place(index, reason);
    }

    pub(super) fn is_suspect(&self, hop: HopId) -> bool {
        self.suspects.iter().any(|suspect| suspect.hop == hop)
    }

    /// Something has come from a hop; if that was suspected, in error.
    pub(super) fn acquit(&mut self, hop: HopId, now: Time) {
        let Some(index) = self.suspects.iter().position(|suspect| suspect.hop == hop) else {
            return;
        };
        let suspect = self.suspects.remove(index);
        tracing::debug!(late = ?now.since(suspect.since), "a hop that was given up is there");
        self.patience.mistaken(&suspect, now);
        self.outputs.push_back(Output::Disconnect { hop });
    }

    /// The link to a hop has ended; whether that was a suspected one.
    pub(super) fn convict(&mut self, hop: HopId) -> bool {
        let is_suspect = self.is_suspect(hop);
        if is_suspect {
            self.suspects.retain(|suspect| suspect.hop != hop);
            self.outputs.push_back(Output::Disconnect { hop });
        }
        is_suspect
    }

    pub(super) fn forget_suspects(&mut self, now: Time) {
        for suspect in self.suspects.extract_if(.., |suspect| suspect.until <= now) {
            self.outputs.push_back(Output::Disconnect { hop: suspect.hop });
        }
    }
}
