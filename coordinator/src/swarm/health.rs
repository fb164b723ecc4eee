//! Who fails at the moment: a circuit breaker for each peer, fed by what I saw myself.
//!
//! A breaker is closed (the peer is used), open (it is not, for a while) or half-open (one trial
//! at a time shows whether it works again). An announcement says what a peer believes of itself;
//! a failure on my own connection says what I can use. So a newer announcement alone changes
//! nothing here; only a peer that comes back as another than it was ([`Health::returned`]) is
//! tried before its time.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_protocol::PeerId;
use umbel_protocol::error::ErrorCode;

use crate::Time;
use crate::random::Random;

/// How long a peer is left alone after its first failure: a link that broke by chance is open
/// again after a round trip or two, and a user who waits for a token notices a second.
pub const DELAY_FIRST: Duration = Duration::from_secs(1);

/// How long at most. Petals doubles 15 s without bound, so that a server which was down over
/// night is left alone for days after it is back; a trial a minute costs a client nothing.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// The share by which a delay is shorter or longer by chance, so that the clients of a server
/// that restarted do not all try it in the same moment.
pub const JITTER: f64 = 0.2;

/// How long a peer must work for its failures to be forgotten: one that answers once and then
/// fails again is still getting worse.
pub const RECOVERED_AFTER: Duration = Duration::from_secs(60);

/// After how long a trial without an outcome gives way to another: opening a session and a prompt
/// of thousands of tokens fit, and a client that gave up must not block the peer for good.
pub const TRIAL_MAX: Duration = Duration::from_secs(30);

/// How often a peer may be tried before its time because it came back: one that announces a
/// restart every second gets no more trials for it than one that says nothing.
pub const RETURN_INTERVAL: Duration = DELAY_MAX;

/// Most breakers: as many as a directory has announcements
/// ([`ANNOUNCEMENTS_MAX`](super::directory::ANNOUNCEMENTS_MAX)); at 100 bytes each, 100 KiB.
pub const BREAKERS_MAX: usize = 1024;

/// The breakers of all peers that failed lately.
#[derive(Debug, Clone, Default)]
pub struct Health {
    breakers: BTreeMap<PeerId, Breaker>,
}

#[derive(Debug, Clone, Copy)]
struct Breaker {
    /// Failures in a row, those of the time when it was open left out.
    failures: u32,
    state: State,
    /// When it was last tried before its time.
    returned: Option<Time>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed {
        since: Time,
    },
    /// Half-open from `until` on.
    Open {
        until: Time,
    },
    Trial {
        since: Time,
    },
}

impl Health {
    /// Every peer is taken to work.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether to use `peer`: `false` while its breaker is open or a trial is under way. In
    /// between, whoever uses it says so with [`Health::begin_trial`].
    #[must_use]
    pub fn is_usable(&self, peer: PeerId, now: Time) -> bool {
        self.breakers.get(&peer).is_none_or(|breaker| breaker.usable_from() <= now)
    }

    /// Says that `peer` is about to be used. `true` where it may be: always while its breaker is
    /// closed, and for one trial at a time while it is half-open. The trial ends with
    /// [`Health::succeeded`] or [`Health::failed`], or after [`TRIAL_MAX`].
    pub fn begin_trial(&mut self, peer: PeerId, now: Time) -> bool {
        let Some(breaker) = self.breakers.get_mut(&peer) else {
            return true;
        };
        if breaker.usable_from() > now {
            return false;
        }
        match breaker.state {
            State::Closed { .. } => {}
            State::Open { .. } | State::Trial { .. } => {
                breaker.state = State::Trial { since: now };
            }
        }
        true
    }

    /// Says that `peer` failed me: its link broke, it did not answer in time, or it answered with
    /// a code of which [`is_failure`] holds. A draining server and a lease that ended are none.
    ///
    /// While the breaker is open this changes nothing: all sessions on one server fail together.
    pub fn failed(&mut self, peer: PeerId, now: Time, random: &mut Random) {
        if !self.breakers.contains_key(&peer) {
            self.make_room(now);
        }
        let new = Breaker { failures: 0, state: State::Closed { since: now }, returned: None };
        let breaker = self.breakers.entry(peer).or_insert(new);
        match breaker.state {
            State::Open { until } if now < until => return,
            State::Closed { since } if now.since(since) >= RECOVERED_AFTER => breaker.failures = 0,
            State::Open { .. } | State::Closed { .. } | State::Trial { .. } => {}
        }
        breaker.failures = breaker.failures.saturating_add(1);
        let until = now + delay(breaker.failures, random);
        breaker.state = State::Open { until };
        tracing::debug!(%peer, failures = breaker.failures, ?until, "leaving a peer alone");
    }

    /// Says that `peer` did what I asked of it. Closes a half-open breaker; its failures are
    /// forgotten once it has worked for [`RECOVERED_AFTER`].
    ///
    /// While the breaker is open this changes nothing: the answer was under way before the failure.
    pub fn succeeded(&mut self, peer: PeerId, now: Time) {
        let Some(breaker) = self.breakers.get_mut(&peer) else {
            return;
        };
        match breaker.state {
            State::Open { until } if now < until => {}
            State::Open { .. } | State::Trial { .. } => {
                breaker.state = State::Closed { since: now };
            }
            State::Closed { since } if now.since(since) >= RECOVERED_AFTER => {
                self.breakers.remove(&peer);
            }
            State::Closed { .. } => {}
        }
    }

    /// Says that `peer` announced itself anew after a restart (see
    /// [`Inserted::Returned`](super::directory::Inserted::Returned)): an open breaker becomes
    /// half-open at once, at most every [`RETURN_INTERVAL`].
    pub fn returned(&mut self, peer: PeerId, now: Time) {
        let Some(breaker) = self.breakers.get_mut(&peer) else {
            return;
        };
        match breaker.state {
            State::Open { until } if now < until => {
                if breaker.returned.is_none_or(|last| now.since(last) >= RETURN_INTERVAL) {
                    breaker.returned = Some(now);
                    breaker.state = State::Open { until: now };
                }
            }
            State::Open { .. } | State::Closed { .. } | State::Trial { .. } => {}
        }
    }

    /// Forgets who has recovered, and where that is not enough, who may be used soonest.
    fn make_room(&mut self, now: Time) {
        if self.breakers.len() < BREAKERS_MAX {
            return;
        }
        self.breakers.retain(|_, breaker| !breaker.has_recovered(now));
        if self.breakers.len() >= BREAKERS_MAX {
            let soonest = self.breakers.iter().min_by_key(|(_, breaker)| breaker.usable_from());
            let peer = soonest.map(|(peer, _)| *peer).expect("full breakers have an entry");
            self.breakers.remove(&peer);
        }
    }
}

impl Breaker {
    fn usable_from(&self) -> Time {
        match self.state {
            State::Closed { .. } => Time::START,
            State::Open { until } => until,
            State::Trial { since } => since + TRIAL_MAX,
        }
    }

    fn has_recovered(&self, now: Time) -> bool {
        match self.state {
            State::Closed { since } => now.since(since) >= RECOVERED_AFTER,
            State::Open { .. } | State::Trial { .. } => false,
        }
    }
}

/// Whether an answer with this code counts against the server that gave it.
///
/// No room, a farewell, an ended lease and a next hop that cannot be reached say nothing about
/// whether it works, and what broke the protocol was a message of mine. One that announces what
/// it does not serve is of no use until it announces something else.
#[must_use]
pub const fn is_failure(code: ErrorCode) -> bool {
    match code {
        ErrorCode::UnknownModel
        | ErrorCode::BlocksNotServed
        | ErrorCode::Internal
        | ErrorCode::Unknown(_) => true,
        ErrorCode::Busy
        | ErrorCode::KvFull
        | ErrorCode::UnknownSession
        | ErrorCode::ContextExceeded
        | ErrorCode::WrongShape
        | ErrorCode::WrongPosition
        | ErrorCode::NextHopUnreachable
        | ErrorCode::NotAllowed
        | ErrorCode::Draining
        | ErrorCode::LeaseEnded
        | ErrorCode::Violation => false,
    }
}

/// 1 s, 2 s, 4 s … up to [`DELAY_MAX`], each shorter or longer by up to [`JITTER`].
fn delay(failures: u32, random: &mut Random) -> Duration {
    let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
    let delay = DELAY_FIRST.saturating_mul(doubled).min(DELAY_MAX);
    delay.mul_f64(1.0 + JITTER * (2.0 * random.unit() - 1.0))
}

#[cfg(test)]
mod tests;
