//! A client of the simulated world: the production machine and a plan of steps.

use std::collections::VecDeque;
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::session::{
    HopFailure, Input, Output, Session, SessionConfig, SessionFailure,
};
use umbel_protocol::{ModelId, PeerId, Tensor};

use super::server::frame_bytes;
use super::{Event, Place, World};
use crate::oracle::embed;

/// Bytes that a client keeps of what it sent: more than any plan has.
const JOURNAL_BYTES_MAX: usize = 64 << 20;

/// Steps to take, each from a position on with these tokens; a position below the end of the last
/// step is a rollback.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Tokens for which room is asked.
    pub tokens_max: u32,
    /// Position and tokens of each step.
    pub steps: VecDeque<(u32, Vec<u32>)>,
    /// Whether each hop is to have a spare.
    pub standby: bool,
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
    /// Hops that failed on the way.
    pub blamed: Vec<HopFailure>,
    session: Option<Session>,
    config: SessionConfig,
    plan: Plan,
    armed: Option<Time>,
}

impl Client {
    pub(super) fn new(index: usize, model: ModelId, block_count: u32, plan: Plan) -> Self {
        let mut key = [0xc1; 32];
        key[..8].copy_from_slice(&(index as u64).to_le_bytes());
        Self {
            peer: PeerId::from_public_key(key),
            answers: Vec::new(),
            durations: Vec::new(),
            failure: None,
            blamed: Vec::new(),
            session: None,
            config: SessionConfig {
                model,
                block_count,
                tokens_max: plan.tokens_max,
                journal_bytes_max: JOURNAL_BYTES_MAX,
                standby: plan.standby,
            },
            plan,
            armed: None,
        }
    }

    fn next_input(&mut self) -> Input {
        match self.plan.steps.pop_front() {
            Some((position, tokens)) => Input::Step { position, hidden: embed(&tokens) },
            None => Input::Close,
        }
    }
}

impl World {
    pub(super) fn start_client(&mut self, client: usize) {
        let of = &mut self.clients[client];
        of.session = Some(Session::open(of.config.clone(), self.now));
        self.drive_client(client);
    }

    pub(super) fn tell_client(&mut self, client: usize, input: Input) {
        if let Some(session) = &mut self.clients[client].session {
            let result = session.handle(input, self.now);
            assert_eq!(result, Ok(()), "honest peers keep to the protocol");
            self.drive_client(client);
        }
    }

    pub(super) fn client_timer(&mut self, client: usize) {
        let of = &mut self.clients[client];
        of.armed = None;
        if let Some(session) = &mut of.session {
            session.handle_timeout(self.now);
            self.drive_client(client);
        }
    }

    fn drive_client(&mut self, client: usize) {
        while let Some(output) = self.clients[client].session.as_mut().and_then(Session::poll) {
            let of = &mut self.clients[client];
            match output {
                Output::Route(wanted) => self.ask_route(client, wanted),
                Output::Connect { hop, peer, .. } => {
                    let end = self.end_of(peer);
                    self.sessions.insert((client, hop), end);
                }
                Output::Send { hop, message } => {
                    let link = (client, hop);
                    if let Some(end) = self.sessions.get(&link).copied() {
                        let bytes = frame_bytes(&message.clone().encode());
                        let event = Event::Session { link, message };
                        self.send(Place::Client(client), Place::Server(end.server), bytes, event);
                    }
                }
                Output::Disconnect { hop } => {
                    let link = (client, hop);
                    if let Some(end) = self.sessions.get(&link).copied() {
                        let event = Event::SessionClosed { link };
                        self.send(Place::Client(client), Place::Server(end.server), 0, event);
                    }
                }
                Output::Ready => self.next_step(client),
                Output::Stepped { hidden, total, .. } => {
                    of.answers.push(hidden);
                    of.durations.push(total);
                    self.next_step(client);
                }
                Output::Blame(failure) => of.blamed.push(failure),
                Output::Failed(failure) => of.failure = Some(failure),
            }
        }
        let of = &mut self.clients[client];
        let deadline = of.session.as_ref().and_then(Session::poll_timeout);
        if let Some(at) = deadline
            && of.armed.is_none_or(|armed| at < armed)
        {
            of.armed = Some(at);
            self.queue.plan(at, Event::ClientTimer { client });
        }
    }

    fn next_step(&mut self, client: usize) {
        let input = self.clients[client].next_input();
        if let Some(session) = &mut self.clients[client].session {
            let result = session.handle(input, self.now);
            assert_eq!(result, Ok(()), "the client does not wrong itself");
        }
    }
}
