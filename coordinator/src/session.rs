//! The client's role: one session along one route.
//!
//! The machine opens the session on every hop at once, then sends one step at a time to the first
//! hop; each hop pushes its result to the next, and the last one answers here.

use std::collections::VecDeque;
use std::time::Duration;

use umbel_protocol::error::{ErrorCode, ProtocolViolation};
use umbel_protocol::inference::{
    ClientMessage, HopTiming, NextHop, OpenSession, ServerMessage, SessionError, Step,
};
use umbel_protocol::{ModelId, PeerId, SessionId, StepId, Tensor};

use crate::route::Hop;
use crate::time::Time;

/// How long the hops may take to open a session: they only count their KV cache, so this is a
/// generous round trip to the far side of the world over a slow link.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a step may take: 512 tokens of prefill through a large model on slow processors take
/// minutes, and a hop that dies is noticed sooner, by its link (Petals: `step_timeout`).
pub const STEP_TIMEOUT: Duration = Duration::from_secs(300);

/// What a session needs to know to begin.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Drawn at random by the body.
    pub session: SessionId,
    /// Which model the hops must serve.
    pub model: ModelId,
    /// Tokens for which each hop keeps room.
    pub tokens_max: u32,
    /// The client's own id: who may send the first hop its steps is decided by the link itself.
    pub hops: Vec<RouteHop>,
}

/// A hop and where it can be reached.
#[derive(Debug, Clone)]
pub struct RouteHop {
    /// Who computes what.
    pub hop: Hop,
    /// Multiaddresses, for the hop before it.
    pub addresses: Vec<String>,
}

/// What happens to a session.
#[derive(Debug)]
pub enum Input {
    /// A message came from the hop with this index.
    Received {
        /// Index of the hop in the route.
        hop: usize,
        /// What it said.
        message: ServerMessage,
    },
    /// The link to this hop is gone.
    LinkLost {
        /// Index of the hop in the route.
        hop: usize,
    },
    /// The caller wants these tokens computed, after the cache is cut to `position`.
    Step {
        /// Where the first token goes.
        position: u32,
        /// `[tokens, hidden]`.
        hidden: Tensor,
    },
    /// The caller has no more to ask.
    Close,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Output {
    /// Send this to the hop with this index.
    Send {
        /// Index of the hop in the route.
        hop: usize,
        /// What to say.
        message: ClientMessage,
    },
    /// Every hop has opened the session: steps may come.
    Ready,
    /// A step went through the whole route.
    Stepped {
        /// What leaves the last block, `[tokens, hidden]`.
        hidden: Tensor,
        /// What each hop said of its time.
        trace: Vec<HopTiming>,
        /// From handing the step in to its answer.
        total: Duration,
    },
    /// The session is over; only a new one on another route helps.
    Failed(SessionFailure),
}

/// Why a session ended before its caller closed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} ({blocks}) failed the session: {reason}", peer = hop.peer, blocks = hop.blocks)]
pub struct SessionFailure {
    /// The hop at fault, as far as can be told.
    pub hop: Hop,
    /// What it did.
    pub reason: FailureReason,
}

/// What a hop did to fail a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailureReason {
    /// Its link closed.
    #[error("its link closed")]
    LinkLost,
    /// It answered with an error.
    #[error("{code}: {detail}")]
    Refused {
        /// The kind of error, which says whether another server may do better.
        code: ErrorCode,
        /// Its own words.
        detail: String,
    },
    /// It did not answer in time.
    #[error("it did not answer within {} s", after.as_secs())]
    TimedOut {
        /// How long the client waited.
        after: Duration,
    },
    /// It broke the protocol.
    #[error("it broke the protocol: {0}")]
    Violation(ProtocolViolation),
}

#[derive(Debug)]
enum State {
    Opening { opened: Vec<bool>, deadline: Time },
    Idle,
    Stepping { step: StepId, position: u32, shape: Vec<u32>, sent: Time },
    Over,
}

/// One session of one client, along one route.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    hops: Vec<Hop>,
    tokens_max: u32,
    state: State,
    next_step: StepId,
    outputs: VecDeque<Output>,
}

impl Session {
    /// A session that asks every hop to open it.
    ///
    /// # Panics
    /// If there is no hop: a route always has one.
    #[must_use]
    pub fn open(config: SessionConfig, local: PeerId, now: Time) -> Self {
        assert!(!config.hops.is_empty(), "a route has a hop");
        let hops: Vec<Hop> = config.hops.iter().map(|hop| hop.hop).collect();
        let opens = hops.iter().enumerate().map(|(index, hop)| Output::Send {
            hop: index,
            message: ClientMessage::Open(OpenSession {
                session: config.session,
                model: config.model,
                blocks: hop.blocks,
                tokens_max: config.tokens_max,
                previous: index.checked_sub(1).map(|before| hops[before].peer),
                next: config
                    .hops
                    .get(index + 1)
                    .map(|next| NextHop { peer: next.hop.peer, addresses: next.addresses.clone() }),
            }),
        });
        tracing::debug!(session = %config.session, client = %local, hops = hops.len(), "open");
        Self {
            id: config.session,
            tokens_max: config.tokens_max,
            state: State::Opening { opened: vec![false; hops.len()], deadline: now + OPEN_TIMEOUT },
            next_step: StepId::default(),
            outputs: opens.collect(),
            hops,
        }
    }

    /// Takes note of what happened.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where a hop said what it must not; the session has failed by then.
    ///
    /// # Panics
    /// If the caller steps a session that is not idle, or names a hop that is not of the route.
    pub fn handle(&mut self, input: Input, now: Time) -> Result<(), ProtocolViolation> {
        if matches!(self.state, State::Over) {
            return Ok(());
        }
        match input {
            Input::Received { hop, message } => {
                let result = self.received(hop, message, now);
                if let Err(violation) = &result {
                    self.fail(hop, FailureReason::Violation(violation.clone()));
                }
                return result;
            }
            Input::LinkLost { hop } => self.fail(hop, FailureReason::LinkLost),
            Input::Step { position, hidden } => self.step(position, hidden, now),
            Input::Close => self.close(),
        }
        Ok(())
    }

    /// When [`Session::handle_timeout`] is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match &self.state {
            State::Opening { deadline, .. } => Some(*deadline),
            State::Stepping { sent, .. } => Some(*sent + STEP_TIMEOUT),
            State::Idle | State::Over => None,
        }
    }

    /// Gives up what has taken too long.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &self.state {
            State::Opening { opened, .. } => {
                let late = opened.iter().position(|opened| !opened).unwrap_or_default();
                self.fail(late, FailureReason::TimedOut { after: OPEN_TIMEOUT });
            }
            // Any hop may be the slow one; the first is as good a guess as any.
            State::Stepping { .. } => {
                self.fail(0, FailureReason::TimedOut { after: STEP_TIMEOUT });
            }
            State::Idle | State::Over => {}
        }
    }

    /// What to do next; drain it before waiting.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The name of this session.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// The hops, in the order of their blocks.
    #[must_use]
    pub fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// Tokens for which the hops keep room.
    #[must_use]
    pub const fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    fn received(
        &mut self,
        hop: usize,
        message: ServerMessage,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        match message {
            ServerMessage::Opened { session, .. } => self.opened(hop, session),
            ServerMessage::Output(step) => self.stepped(hop, step, now),
            ServerMessage::Error(error) => self.refused(hop, error),
            // The farewell to a session that this side closed, late.
            ServerMessage::Closed { .. } => Ok(()),
        }
    }

    fn opened(&mut self, hop: usize, session: SessionId) -> Result<(), ProtocolViolation> {
        self.check_id(session)?;
        let State::Opening { opened, .. } = &mut self.state else {
            return Err(ProtocolViolation::Unexpected { message: "Opened" });
        };
        opened[hop] = true;
        if opened.iter().all(|opened| *opened) {
            self.state = State::Idle;
            self.outputs.push_back(Output::Ready);
        }
        Ok(())
    }

    fn stepped(&mut self, hop: usize, answer: Step, now: Time) -> Result<(), ProtocolViolation> {
        self.check_id(answer.session)?;
        let State::Stepping { step, position, shape, sent } = &self.state else {
            return Err(ProtocolViolation::Unexpected { message: "Output" });
        };
        if hop + 1 != self.hops.len() || answer.step != *step || answer.position != *position {
            return Err(ProtocolViolation::Unexpected { message: "Output" });
        }
        if answer.hidden.shape() != shape.as_slice() {
            return Err(ProtocolViolation::WrongShape {
                expected: shape.clone(),
                found: answer.hidden.shape().to_vec(),
            });
        }
        let total = now.since(*sent);
        self.state = State::Idle;
        self.outputs.push_back(Output::Stepped {
            hidden: answer.hidden,
            trace: answer.trace,
            total,
        });
        Ok(())
    }

    fn refused(&mut self, hop: usize, error: SessionError) -> Result<(), ProtocolViolation> {
        self.check_id(error.session)?;
        // Who cannot reach the next hop is not at fault: the next hop is.
        let next_hop = error.code == ErrorCode::NextHopUnreachable && hop + 1 < self.hops.len();
        let at_fault = if next_hop { hop + 1 } else { hop };
        self.fail(at_fault, FailureReason::Refused { code: error.code, detail: error.detail });
        Ok(())
    }

    fn check_id(&self, session: SessionId) -> Result<(), ProtocolViolation> {
        if session == self.id { Ok(()) } else { Err(ProtocolViolation::UnknownSession { session }) }
    }

    fn step(&mut self, position: u32, hidden: Tensor, now: Time) {
        assert!(matches!(self.state, State::Idle), "a step begins when the one before it ended");
        let step = self.next_step;
        self.next_step = step.next();
        self.state = State::Stepping { step, position, shape: hidden.shape().to_vec(), sent: now };
        let message = ClientMessage::Step(Step {
            session: self.id,
            step,
            position,
            hidden,
            trace: Vec::new(),
        });
        self.outputs.push_back(Output::Send { hop: 0, message });
    }

    fn close(&mut self) {
        self.state = State::Over;
        self.send_close_except(None);
    }

    fn fail(&mut self, hop: usize, reason: FailureReason) {
        let failure = SessionFailure { hop: self.hops[hop], reason };
        tracing::debug!(session = %self.id, %failure, "session failed");
        self.state = State::Over;
        self.send_close_except(Some(hop));
        self.outputs.push_back(Output::Failed(failure));
    }

    fn send_close_except(&mut self, except: Option<usize>) {
        for hop in (0..self.hops.len()).filter(|hop| Some(*hop) != except) {
            let message = ClientMessage::Close { session: self.id };
            self.outputs.push_back(Output::Send { hop, message });
        }
    }
}

#[cfg(test)]
mod tests;
