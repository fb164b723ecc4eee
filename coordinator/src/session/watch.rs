//! Who is still there: pings while a step is on its way, and patience that follows their answers.

use std::time::Duration;

use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::inference::{ClientMessage, HopTiming};

use super::contact::{Contact, Contacts, RoundTrip};
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

/// For so many sessions of one process on a server the patience is as long as for one; it grows with
/// them from there. Beside nine runnable processes on two cores, a server of a hundred sessions said
/// nothing to any of them for 150 to 250 ms now and then.
const SESSIONS_PER_PATIENCE: usize = 8;

/// How many times as long it gets at most: a server of many sessions that stops is given up after 640
/// ms, where its answers came promptly.
const PATIENCES_MAX: usize = 4;

/// The time to answer the first ping, where nobody knows how far away a hop is.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(1);

/// The most: beyond it, a way is too bad for decoding along it.
const PATIENCE_MAX: Duration = Duration::from_secs(5);

/// A timer that fires this late says more of this machine than of the hops: they are asked again.
const LATE: Duration = Duration::from_millis(100);

/// How long a hop has to open a session, to answer a ping of its own session, or to confirm what it
/// was told, while it is heard to answer others: it is there and has much to do, or only this link is
/// lost. (A dial that comes to nothing is over by then too.)
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// After so long a hop that is heard by others is asked how far it has come: often enough for the
/// patience below, which is of seconds.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// What is under way to a hop when a ping of which others shall know the answer goes behind it: it
/// takes no longer than the silence before a ping.
const QUESTION_BEHIND: Duration = Duration::from_millis(20);

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
    /// What all sessions of the process have heard of it, when this one last looked.
    contact: Contact,
    /// A round trip of its own that the others have not been told.
    sample: Option<Duration>,
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
    /// Until when it has to say that it takes what it was told last of its neighbours, or of how
    /// tokens are drawn.
    agrees_until: Option<Time>,
}

impl Watch {
    pub(super) fn new(round_trip: Option<Duration>, now: Time) -> Self {
        Self {
            heard: now,
            pinged: None,
            round_trip: round_trip.map(RoundTrip::first),
            contact: Contact::default(),
            sample: None,
            received: 0,
            computed: 0,
            progressed: now,
            token: None,
            answer_bytes: 0,
            bytes: 0,
            bytes_before_ping: 0,
            agrees_until: None,
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

    /// It has been told something that it has to confirm: until then nothing flows, whatever else it
    /// says.
    pub(super) fn must_agree(&mut self, patience: Patience, now: Time) {
        self.agrees_until = Some(now + self.patience(patience) + BUSY_PATIENCE);
    }

    /// It has confirmed all that it was told.
    pub(super) const fn agreed(&mut self) {
        self.agrees_until = None;
    }

    /// So many bytes are about to go over the link.
    pub(super) const fn sends(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The hop says how far it has come of the tokens for which it keeps room. (Where the cache has
    /// been cut, it may have computed more than it has received since.)
    pub(super) fn pong(
        &mut self,
        (received, computed): (u32, u32),
        tokens_max: u32,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        if received.max(computed) > tokens_max {
            return Err(ProtocolViolation::OutOfBounds { field: "the tokens of a hop" });
        }
        if let Some(pinged) = self.pinged.take() {
            // What went before the ping is through, and its time is not that of the way.
            let laden = std::mem::take(&mut self.bytes_before_ping);
            self.bytes = self.bytes.saturating_sub(laden);
            let laden = laden > 0;
            let sample =
                if laden { PATIENCE_MIN.min(now.since(pinged)) } else { now.since(pinged) };
            RoundTrip::note(&mut self.round_trip, sample);
            self.sample = Some(sample);
        }
        if (received, computed) != (self.received, self.computed) {
            (self.received, self.computed) = (received, computed);
            self.progressed = now;
        }
        Ok(())
    }

    /// What a step of so many tokens took the hop, by its own word, which nobody takes for more than
    /// the step took in `total`.
    pub(super) fn computed(&mut self, timing: &HopTiming, tokens: u32, total: Duration) {
        let sample = timing.compute.min(total) / tokens.max(1);
        self.token = Some(self.token.map_or(sample, |token| token * 7 / 8 + sample / 8));
    }

    pub(super) fn open_timeout(&self) -> Duration {
        self.round_trip.map_or(OPEN_TIMEOUT, |trip| (trip.smoothed * 8).max(OPEN_TIMEOUT_MIN))
    }

    /// How long an answer may take.
    fn patience(&self, patience: Patience) -> Duration {
        // A new session on a busy server has no experience of its own.
        let own = self.round_trip.as_ref().map(RoundTrip::bound);
        let empty = own.max(self.contact.bound).map_or(PATIENCE_UNKNOWN, |bound| {
            bound.saturating_mul(2).clamp(self.patience_min(), PATIENCE_MAX)
        });
        let bytes = self.bytes + self.answer_bytes;
        empty * (1 << patience.doublings) + transfer(bytes, patience.link_bytes_per_second)
    }

    /// A server of many sessions has as much more to do, and so has this process; and who gives it up
    /// in error has as many caches to fill anew.
    fn patience_min(&self) -> Duration {
        let times = (self.contact.session_count / SESSIONS_PER_PATIENCE).clamp(1, PATIENCES_MAX);
        PATIENCE_MIN * u32::try_from(times).unwrap_or(1)
    }

    /// Whether anything is on its way to it or from it that takes time.
    pub(super) const fn is_laden(&self) -> bool {
        self.bytes + self.answer_bytes > 0
    }

    /// When its peer was last heard by any session.
    fn peer_heard(&self) -> Time {
        self.contact.heard.map_or(self.heard, |heard| heard.max(self.heard))
    }

    /// Since when its peer has been silent to a question, whoever asked.
    fn silent_since(&self) -> Option<Time> {
        let asked = self.pinged.or_else(|| {
            // Before it was expected to say anything it may have had nothing to say.
            self.contact.asked.filter(|asked| *asked >= self.heard)
        });
        asked.map(|asked| asked.max(self.peer_heard()))
    }

    /// When the hop is to be asked, or given up.
    fn deadline(&self, patience: Patience) -> Time {
        let rest = self.round_trip.map_or(PING_AFTER, |trip| trip.smoothed.max(PING_AFTER));
        let patience = self.patience(patience);
        let peer = self.silent_since().map_or(self.peer_heard() + rest, |silent| silent + patience);
        let own = self.pinged.map_or(self.heard + PROGRESS_AFTER.max(rest), |pinged| {
            pinged + patience + BUSY_PATIENCE
        });
        peer.min(own).min(self.agrees_until.unwrap_or(own))
    }

    /// When the hop is given up, if it goes on saying nothing.
    fn given_up(&self, patience: Patience) -> Option<Time> {
        let patience = self.patience(patience);
        let peer = self.silent_since().map(|silent| silent + patience);
        let own = self.pinged.map(|pinged| pinged + patience + BUSY_PATIENCE);
        peer.into_iter().chain(own).min()
    }

    /// When a session that was asked for at a moment is opened too late.
    fn opens_until(&self, asked: Time) -> Time {
        let timeout = self.open_timeout();
        (asked.max(self.contact.heard.unwrap_or(asked)) + timeout)
            .min(asked + BUSY_PATIENCE.max(timeout))
    }

    /// Whether a ping has nothing before it that takes long.
    fn is_question_for_all(&self, patience: Patience) -> bool {
        transfer(self.bytes, patience.link_bytes_per_second) <= QUESTION_BEHIND
    }
}

fn transfer(bytes: usize, bytes_per_second: u32) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Duration::from_secs(1).mul_f64(f64::from(bytes) / f64::from(bytes_per_second))
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
            Opening::Asked { at } => Some(self.watch.opens_until(at)),
            Opening::Open => awaited.then(|| self.watch.deadline(patience)),
        }
    }

    fn due(
        &mut self,
        awaited: bool,
        patience: Patience,
        contacts: &mut Contacts,
        now: Time,
    ) -> Due {
        if let Some(sample) = self.watch.sample.take() {
            contacts.took(self.hop.peer, sample);
        }
        self.watch.contact = contacts.of(self.hop.peer);
        if self.deadline(awaited, patience).is_none_or(|deadline| now < deadline) {
            return Due::Nothing;
        }
        if let Opening::Asked { at } = self.opening {
            return Due::Fail(FailureReason::NotOpened { after: now.since(at) });
        }
        match self.watch.agrees_until {
            Some(until) if until <= now && now < until + LATE => {
                return Due::Fail(FailureReason::NotAgreed);
            }
            Some(until) if until <= now => self.watch.agrees_until = Some(now + BUSY_PATIENCE),
            Some(_) | None => {}
        }
        match self.watch.given_up(patience) {
            Some(given_up) if given_up <= now && now < given_up + LATE => {
                let watch = &self.watch;
                tracing::debug!(
                    peer = %self.hop.peer,
                    asked = ?watch.pinged.map(|pinged| now.since(pinged)),
                    asked_by_others = ?watch.contact.asked.map(|asked| now.since(asked)),
                    heard = ?now.since(watch.heard),
                    heard_by_others = ?now.since(watch.peer_heard()),
                    patience = ?watch.patience(patience),
                    "a hop is silent"
                );
                Due::Fail(FailureReason::Silent { after: now.since(self.watch.heard) })
            }
            Some(_) | None => {
                let for_all = self.watch.is_question_for_all(patience);
                contacts.asks(self.hop.peer, self.session, for_all, now);
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

    pub(super) fn watch(&mut self, contacts: &mut Contacts, now: Time) {
        self.forget_suspects(now);
        let (awaited, patience) = (self.awaits(), self.patience);
        let mut due = Vec::new();
        for place in &mut self.places {
            due.push((place.id, place.session, place.due(awaited, patience, contacts, now)));
        }
        for number in 0..self.spares.len() {
            let awaited = awaited || self.is_relief(&self.spares[number]);
            let place = &mut self.spares[number].place;
            let patience = patience.with_spares();
            due.push((place.id, place.session, place.due(awaited, patience, contacts, now)));
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
            token.saturating_mul(tokens.saturating_mul(SLOWER_MAX)).saturating_add(COMPUTE_PATIENCE)
        });
        if waited > patience {
            self.drop_place(index, FailureReason::Slow { after: waited });
        }
    }
}
