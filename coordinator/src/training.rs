//! The adapters that trainers keep on one server: whose they are, how much they may take, and whose
//! work is computed next.
//!
//! A session belongs to the peer that opened it, and only that peer's link reaches it. It survives its
//! link for [`ORPHAN_LEASE`], so that a trainer that comes back finds its state, and asks again for a
//! step whose answer was lost without its being taken twice. Before that its room is given to another
//! session of the same trainer that lacks it. What a session had of an unfinished step when its link
//! closed is dropped: the trainer sends it anew.
//!
//! The accelerator is given one piece of work at a time. Trainers take turns, and so do the sessions
//! of each.

mod admission;
mod held;
pub mod round;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use umbel_protocol::training::{ModuleShapes, OpenTraining, TrainerMessage, TrainingAnswer};
use umbel_protocol::{ErrorCode, ModelId, PeerId, ProtocolViolation, SessionId, Span};

use crate::server::{ComputeFailure, LinkId, ShardId};
use crate::time::Time;
use admission::Admission;
use held::{Held, Turn};

/// Sessions of all trainers: each is asked about when the next work is chosen.
pub const SESSIONS_MAX: usize = 64;

/// Sessions of one trainer: its route may come by a server several times, and a session that it lost
/// may still be there.
pub const SESSIONS_PER_TRAINER_MAX: usize = 8;

/// Messages of one session that have no answer yet: three fill a link. While the work of others is
/// computed all of them wait.
pub const MESSAGES_UNANSWERED_MAX: usize = 3;

/// How long a session is kept whose link is gone: a trainer comes back within seconds, or has found
/// another server.
pub const ORPHAN_LEASE: Duration = Duration::from_secs(120);

/// How long a session is kept whose trainer says nothing: other servers of its route may be slow, and
/// its validation may take minutes.
pub const IDLE_LEASE: Duration = Duration::from_secs(30 * 60);

/// What a host is, beside what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// The model that it serves.
    pub model: ModelId,
    /// The blocks on which sessions open at first.
    pub span: Span,
    /// Values of a token between blocks.
    pub hidden_size: u32,
    /// The shape of each module's matrix.
    pub module_shapes: ModuleShapes,
    /// The longest sequence that the model takes.
    pub context_tokens: u32,
    /// Bytes for the sessions of all trainers.
    pub bytes_max: u64,
}

/// What happens to a host.
#[derive(Debug)]
pub enum Input {
    /// A trainer said something.
    Received {
        /// On which link.
        link: LinkId,
        /// Who is at the other end.
        from: PeerId,
        /// What was said.
        message: TrainerMessage,
    },
    /// The accelerator has finished what it was given; there is an answer where the work was a
    /// trainer's message.
    Computed(Result<Option<TrainingAnswer>, ComputeFailure>),
    /// A link is gone.
    LinkClosed {
        /// Which one.
        link: LinkId,
    },
    /// Sessions open on these blocks from now on, also where none opened any more, and those that are
    /// open end.
    Serve {
        /// The name of the blocks.
        shard: ShardId,
        /// Which they are.
        span: Span,
    },
    /// No session opens until blocks are served again, and those that are open end.
    Drain,
}

/// What a host wants done.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Answer a trainer.
    Send {
        /// On this link.
        link: LinkId,
        /// With this.
        answer: TrainingAnswer,
    },
    /// Close a link once everything was sent that was to be.
    Close {
        /// Which one.
        link: LinkId,
    },
    /// Compute; the answer is [`Input::Computed`]. There is never more than one.
    Compute {
        /// For which session.
        session: SessionId,
        /// What.
        work: Work,
    },
}

/// A piece of work for the accelerator.
#[derive(Debug, PartialEq)]
pub enum Work {
    /// Hold a part of an adapter.
    Begin {
        /// On which blocks of those that are held.
        shard: ShardId,
        /// What.
        open: Box<OpenTraining>,
    },
    /// What a trainer asks for: anything but to open and to close.
    Message(TrainerMessage),
    /// Drop what there is of an unfinished step.
    Reset,
    /// Drop everything.
    Forget,
}

/// The training sessions of one server.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    admission: Admission,
    shard: ShardId,
    draining: bool,
    sessions: BTreeMap<SessionId, Held>,
    links: BTreeMap<LinkId, SessionId>,
    /// When each trainer was last served, counted in pieces of work.
    turns: BTreeMap<PeerId, Turn>,
    turn: Turn,
    /// Whose work the accelerator has.
    running: Option<SessionId>,
    /// Sessions that are gone, of which the accelerator has yet to hear.
    forgotten: VecDeque<SessionId>,
    outputs: VecDeque<Output>,
}

impl Host {
    /// A host without sessions.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self {
            admission: Admission::new(config.span, config.bytes_max),
            config,
            shard: ShardId::default(),
            draining: false,
            sessions: BTreeMap::new(),
            links: BTreeMap::new(),
            turns: BTreeMap::new(),
            turn: 0,
            running: None,
            forgotten: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes note of what happened.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where a trainer said what it must not: the body closes its link.
    pub fn handle(&mut self, input: Input, now: Time) -> Result<(), ProtocolViolation> {
        match input {
            Input::Received { link, from, message } => self.received(link, from, message, now)?,
            Input::Computed(result) => self.computed(result, now),
            Input::LinkClosed { link } => self.link_closed(link, now),
            Input::Serve { shard, span } => {
                self.admission.span = span;
                self.shard = shard;
                self.draining = false;
                self.end_all("the server has gone to other blocks");
            }
            Input::Drain => {
                self.draining = true;
                self.end_all("the server is about to leave");
            }
        }
        self.compute_next(now);
        Ok(())
    }

    /// When [`Host::handle_timeout`] is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.sessions.values().map(Held::lease_end).min()
    }

    /// Ends sessions that nobody has used for the length of a lease.
    pub fn handle_timeout(&mut self, now: Time) {
        let ended = self.sessions.iter().filter(|(_, held)| held.lease_end() <= now);
        let ended: Vec<_> = ended.map(|(session, _)| *session).collect();
        for session in ended {
            self.fail(session, ErrorCode::LeaseEnded, "nothing was asked for too long".to_owned());
        }
        self.compute_next(now);
    }

    /// What to do next; drain it before waiting.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Sessions that are held.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes that no session has reserved.
    #[must_use]
    pub const fn bytes_free(&self) -> u64 {
        self.admission.bytes_free
    }

    fn received(
        &mut self,
        link: LinkId,
        from: PeerId,
        message: TrainerMessage,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        match (message, self.links.get(&link).copied()) {
            (TrainerMessage::Open(open), None) => self.open(link, from, open, now),
            (TrainerMessage::Open(_), Some(_)) => {
                Err(ProtocolViolation::Unexpected { message: "OpenTraining" })
            }
            (_, None) => Err(ProtocolViolation::Unexpected { message: "trainer's message" }),
            (message, Some(session)) => {
                let held = self.sessions.get_mut(&session).expect("a link's session is held");
                held.push(&self.config, message, now)?;
                if held.only_closes() {
                    // The work of others, which may be long, has nothing to do with it.
                    self.close(session, link);
                }
                Ok(())
            }
        }
    }

    fn open(
        &mut self,
        link: LinkId,
        from: PeerId,
        open: OpenTraining,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        let session = open.session;
        if let Some(held) = self.sessions.get_mut(&session) {
            let former = held.resume(link, from, &open, now)?;
            self.links.insert(link, session);
            if let Some(former) = former {
                self.links.remove(&former);
                self.outputs.push_back(Output::Close { link: former });
            }
            return Ok(());
        }
        let mut admitted = self.admit(from, &open);
        let in_the_way = !self.is_ending(session) && self.orphans_are_in_the_way(from, &open);
        while let Err((ErrorCode::KvFull | ErrorCode::Busy, _)) = &admitted
            && in_the_way
            && let Some(orphan) = self.orphan_of(from)
        {
            // Who has lost its link opens another session more often than it comes back to the same.
            let detail = "its trainer needs the room for another".to_owned();
            self.fail(orphan, ErrorCode::LeaseEnded, detail);
            admitted = self.admit(from, &open);
        }
        if let Err((code, detail)) = admitted {
            self.outputs
                .push_back(Output::Send { link, answer: TrainingAnswer::Error { code, detail } });
            self.outputs.push_back(Output::Close { link });
            return Ok(());
        }
        tracing::info!(%session, trainer = %from, blocks = %open.blocks, "training opened");
        self.links.insert(link, session);
        let bytes = admission::bytes(&self.config, &open);
        self.sessions.insert(session, Held::new(from, link, (self.shard, open), bytes, now));
        Ok(())
    }

    /// Reserves room for a session of this trainer, or says why there is none.
    fn admit(&mut self, from: PeerId, open: &OpenTraining) -> Result<(), (ErrorCode, String)> {
        let of_trainer = self.sessions.values().filter(|held| held.trainer == from).count();
        let counts = (self.held_count(), of_trainer);
        let state = (self.draining, self.is_ending(open.session));
        self.admission.admit(&self.config, open, counts, state)
    }

    /// How many sessions take a place, those about to end included.
    fn held_count(&self) -> usize {
        self.sessions.len() + self.forgotten.len()
    }

    /// Whether a session of this trainer could be opened if those were gone whose links it has lost.
    fn orphans_are_in_the_way(&self, from: PeerId, open: &OpenTraining) -> bool {
        let held = self.sessions.values();
        let orphans = held.filter(|held| held.trainer == from && held.link.is_none());
        let room = self.admission.bytes_free + orphans.map(|held| held.bytes).sum::<u64>();
        let fits = admission::bytes(&self.config, open) <= admission::allowed(&self.config, room);
        fits && self.held_count() < SESSIONS_MAX
    }

    /// Whether of an earlier session with this name something is still under way.
    fn is_ending(&self, session: SessionId) -> bool {
        self.running == Some(session) || self.forgotten.contains(&session)
    }

    /// The session of this trainer that has been without a link and unused for longest.
    fn orphan_of(&self, from: PeerId) -> Option<SessionId> {
        let orphans =
            self.sessions.iter().filter(|(_, held)| held.trainer == from && held.link.is_none());
        orphans.min_by_key(|(_, held)| held.lease_end()).map(|(session, _)| *session)
    }

    fn computed(&mut self, result: Result<Option<TrainingAnswer>, ComputeFailure>, now: Time) {
        let session = self.running.take().expect("something was computed");
        let Some(held) = self.sessions.get_mut(&session) else {
            return;
        };
        match result {
            Ok(None) => held.done(),
            Ok(Some(answer)) => {
                if let Some((link, answer)) = held.computed(answer, now) {
                    self.outputs.push_back(Output::Send { link, answer });
                }
            }
            Err(failure) => self.fail(session, failure.code, failure.detail),
        }
    }

    fn link_closed(&mut self, link: LinkId, now: Time) {
        if let Some(session) = self.links.remove(&link)
            && let Some(held) = self.sessions.get_mut(&session)
        {
            if held.is_to_close() {
                // Nobody comes back to it, and nobody waits for the answer.
                self.forget(session);
            } else {
                held.orphan(now);
            }
        }
    }

    /// Gives the accelerator the work of whoever has waited longest, if it is free.
    fn compute_next(&mut self, now: Time) {
        while self.running.is_none() {
            if let Some(session) = self.forgotten.pop_front() {
                self.compute(session, Work::Forget);
                return;
            }
            let waiting = self.sessions.iter().filter(|(_, held)| held.waits());
            let turn = |held: &Held| {
                (self.turns.get(&held.trainer).copied().unwrap_or_default(), held.turn)
            };
            let next = waiting.min_by_key(|(_, held)| turn(held)).map(|(session, _)| *session);
            let Some(session) = next else { return };
            self.turn += 1;
            let held = self.sessions.get_mut(&session).expect("it is one of them");
            held.turn = self.turn;
            self.turns.insert(held.trainer, self.turn);
            match held.next(&self.config, now) {
                held::Next::Compute(work) => self.compute(session, work),
                held::Next::Answer(link, answer) => {
                    self.outputs.push_back(Output::Send { link, answer });
                }
                held::Next::Fail(code, detail) => self.fail(session, code, detail),
                held::Next::Close(link) => self.close(session, link),
            }
        }
    }

    fn compute(&mut self, session: SessionId, work: Work) {
        self.running = Some(session);
        self.outputs.push_back(Output::Compute { session, work });
    }

    fn close(&mut self, session: SessionId, link: LinkId) {
        self.outputs.push_back(Output::Send { link, answer: TrainingAnswer::Closed });
        self.forget(session);
    }

    fn end_all(&mut self, detail: &str) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.fail(session, ErrorCode::Draining, detail.to_owned());
        }
    }

    fn fail(&mut self, session: SessionId, code: ErrorCode, detail: String) {
        let Some(held) = self.forget(session) else { return };
        tracing::info!(%session, trainer = %held.trainer, %code, detail, "training ended");
        if let Some(link) = held.link {
            let answer = TrainingAnswer::Error { code, detail };
            self.outputs.push_back(Output::Send { link, answer });
            self.outputs.push_back(Output::Close { link });
        }
    }

    fn forget(&mut self, session: SessionId) -> Option<Held> {
        let held = self.sessions.remove(&session)?;
        self.admission.bytes_free += held.bytes;
        if let Some(link) = held.link {
            self.links.remove(&link);
        }
        if self.sessions.values().all(|other| other.trainer != held.trainer) {
            self.turns.remove(&held.trainer);
        }
        if held.begun {
            self.forgotten.push_back(session);
        }
        Some(held)
    }
}

#[cfg(test)]
mod tests;
