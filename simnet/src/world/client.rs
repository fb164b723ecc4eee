//! A client of the simulated world: the production machine and a plan of steps.

use std::collections::VecDeque;
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::session::{Input, Output, RouteHop, Session, SessionConfig, SessionFailure};
use umbel_protocol::inference::{ClientMessage, ServerMessage};
use umbel_protocol::{ModelId, PeerId, SessionId, Tensor};

use crate::oracle::embed;

/// Steps to take, each from a position on with these tokens; a position below the end of the last
/// step is a rollback.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Tokens for which room is asked.
    pub tokens_max: u32,
    /// Position and tokens of each step.
    pub steps: VecDeque<(u32, Vec<u32>)>,
}

/// One client with one session.
#[derive(Debug)]
pub struct Client {
    /// Its name.
    pub peer: PeerId,
    /// What came back for each step.
    pub answers: Vec<Tensor>,
    /// How long each step took.
    pub durations: Vec<Duration>,
    /// How the session ended, if it failed.
    pub failure: Option<SessionFailure>,
    session: Session,
    plan: Plan,
    armed: Option<Time>,
}

impl Client {
    pub(super) fn open(
        index: usize,
        session: SessionId,
        model: ModelId,
        hops: Vec<RouteHop>,
        plan: Plan,
        now: Time,
    ) -> Self {
        let mut key = [0xc1; 32];
        key[..8].copy_from_slice(&(index as u64).to_le_bytes());
        let peer = PeerId::from_public_key(key);
        let config = SessionConfig { session, model, tokens_max: plan.tokens_max, hops };
        Self {
            peer,
            answers: Vec::new(),
            durations: Vec::new(),
            failure: None,
            session: Session::open(config, peer, now),
            plan,
            armed: None,
        }
    }

    pub(super) fn received(&mut self, hop: usize, message: ServerMessage, now: Time) {
        let result = self.session.handle(Input::Received { hop, message }, now);
        assert_eq!(result, Ok(()), "honest peers keep to the protocol");
    }

    pub(super) fn timeout(&mut self, now: Time) {
        self.armed = None;
        self.session.handle_timeout(now);
    }

    /// The next message to send. Answers lead to the next step of the plan, the last to the end.
    pub(super) fn next_message(&mut self, now: Time) -> Option<(usize, ClientMessage)> {
        loop {
            match self.session.poll()? {
                Output::Send { hop, message } => return Some((hop, message)),
                Output::Ready => self.next_step(now),
                Output::Stepped { hidden, total, .. } => {
                    self.answers.push(hidden);
                    self.durations.push(total);
                    self.next_step(now);
                }
                Output::Failed(failure) => self.failure = Some(failure),
            }
        }
    }

    /// The time of a timer that has to be armed anew.
    pub(super) fn arm(&mut self) -> Option<Time> {
        let at = self.session.poll_timeout()?;
        if self.armed.is_some_and(|armed| armed <= at) {
            return None;
        }
        self.armed = Some(at);
        Some(at)
    }

    pub(super) fn hop_of(&self, peer: PeerId) -> Option<usize> {
        self.session.hops().iter().position(|hop| hop.peer == peer)
    }

    pub(super) fn peer_of(&self, hop: usize) -> PeerId {
        self.session.hops()[hop].peer
    }

    fn next_step(&mut self, now: Time) {
        let input = match self.plan.steps.pop_front() {
            Some((position, tokens)) => Input::Step { position, hidden: embed(&tokens) },
            None => Input::Close,
        };
        let result = self.session.handle(input, now);
        assert_eq!(result, Ok(()), "the client does not wrong itself");
    }
}
