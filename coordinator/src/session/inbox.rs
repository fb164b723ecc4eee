//! What hops say.

use umbel_protocol::SessionId;
use umbel_protocol::error::{ErrorCode, ProtocolViolation, Retry};
use umbel_protocol::inference::{Neighbour, ServerMessage, SessionError, Trouble};

use super::place::{Fill, Opening, Target};
use super::{FailureReason, HopFailure, REFILLS_MAX, Session, SessionFailure};
use crate::time::Time;

impl Session {
    /// Takes note of what the hop at `index` says.
    pub(super) fn received(
        &mut self,
        index: usize,
        message: ServerMessage,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        self.places[index].watch.heard(now);
        let named = match &message {
            ServerMessage::Opened { session, .. }
            | ServerMessage::Closed { session }
            | ServerMessage::Redirected { session, .. }
            | ServerMessage::Adopted { session, .. }
            | ServerMessage::Pong { session, .. }
            | ServerMessage::DrawTaken { session }
            | ServerMessage::AdapterWanted { session, .. }
            | ServerMessage::Draining { session } => *session,
            ServerMessage::Output(step) => step.session,
            ServerMessage::Error(error) => error.session,
            ServerMessage::Trouble(trouble) => trouble.session,
        };
        self.check_name(index, named)?;
        let place = &mut self.places[index];
        match message {
            ServerMessage::Opened { adapter: false, .. } if self.config.adapter.is_some() => {
                self.drop_place(index, super::adapter::not_added());
            }
            ServerMessage::AdapterWanted { offset, .. } => {
                let send = place.adapter_wanted(offset, now)?;
                self.outputs.extend(send);
            }
            ServerMessage::Opened { kept, .. } => {
                let Opening::Asked { .. } = place.opening else {
                    return Err(ProtocolViolation::Unexpected { message: "Opened" });
                };
                if !Self::opened_with(place, kept) {
                    return Err(ProtocolViolation::Unexpected { message: "Opened" });
                }
                place.opening = Opening::Open;
                place.watch.begin(now);
            }
            ServerMessage::Adopted { position, .. } => {
                place.adopting = place.adopting.saturating_sub(1);
                place.agrees();
                if position < self.settled && place.fill == Fill::Full {
                    place.must_be_filled();
                }
            }
            ServerMessage::Redirected { mirror: false, complete: true, .. } => {
                place.redirecting = place.redirecting.saturating_sub(1);
            }
            ServerMessage::Redirected { mirror: false, complete: false, .. } => {
                place.redirecting = place.redirecting.saturating_sub(1);
                // Its journal is gone: it must compute everything once more.
                self.refill(index);
            }
            ServerMessage::Redirected { mirror: true, complete: false, .. } => {
                let feeder = place.id;
                self.mirror_lost(feeder, now);
            }
            ServerMessage::Redirected { mirror: true, complete: true, .. }
            | ServerMessage::Closed { .. } => {}
            ServerMessage::Pong { received, computed, .. } => {
                place.watch.pong((received, computed), self.config.tokens_max, now)?;
                self.check_progress(now);
            }
            ServerMessage::Draining { .. } => place.leaving = true,
            ServerMessage::DrawTaken { .. } => {
                place.drawing = place.drawing.saturating_sub(1);
                place.agrees();
            }
            ServerMessage::Output(step) => return self.stepped(index, step, now),
            ServerMessage::Error(error) => self.refused(index, error),
            ServerMessage::Trouble(trouble) => self.trouble(index, trouble),
        }
        Ok(())
    }

    fn check_name(&self, index: usize, session: SessionId) -> Result<(), ProtocolViolation> {
        if session == self.places[index].session {
            Ok(())
        } else {
            Err(ProtocolViolation::UnknownSession { session })
        }
    }

    fn refused(&mut self, index: usize, error: SessionError) {
        let SessionError { code, detail, .. } = error;
        let reason = FailureReason::Refused { code, detail };
        if code.retry() == Retry::Never {
            let place = self.places.remove(index);
            self.leave(&place);
            self.fail(SessionFailure::Hop(HopFailure { hop: place.hop, reason }));
        } else {
            self.drop_place(index, reason);
        }
    }

    /// The hop at `index` lacks what it should hold: it is filled anew, unless that has been of no use.
    fn refill(&mut self, index: usize) {
        let place = &mut self.places[index];
        if place.fill == Fill::Wanted {
            // It is to be filled anyway, and says it of every step that was still under way.
            return;
        }
        place.refills += 1;
        if place.refills > REFILLS_MAX {
            self.drop_place(index, FailureReason::NotFilled { times: REFILLS_MAX });
        } else {
            place.must_be_filled();
        }
    }

    fn trouble(&mut self, index: usize, trouble: Trouble) {
        let Trouble { neighbour, code, detail, .. } = trouble;
        match neighbour {
            // A server that has been relieved ends, and closes the link of who fed it, maybe before
            // that one hears of it.
            Neighbour::Next if self.drawer() == Some(index) => self.ring_unreachable(index),
            Neighbour::Next if self.places[index].redirecting > 0 => {}
            Neighbour::Next => {
                let told = std::mem::replace(&mut self.places[index].next, Target::Held);
                let Target::Hop(next) = told else {
                    return;
                };
                let from = self.places[index].hop.peer;
                if let Some(next) = self.index_of(next) {
                    self.drop_place(next, FailureReason::Unreachable { from, detail });
                }
            }
            // Not what it expected, but maybe nobody's fault: it is filled anew.
            Neighbour::Previous if code == ErrorCode::WrongPosition => self.refill(index),
            Neighbour::Previous if index == 0 => {
                self.drawn_refused(FailureReason::Refused { code, detail });
            }
            Neighbour::Previous => {
                if let Some(previous) = index.checked_sub(1) {
                    self.drop_place(previous, FailureReason::Refused { code, detail });
                }
            }
        }
    }
}
