//! A thin session: the last hop draws each token and sends it to the first hop, and here.
//!
//! What the last hop sends on is a step like any other, with the number and the position that it
//! would have if it came from here; so it stands among those under way as soon as its token is
//! known, and all that holds for a step of the caller's holds for it. Only here are the tokens that
//! the hops have beyond those unknown. So after a failure everything that has not been answered
//! begins anew from here, under numbers that nothing which still goes round can have: the first hop
//! drops what comes round with a smaller number, and answers to it are ignored. What is drawn does
//! not depend on how often it is.

use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::inference::{AnswerRows, ClientMessage, Draw, HopTiming, NextHop, Sampling};
use umbel_protocol::inference::{Destination, Step};
use umbel_protocol::{SessionId, StepId, Tensor};

use super::flight::InFlight;
use super::{FailureReason, HopId, Output, Session};
use crate::time::Time;

/// Bytes of a token's id on the wire.
pub(super) const ID_BYTES: u32 = 4;

/// How the tokens of an answer are to be drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawWanted {
    /// How each is chosen.
    pub sampling: Sampling,
    /// The position of the first token to be drawn.
    pub from: u32,
    /// Tokens for this position or a later one do not go on by themselves.
    pub until: u32,
    /// Tokens that end the answer.
    pub end_ids: Vec<u32>,
    /// All tokens before the first that is to be drawn.
    pub text: Vec<u32>,
}

/// What a thin session knows besides what every session does.
#[derive(Debug)]
pub(super) struct Ring {
    vocabulary_size: u32,
    /// With all tokens of the text so far, those that were drawn among them.
    wanted: Option<DrawWanted>,
    /// How often the caller has said how tokens are drawn.
    version: u32,
    /// The route was not whole since steps last began from here.
    broken: bool,
    /// A last and a first hop of which the one could not reach the other: tokens go over here.
    unreachable: Option<(HopId, HopId)>,
}

/// What the last hop has been told: how often the caller has spoken, and where tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DrawTold {
    version: u32,
    first: Option<HopId>,
}

impl Ring {
    pub(super) const fn new(vocabulary_size: u32) -> Self {
        Self { vocabulary_size, wanted: None, version: 0, broken: false, unreachable: None }
    }
}

impl Session {
    /// Whether ids go in and tokens come back.
    pub(super) const fn is_thin(&self) -> bool {
        self.ring.is_some()
    }

    /// Bytes of a token on the links of this side.
    pub(super) fn own_token_bytes(&self) -> u32 {
        if self.is_thin() { ID_BYTES } else { self.config.token_bytes }
    }

    /// Whether a token goes round by itself.
    pub(super) fn goes_round(&self) -> bool {
        self.flight.back().is_some_and(|last| last.drawn)
    }

    /// Takes up how the next tokens are to be drawn. What still goes round is given up.
    pub(super) fn draw(&mut self, wanted: DrawWanted) {
        let ring = self.ring.as_mut().expect("only a thin session is told how to draw");
        ring.wanted = Some(wanted);
        ring.version += 1;
        self.flight.clear();
        self.skip_numbers();
    }

    /// The route is not whole.
    pub(super) const fn ring_breaks(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.broken = true;
        }
    }

    /// After the route was not whole: begins everything anew that has not been answered.
    pub(super) fn begin_anew(&mut self) {
        let Some(ring) = self.ring.as_mut().filter(|ring| ring.broken) else {
            return;
        };
        ring.broken = false;
        let text = ring.wanted.as_ref().map_or(&[][..], |wanted| &wanted.text).to_vec();
        self.skip_numbers();
        for in_flight in &mut self.flight {
            let (begin, end) = (in_flight.position as usize, in_flight.end() as usize);
            let ids = text.get(begin..end).expect("what is under way is part of the text");
            let step = id_step(self.next_step, in_flight.position, ids);
            self.next_step = self.next_step.next();
            self.journal.record(&step);
            (in_flight.step, in_flight.unsent) = (step.step, Some(step));
        }
    }

    /// Goes on with numbers that no step has which hops may have begun by themselves: there are no
    /// more of those than a session has positions.
    fn skip_numbers(&mut self) {
        self.next_step = StepId(self.next_step.0 + u64::from(self.config.tokens_max));
    }

    /// Notes the tokens of a step of the caller's.
    pub(super) fn note_text(&mut self, position: u32, ids: &Tensor) {
        let wanted = self.ring.as_mut().and_then(|ring| ring.wanted.as_mut());
        let (Some(wanted), Some(ids)) = (wanted, ids.to_ids()) else {
            panic!("a thin session is told how to draw, and then takes ids of tokens");
        };
        let position = position as usize;
        assert!(position <= wanted.text.len(), "a step begins where the text ends, or before");
        let known = wanted.text.len().min(position + ids.len()) - position;
        wanted.text[position..position + known].copy_from_slice(&ids[..known]);
        wanted.text.extend_from_slice(&ids[known..]);
    }

    /// The token of an answer that is the one to the first step under way.
    pub(super) fn token_of(&self, answer: &Step) -> Result<u32, ProtocolViolation> {
        let unexpected = || ProtocolViolation::Unexpected { message: "Output" };
        let ring = self.ring.as_ref().ok_or_else(unexpected)?;
        let ids = answer.hidden.to_ids();
        let id = ids.and_then(|ids| ids.first().copied()).ok_or_else(unexpected)?;
        if id >= ring.vocabulary_size {
            let field = "the id of a token";
            return Err(ProtocolViolation::OutOfRange { field, value: id.to_string() });
        }
        let follows = self.flight.len() == 1 && answer.position + 1 >= ring.from();
        if answer.goes_on && !follows {
            return Err(unexpected());
        }
        Ok(id)
    }

    /// Takes up a token that was drawn for the position `end`; if it goes on by itself, as a step.
    pub(super) fn drawn(
        &mut self,
        (id, end): (u32, u32),
        goes_on: bool,
        (trace, total): (Vec<HopTiming>, std::time::Duration),
        now: Time,
    ) {
        let wanted = self.ring.as_mut().and_then(|ring| ring.wanted.as_mut());
        if let Some(wanted) = wanted.filter(|wanted| end >= wanted.from) {
            wanted.text.truncate(end as usize);
            wanted.text.push(id);
        }
        if goes_on {
            let step = id_step(self.next_step, end, &[id]);
            self.next_step = self.next_step.next();
            self.journal.record(&step);
            // The first hop has it, as if it had gone there from here.
            self.outlet.takes(step.step, end, end + 1);
            for place in &mut self.places {
                place.watch.begin(now);
            }
            let in_flight = InFlight::of_hops(step, now);
            self.expect_answer(&in_flight);
            self.flight.push_back(in_flight);
        }
        self.outputs.push_back(Output::Drawn { id, goes_on, trace, total });
    }

    /// The hop that draws, where there is one.
    pub(super) fn drawer(&self) -> Option<usize> {
        let last = self.places.len().checked_sub(1).filter(|_| self.is_thin())?;
        (self.places[last].hop.blocks.end() == self.config.block_count).then_some(last)
    }

    /// Tells the hop that draws how to, and where tokens go, where that has changed.
    pub(super) fn tell_drawer(&mut self, now: Time) {
        let (Some(told), Some(last)) = (self.draw_to_tell(), self.drawer()) else {
            return;
        };
        let first = told.first.map(|_| &self.places[0]).map(super::Place::as_destination);
        let first: Option<NextHop> = match first {
            Some(Destination::Server(first)) => Some(first),
            Some(Destination::Client | Destination::Held) | None => None,
        };
        let place = &mut self.places[last];
        // One that waits for an adapter has no session to draw in yet.
        let waits = self.config.adapter.is_some() && !place.is_open();
        if waits || place.draw_told == Some(told) {
            return;
        }
        place.draw_told = Some(told);
        place.drawing += 1;
        place.watch.must_agree(self.patience, now);
        let (hop, session) = (place.id, place.session);
        let wanted = self.ring.as_ref().and_then(|ring| ring.wanted.as_ref());
        let draw = wanted.expect("there is something to tell").to_message(session, first);
        self.outputs.push_back(Output::Send { hop, message: ClientMessage::Draw(draw) });
    }

    /// Whether the hop that draws knows how to and where tokens go, if there is something to know.
    pub(super) fn drawer_is_told(&self) -> bool {
        let (Some(told), Some(last)) = (self.draw_to_tell(), self.drawer()) else {
            return true;
        };
        let place = &self.places[last];
        place.drawing == 0 && place.draw_told == Some(told)
    }

    /// What the hop that draws is to know.
    fn draw_to_tell(&self) -> Option<DrawTold> {
        let ring = self.ring.as_ref().filter(|ring| ring.wanted.is_some())?;
        let pair = (self.places.last()?.id, self.places.first()?.id);
        let first = (ring.unreachable != Some(pair)).then_some(pair.1);
        Some(DrawTold { version: ring.version, first })
    }

    /// The hop that draws cannot reach the first one. That one is not at fault, unless its link to
    /// this side ends too; tokens go over here.
    pub(super) fn ring_unreachable(&mut self, last: usize) {
        let place = &self.places[last];
        let first = self.places.first().filter(|first| first.hop.blocks.start() == 0);
        // Else what it says is of a hop that was the first before.
        if place.drawing == 0
            && let (Some(ring), Some(first)) = (&mut self.ring, first)
        {
            tracing::info!(from = %place.hop.peer, to = %first.hop.peer, "the ring does not close");
            ring.unreachable = Some((place.id, first.id));
        }
    }

    /// The first hop has refused a token that was drawn.
    pub(super) fn drawn_refused(&mut self, reason: FailureReason) {
        if let Some(last) = self.drawer() {
            self.drop_place(last, reason);
        }
    }
}

impl Ring {
    fn from(&self) -> u32 {
        self.wanted.as_ref().map_or(u32::MAX, |wanted| wanted.from)
    }
}

impl DrawWanted {
    fn to_message(&self, session: SessionId, first: Option<NextHop>) -> Draw {
        let Self { sampling, from, until, ref end_ids, ref text } = *self;
        let text = if sampling.needs_text() { text.clone() } else { Vec::new() };
        Draw { session, sampling, from, until, end_ids: end_ids.clone(), text, first }
    }
}

/// A step of these tokens, of which no hop has a name for the session yet.
fn id_step(step: StepId, position: u32, ids: &[u32]) -> Step {
    Step {
        session: SessionId::new(0),
        step,
        position,
        hidden: Tensor::of_ids(ids),
        trace: Vec::new(),
        answer_rows: AnswerRows::Last,
        replay: false,
        goes_on: false,
    }
}
