//! Who is still there: pings while a step is on its way, and patience that follows their answers.

use std::time::Duration;

use umbel_protocol::inference::{ClientMessage, HopTiming};

use super::patience::{LINK_BYTES_PER_SECOND_MIN, Patience};
use super::place::{Opening, Place};
use super::{FailureReason, OPEN_TIMEOUT, OPEN_TIMEOUT_MIN, Output, Session, State};
use crate::time::Time;

/// Silence of a hop, during a step, after which it is asked whether it is there: a step of decode
/// is over by then on most routes, so that those are never disturbed.
const PING_AFTER: Duration = Duration::from_millis(40);

/// The least time that a hop has to answer a ping. A busy machine wakes a process up within some
/// tens of milliseconds, and a hop that is given up in error costs a replay.
const PATIENCE_MIN: Duration = Duration::from_millis(150);

/// The time to answer the first ping, where nobody knows how far away a hop is.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(1);

/// The most: beyond it, a way is too bad for decoding along it.
const PATIENCE_MAX: Duration = Duration::from_secs(5);

/// A timer that fires this late says more of this machine than of the hops: they are asked again.
const LATE: Duration = Duration::from_millis(100);

/// The least time that a tensor has to come from one hop to the next; a link that breaks is
/// noticed sooner, by who sends on it.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(5);

/// The least time that a hop has to compute a step: others' prompts may come before it.
const COMPUTE_PATIENCE: Duration = Duration::from_secs(15);

/// How much longer than before a token may take a hop.
const SLOWER_MAX: u32 = 20;

/// Time to compute a step at a hop that has not computed one yet: 512 tokens of prefill through a
/// large model on slow processors take minutes (Petals: `step_timeout`).
const COMPUTE_PATIENCE_UNKNOWN: Duration = Duration::from_secs(300);

/// When a hop was heard of, and how far it has come.
#[derive(Debug)]
pub(super) struct Watch {
    heard: Time,
    pinged: Option<Time>,
    round_trip: Option<RoundTrip>,
    received: u32,
    computed: u32,
    progressed: Time,
    /// What a token took it to compute, smoothed.
    token: Option<Duration>,
    /// Bytes of the answer that is expected, behind which a pong may have to wait.
    answer_bytes: usize,
    /// Bytes sent since the last ping that was answered.
    bytes: usize,
    /// How many of them went before the ping that is under way.
    bytes_before_ping: usize,
}

/// A smoothed round trip and its variation, as TCP keeps them (RFC 6298).
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
}

impl Watch {
    pub(super) fn new(round_trip: Option<Duration>, now: Time) -> Self {
        let first = |sample: Duration| RoundTrip { smoothed: sample, variation: sample / 2 };
        Self {
            heard: now,
            pinged: None,
            round_trip: round_trip.map(first),
            received: 0,
            computed: 0,
            progressed: now,
            token: None,
            answer_bytes: 0,
            bytes: 0,
            bytes_before_ping: 0,
        }
    }

    /// Something is expected of the hop from now on.
    pub(super) const fn begin(&mut self, now: Time) {
        self.heard = now;
        self.progressed = now;
        self.pinged = None;
        self.answer_bytes = 0;
    }

    /// An answer of so many bytes is to come.
    pub(super) const fn expects(&mut self, bytes: usize) {
        self.answer_bytes = self.answer_bytes.saturating_add(bytes);
    }

    /// An answer of so many bytes has come.
    pub(super) const fn answered(&mut self, bytes: usize) {
        self.answer_bytes = self.answer_bytes.saturating_sub(bytes);
    }

    pub(super) const fn heard(&mut self, now: Time) {
        self.heard = now;
    }

    /// So many bytes are about to go over the link.
    pub(super) const fn sends(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn pong(&mut self, received: u32, computed: u32, now: Time) {
        if let Some(pinged) = self.pinged.take() {
            // What went before the ping is through, and its time is not that of the way.
            let laden = std::mem::take(&mut self.bytes_before_ping);
            self.bytes = self.bytes.saturating_sub(laden);
            let laden = laden > 0;
            let sample =
                if laden { PATIENCE_MIN.min(now.since(pinged)) } else { now.since(pinged) };
            let trip = self
                .round_trip
                .get_or_insert(RoundTrip { smoothed: sample, variation: sample / 2 });
            let deviation = sample.abs_diff(trip.smoothed);
            trip.variation = trip.variation * 3 / 4 + deviation / 4;
            trip.smoothed = trip.smoothed * 7 / 8 + sample / 8;
        }
        if (received, computed) != (self.received, self.computed) {
            (self.received, self.computed) = (received, computed);
            self.progressed = now;
        }
    }

    /// What a step of so many tokens took the hop.
    pub(super) fn computed(&mut self, timing: &HopTiming, tokens: u32) {
        let sample = timing.compute / tokens.max(1);
        self.token = Some(self.token.map_or(sample, |token| token * 7 / 8 + sample / 8));
    }

    pub(super) fn open_timeout(&self) -> Duration {
        self.round_trip.map_or(OPEN_TIMEOUT, |trip| (trip.smoothed * 8).max(OPEN_TIMEOUT_MIN))
    }

    /// How long an answer may take.
    fn patience(&self, patience: Patience) -> Duration {
        let empty = self.round_trip.map_or(PATIENCE_UNKNOWN, |trip| {
            (trip.smoothed + trip.variation * 4).saturating_mul(2).clamp(PATIENCE_MIN, PATIENCE_MAX)
        });
        let bytes = u32::try_from(self.bytes + self.answer_bytes).unwrap_or(u32::MAX);
        let link = patience.link_bytes_per_second;
        empty * (1 << patience.doublings)
            + Duration::from_secs(1).mul_f64(f64::from(bytes) / f64::from(link))
    }

    /// Whether anything is on its way to it or from it that takes time.
    pub(super) const fn is_laden(&self) -> bool {
        self.bytes + self.answer_bytes > 0
    }

    /// When the hop is to be asked, or given up.
    fn deadline(&self, patience: Patience) -> Time {
        let rest = self.round_trip.map_or(PING_AFTER, |trip| trip.smoothed.max(PING_AFTER));
        self.pinged.map_or(self.heard + rest, |pinged| pinged + self.patience(patience))
    }
}

/// What is to be done about a hop.
#[derive(Debug)]
enum Due {
    Nothing,
    Ping,
    Fail(FailureReason),
}

impl Place {
    /// When something is to be done about it; `awaited`: whether anything is expected of it.
    fn deadline(&self, awaited: bool, patience: Patience) -> Option<Time> {
        match self.opening {
            Opening::Wanted => None,
            Opening::Asked { at } => Some(at + self.watch.open_timeout()),
            Opening::Open => awaited.then(|| self.watch.deadline(patience)),
        }
    }

    fn due(&mut self, awaited: bool, patience: Patience, now: Time) -> Due {
        if self.deadline(awaited, patience).is_none_or(|deadline| now < deadline) {
            return Due::Nothing;
        }
        if let Opening::Asked { .. } = self.opening {
            return Due::Fail(FailureReason::NotOpened { after: self.watch.open_timeout() });
        }
        match self.watch.pinged {
            Some(pinged) if now.since(pinged) < self.watch.patience(patience) + LATE => {
                Due::Fail(FailureReason::Silent { after: now.since(self.watch.heard) })
            }
            Some(_) | None => {
                self.watch.pinged = Some(now);
                self.watch.bytes_before_ping = self.watch.bytes;
                Due::Ping
            }
        }
    }
}

impl Session {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        if matches!(self.state, State::Over) {
            return None;
        }
        let (awaited, patience) = (self.awaits(), self.patience);
        let places = self.places.iter().filter_map(|place| place.deadline(awaited, patience));
        let spares = self.spares.iter().filter_map(|spare| {
            spare.place.deadline(awaited || self.is_relief(spare), patience.with_spares())
        });
        let suspects = self.suspects.iter().map(|suspect| suspect.until);
        places.chain(spares).chain(self.next_search()).chain(suspects).min()
    }

    pub(super) fn watch(&mut self, now: Time) {
        self.forget_suspects(now);
        let (awaited, patience) = (self.awaits(), self.patience);
        let mut due = Vec::new();
        for place in &mut self.places {
            due.push((place.id, place.session, place.due(awaited, patience, now)));
        }
        for number in 0..self.spares.len() {
            let awaited = awaited || self.is_relief(&self.spares[number]);
            let place = &mut self.spares[number].place;
            due.push((place.id, place.session, place.due(awaited, patience.with_spares(), now)));
        }
        for (hop, session, due) in due {
            match due {
                Due::Nothing => {}
                Due::Ping => {
                    let message = ClientMessage::Ping { session };
                    self.outputs.push_back(Output::Send { hop, message });
                }
                Due::Fail(reason) => match self.index_of(hop) {
                    Some(index) => self.suspect(index, reason, now),
                    None => self.drop_spare(hop, &reason, now),
                },
            }
        }
    }

    /// Whether the hops are expected to answer.
    fn awaits(&self) -> bool {
        match self.state {
            State::Opening => true,
            State::Open => !self.flight.is_empty(),
            State::Over => false,
        }
    }

    /// Gives up the hop at which the steps on their way have stood still for too long.
    pub(super) fn check_progress(&mut self, now: Time) {
        let Some(end) = self.flight.back().map(|last| last.position + last.tokens) else {
            return;
        };
        let row_bytes = self.config.token_bytes;
        let Some(index) = self.places.iter().position(|place| place.watch.computed < end) else {
            return;
        };
        let (place, before) = (&self.places[index], index.checked_sub(1));
        // While the route is mended nothing can go on.
        let waited = now.since(place.watch.progressed.max(self.mended_at));
        // What it has received it computes, while the rest is still on its way.
        if place.watch.received < end && place.watch.computed >= place.watch.received {
            let bytes = row_bytes.saturating_mul(end - place.watch.received);
            let transfer = Duration::from_secs(1) * (bytes / LINK_BYTES_PER_SECOND_MIN);
            // The hop before may itself have come to its end only now.
            let since =
                before.map_or(Duration::MAX, |b| now.since(self.places[b].watch.progressed));
            let waited = waited.min(since);
            let patience = place.watch.patience(self.patience);
            if waited > TRANSFER_PATIENCE + transfer + patience {
                let detail = format!("a step is under way for {:.1} s", waited.as_secs_f64());
                let reason = match before.map(|before| self.places[before].hop.peer) {
                    Some(from) => FailureReason::Unreachable { from, detail },
                    None => FailureReason::LinkLost { detail },
                };
                self.drop_place(index, reason);
            }
            return;
        }
        let tokens = place.watch.received.saturating_sub(place.watch.computed).max(1);
        let patience = place.watch.token.map_or(COMPUTE_PATIENCE_UNKNOWN, |token| {
            COMPUTE_PATIENCE + token.saturating_mul(tokens.saturating_mul(SLOWER_MAX))
        });
        if waited > patience {
            self.drop_place(index, FailureReason::Slow { after: waited });
        }
    }
}
