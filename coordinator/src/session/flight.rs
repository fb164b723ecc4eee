//! Steps on their way: several of one session at once, so that a hop computes one while the next
//! hop computes the one before it.
//!
//! Those that are under way follow one another without a gap, and their answers come in order: each
//! hop takes them in order, and what a mended route brings twice is known by its number. Only a
//! step that begins while none is under way can take back earlier tokens.

use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::inference::{AnswerRows, HopTiming, Step};
use umbel_protocol::{SessionId, StepId, Tensor};

use super::place::Fill;
use super::{Output, Session, State};
use crate::time::Time;

/// Most steps of a session that are under way at once. A stage is busy all the time where the steps
/// on the ring are as many as the stages and the links between them hold: with s stages of t a step
/// and links of d that is s + (s + 1) d / t, which is 26 for 8 stages at 10 ms with links of 20 ms.
pub const STEPS_IN_FLIGHT_MAX: usize = 32;

/// A step that is on its way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) step: StepId,
    pub(super) position: u32,
    pub(super) tokens: u32,
    /// What its answer is to look like.
    answer_position: u32,
    answer_shape: Vec<u32>,
    begun: Time,
    /// The hops have begun it by themselves, with a token that they drew.
    pub(super) drawn: bool,
    /// It waits for the route to be mended.
    pub(super) unsent: Option<Step>,
}

impl Session {
    /// Whether a step may begin at `position`: where none is under way, or as the next of a few.
    #[must_use]
    pub fn accepts(&self, position: u32) -> bool {
        let follows = self.flight.back().is_none_or(|last| last.end() == position);
        let is_free = self.flight.len() < STEPS_IN_FLIGHT_MAX && !self.goes_round();
        matches!(self.state, State::Open) && follows && is_free
    }

    pub(super) fn step(
        &mut self,
        position: u32,
        (hidden, ids): (Tensor, &[u32]),
        answer_rows: AnswerRows,
        now: Time,
    ) {
        assert!(self.accepts(position), "the caller has asked whether it may begin");
        if self.flight.is_empty() {
            assert!(position <= self.settled, "a step begins where the cache ends, or before");
            self.tell_pages(position, false);
            self.settled = position;
            for place in &mut self.places {
                place.watch.begin(now);
            }
        }
        self.read_on(position, ids, hidden.shape()[0]);
        let step = self.next_step;
        self.next_step = step.next();
        let session = self.places.first().map_or(SessionId::new(0), |place| place.session);
        if self.is_thin() {
            self.note_text(position, &hidden);
        }
        let answer_rows = if self.is_thin() { AnswerRows::Last } else { answer_rows };
        let (trace, replay, goes_on) = (Vec::new(), false, false);
        let unsent = Step { session, step, position, hidden, trace, replay, answer_rows, goes_on };
        self.journal.record(&unsent);
        if self.journal.bytes() > self.config.journal_bytes_max {
            self.journal.evict();
        }
        self.mirror_step(&unsent);
        let in_flight = InFlight::new(unsent, now);
        self.expect_answer(&in_flight);
        self.flight.push_back(in_flight);
    }

    pub(super) fn expect_answer(&mut self, in_flight: &InFlight) {
        let bytes = self.answer_bytes(in_flight);
        if let Some(last) = self.places.last_mut() {
            // A pong goes behind the answer.
            last.watch.expects(bytes);
        }
    }

    /// Takes note of an answer of the hop at `index`.
    pub(super) fn stepped(
        &mut self,
        index: usize,
        answer: Step,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        if index + 1 != self.places.len() || answer.step >= self.next_step {
            return Err(ProtocolViolation::Unexpected { message: "Output" });
        }
        // After a failover the same answer may come over the old way and the new one.
        let Some(first) = self.flight.front().filter(|first| first.step <= answer.step) else {
            return Ok(());
        };
        first.check(&answer)?;
        let drawn = if self.is_thin() { Some(self.token_of(&answer)?) } else { None };
        let first = self.flight.pop_front().expect("there is a first one");
        self.settled = first.end();
        self.patience.answered();
        let bytes = self.answer_bytes(&first);
        self.places[index].watch.answered(bytes);
        let total = now.since(first.begun);
        for place in &mut self.places {
            let own = |timing: &&HopTiming| {
                timing.peer == place.hop.peer && timing.span == place.hop.blocks
            };
            if let Some(timing) = answer.trace.iter().find(own) {
                place.watch.computed(timing, first.tokens, total);
            }
            if let Fill::Filling { proof } = place.fill
                && answer.step >= proof
            {
                (place.fill, place.refills) = (Fill::Full, 0);
            }
        }
        if self.is_whole() && self.places.iter().all(|place| place.fill == Fill::Full) {
            self.mends = 0;
            self.last_failure = None;
            self.avoided.clear();
        }
        let (hidden, trace) = (answer.hidden, answer.trace);
        match drawn {
            None => self.outputs.push_back(Output::Stepped { hidden, trace, total }),
            Some(id) => self.drawn((id, first.end()), answer.goes_on, (trace, total), now),
        }
        Ok(())
    }

    /// What the answer of a step weighs on the wire.
    fn answer_bytes(&self, in_flight: &InFlight) -> usize {
        self.own_token_bytes() as usize * in_flight.answer_shape[0] as usize
    }
}

impl InFlight {
    pub(super) fn new(step: Step, now: Time) -> Self {
        let &[tokens, width] = step.hidden.shape() else {
            panic!("hidden states are [tokens, hidden]")
        };
        let rows = step.answer_rows.of(tokens);
        Self {
            step: step.step,
            position: step.position,
            tokens,
            answer_position: step.position + (tokens - rows),
            answer_shape: vec![rows, width],
            begun: now,
            drawn: false,
            unsent: Some(step),
        }
    }

    /// One that the hops have begun by themselves.
    pub(super) fn of_hops(step: Step, now: Time) -> Self {
        Self { drawn: true, unsent: None, ..Self::new(step, now) }
    }

    pub(super) const fn end(&self) -> u32 {
        self.position + self.tokens
    }

    /// Whether an answer is the one to this step.
    fn check(&self, answer: &Step) -> Result<(), ProtocolViolation> {
        if answer.step != self.step || answer.position != self.answer_position {
            return Err(ProtocolViolation::Unexpected { message: "Output" });
        }
        if answer.hidden.shape() != self.answer_shape.as_slice() {
            return Err(ProtocolViolation::WrongShape {
                expected: self.answer_shape.clone(),
                found: answer.hidden.shape().to_vec(),
            });
        }
        Ok(())
    }
}
