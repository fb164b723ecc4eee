//! A client of the simulated world: the production machine, and what it is used for.

use std::collections::VecDeque;
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::session::{
    HopFailure, HopId, Input, Output, Session, SessionConfig, SessionFailure, Sharing,
};
use umbel_protocol::inference::{ClientMessage, ServerMessage};
use umbel_protocol::{DType, PeerId, SessionId, Span, Tensor};

use super::links::SessionLink;
use super::talk::Talk;
use super::{Event, Place, Settings, World};
use crate::oracle::{Oracle, VOCABULARY, embed};
use crate::workload::{Plan, Workload};

/// Bytes that a client keeps of what it sent: more than any plan has.
const JOURNAL_BYTES_MAX: usize = 64 << 20;

/// Most failures of hops that a client keeps in words.
const BLAMED_MAX: usize = 64;

/// What goes into the digests of all clients, so that one that is shown another's pages notices.
const SECRET: [u8; 32] = [0x5e; 32];

/// The session's name at the oracle beside the swarm.
pub(super) const REFERENCE: SessionId = SessionId::new(0);

/// A step that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When.
    pub at: Time,
    /// From handing it in.
    pub took: Duration,
    /// Its tokens.
    pub tokens: u32,
}

/// One client with one session after another.
#[derive(Debug)]
pub struct Client {
    /// Its name.
    pub peer: PeerId,
    /// Where it stands.
    pub group: usize,
    /// The process that it belongs to: the sessions of one hear together whether servers are there.
    pub(super) process: usize,
    /// What was answered.
    pub answers: Vec<Answer>,
    /// How sessions ended that failed.
    pub failures: Vec<SessionFailure>,
    /// Hops that failed on the way; the first of them.
    pub blamed: Vec<HopFailure>,
    /// When the first of them failed.
    pub blamed_at: Option<Time>,
    /// Sessions that came to their end.
    pub sessions_done: u32,
    /// Steps that needed no answer, since hops held their tokens.
    pub skipped: usize,
    /// Sessions that have begun.
    pub(super) sessions_begun: u32,
    pub(super) session: Option<Session>,
    pub(super) config: SessionConfig,
    pub(super) plan: Plan,
    /// What follows it, each after a pause.
    more: VecDeque<(Duration, Plan)>,
    workload: Option<(Workload, Random)>,
    /// What the swarm's answers must equal.
    pub(super) reference: Oracle,
    expected: VecDeque<Tensor>,
    /// Of a thin session.
    pub(super) thin: Talk,
    /// The position after the last step that was begun.
    end: u32,
    /// Hops of earlier sessions, so that links have names of their own.
    hops_before: u32,
    hops_used: u32,
    armed: Option<Time>,
}

impl Client {
    pub(super) fn new(index: usize, settings: &Settings, group: usize, plan: Plan) -> Self {
        let mut key = [0xc1; 32];
        key[..8].copy_from_slice(&(index as u64).to_le_bytes());
        Self {
            peer: PeerId::from_public_key(key),
            group,
            process: index,
            answers: Vec::new(),
            failures: Vec::new(),
            blamed: Vec::new(),
            blamed_at: None,
            sessions_done: 0,
            skipped: 0,
            sessions_begun: 0,
            session: None,
            config: SessionConfig {
                model: settings.model,
                block_count: settings.block_count,
                tokens_max: plan.tokens_max,
                token_bytes: u32::try_from(settings.token_bytes).unwrap_or(u32::MAX),
                results: DType::F32,
                cache: DType::F32,
                journal_bytes_max: JOURNAL_BYTES_MAX,
                standby: plan.standby,
                sharing: None,
                thin_vocabulary: (!plan.turns.is_empty()).then_some(VOCABULARY),
                adapter: None,
            },
            plan,
            more: VecDeque::new(),
            workload: None,
            reference: Oracle::default(),
            expected: VecDeque::new(),
            thin: Talk::default(),
            end: 0,
            hops_before: 0,
            hops_used: 0,
            armed: None,
        }
    }

    pub(super) fn with_workload(
        index: usize,
        settings: &Settings,
        group: usize,
        workload: Workload,
        random: Random,
    ) -> Self {
        let mut client = Self::new(index, settings, group, Plan::default());
        client.workload = Some((workload, random));
        client
    }

    pub(super) fn with_more(self, more: VecDeque<(Duration, Plan)>) -> Self {
        Self { more, ..self }
    }

    pub(super) const fn tokens_max(&self) -> u32 {
        self.config.tokens_max
    }

    /// The link of a hop of the session that runs.
    const fn link(&self, client: usize, hop: HopId) -> SessionLink {
        (client, HopId(self.hops_before + hop.0))
    }

    /// What the session is to do next, if it may do so now.
    fn next_input(&mut self) -> Option<Input> {
        let under_way = self.expected.len();
        let Some((position, _)) = self.plan.steps.front() else {
            return (under_way == 0).then_some(Input::Close);
        };
        if under_way > 0 && (under_way >= self.plan.window || *position != self.end) {
            return None;
        }
        let (position, tokens) = self.plan.steps.pop_front()?;
        let (hidden, blocks) = (embed(&tokens), Span::new(0, self.config.block_count));
        let blocks = blocks.expect("a model has blocks");
        let result = self.reference.step(REFERENCE, blocks, position, &hidden);
        let (answer_rows, count) = (self.plan.answer_rows, hidden.shape()[0]);
        self.expected.push_back(result.rows(count - answer_rows.of(count), count));
        self.end = position + count;
        let ids = self.plan.says.as_ref().map_or_else(Vec::new, |_| tokens);
        Some(Input::Step { position, hidden, ids, answer_rows })
    }

    /// Begins where all hops can; what enters the first block before that.
    fn begin(&mut self) -> Option<Input> {
        let held = self.session.as_ref().map_or(0, Session::taken_over);
        let says = self.plan.says.as_ref().filter(|_| held > 0)?;
        let hidden = embed(&says[..held as usize]);
        let (begin, skipped) = self.plan.skip(held);
        self.skipped += skipped;
        self.end = begin;
        if begin > 0 {
            let blocks = Span::new(0, self.config.block_count).expect("a model has blocks");
            let before = hidden.rows(0, begin);
            let _known = self.reference.step(REFERENCE, blocks, 0, &before);
        }
        Some(Input::Remember { hidden })
    }

    /// The plan of the next session, if there is to be one; and when.
    fn next_session(&mut self, now: Time) -> Option<Time> {
        if let Some((pause, plan)) = self.more.pop_front() {
            self.plan = plan;
            return Some(now + pause);
        }
        let (workload, random) = self.workload.as_mut()?;
        let at = now + workload.pause.draw(random);
        (at < workload.until && self.sessions_begun < workload.sessions).then_some(at)
    }
}

impl World {
    pub(super) fn start_client(&mut self, client: usize) {
        let of = &mut self.clients[client];
        if let Some((workload, random)) = &mut of.workload {
            of.plan = workload.plan(random);
        }
        of.config.tokens_max = of.plan.tokens_max;
        of.config.standby = of.plan.standby;
        let says = of.plan.says.clone();
        of.config.sharing = says.map(|tokens| Sharing { secret: SECRET, tokens });
        let blocks = Span::new(0, of.config.block_count).expect("a model has blocks");
        of.reference.open(REFERENCE, blocks);
        of.sessions_begun += 1;
        of.hops_before += of.hops_used;
        of.hops_used = 0;
        of.session = Some(Session::open(of.config.clone(), self.now));
        self.drive_client(client);
    }

    pub(super) fn tell_client(&mut self, client: usize, input: Input) {
        if let Some(session) = &mut self.clients[client].session {
            let result = session.handle(input, self.now);
            assert!(result.is_ok() || self.totals.lies > 0, "honest servers keep to the protocol");
            self.totals.violations += u64::from(result.is_err());
            self.drive_client(client);
        }
    }

    /// A server's message arrives, which all sessions of the process hear.
    pub(super) fn answered(&mut self, link: SessionLink, message: ServerMessage) {
        if let Some(end) = self.links.session(link) {
            let contacts = &mut self.contacts[self.clients[link.0].process];
            contacts.hears(self.hosts[end.server].peer, &message, self.now);
        }
        self.tell_client_of(link, |hop| Input::Received { hop, message });
    }

    /// Tells the session to which a link belongs, if that is still the one that runs.
    pub(super) fn tell_client_of(&mut self, link: SessionLink, input: impl FnOnce(HopId) -> Input) {
        let (client, hop) = link;
        if let Some(hop) = hop.0.checked_sub(self.clients[client].hops_before) {
            self.tell_client(client, input(HopId(hop)));
        }
    }

    pub(super) fn client_timer(&mut self, client: usize) {
        let of = &mut self.clients[client];
        if of.armed != Some(self.now) {
            return;
        }
        of.armed = None;
        if let Some(session) = &mut of.session {
            session.handle_timeout(&mut self.contacts[of.process], self.now);
            self.drive_client(client);
        }
    }

    fn drive_client(&mut self, client: usize) {
        let mut over = false;
        while let Some(output) = self.clients[client].session.as_mut().and_then(Session::poll) {
            let of = &mut self.clients[client];
            match output {
                Output::Route(wanted) => self.ask_route(client, wanted),
                Output::Connect { hop, peer, .. } => self.connect_hop(client, hop, peer),
                Output::Send { hop, message } => self.send_to_hop(client, hop, message),
                Output::SendAdapter { .. } => unreachable!("no session here has an adapter"),
                Output::Disconnect { hop } => {
                    let link = of.link(client, hop);
                    if let Some(end) = self.links.session(link) {
                        let event = Event::SessionClosed { link };
                        self.send(Place::Client(client), Place::Server(end.server), 0, event);
                    }
                }
                Output::Ready if of.is_thin() => over |= self.next_turn(client),
                Output::Ready => {
                    let remember = of.begin();
                    self.totals.tokens_shared += u64::from(self.clients[client].end);
                    if let Some(input) = remember
                        && let Some(session) = &mut self.clients[client].session
                    {
                        let result = session.handle(input, self.now);
                        assert_eq!(result, Ok(()), "the client does not wrong itself");
                    }
                    over |= self.next_steps(client);
                }
                Output::Stepped { hidden, total, .. } => {
                    let (at, took, tokens) = (self.now, total, hidden.shape()[0]);
                    if of.expected.pop_front() != Some(hidden) {
                        self.broken(format!("client {client}: an answer is not the oracle's"));
                    }
                    self.clients[client].answers.push(Answer { at, took, tokens });
                    over |= self.next_steps(client);
                }
                Output::Drawn { id, goes_on, total, .. } => {
                    over |= self.drawn(client, (id, goes_on), total);
                }
                Output::Blame(failure) => {
                    self.totals.blames += 1;
                    of.blamed_at.get_or_insert(self.now);
                    if of.blamed.len() < BLAMED_MAX {
                        of.blamed.push(failure);
                    }
                }
                Output::Full { .. } => {}
                Output::Failed(failure) => {
                    of.failures.push(failure);
                    over = true;
                }
            }
        }
        if over {
            self.end_session(client);
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

    fn connect_hop(&mut self, client: usize, hop: HopId, peer: PeerId) {
        let end = self.end_of(peer);
        let of = &mut self.clients[client];
        of.hops_used = of.hops_used.max(hop.0 + 1);
        let link = of.link(client, hop);
        let class = self.links.class(of.group, self.hosts[end.server].group);
        if class.dialable {
            let ends = (self.seat(Place::Client(client)), self.seat(Place::Server(end.server)));
            self.links.dial(ends.0, ends.1, self.now);
            self.links.open_session(link, end);
        } else {
            self.queue.plan(self.now + class.delay * 2, Event::LinkLost { link });
        }
    }

    fn send_to_hop(&mut self, client: usize, hop: HopId, message: ClientMessage) {
        let process = self.clients[client].process;
        let link = self.clients[client].link(client, hop);
        let end = self.links.session(link);
        let peer = end.map(|end| self.hosts[end.server].peer);
        self.contacts[process].says(peer, &message);
        if let Some(end) = end {
            if let ClientMessage::Step(step) = &message {
                self.note_step(step);
            }
            let frame = message.clone().encode();
            self.trace.sent(&frame);
            let bytes = self.frame_bytes(&frame);
            let event = Event::Session { link, message };
            self.send(Place::Client(client), Place::Server(end.server), bytes, event);
        }
    }

    /// Begins the next steps, or closes the session where there is none; whether it did.
    fn next_steps(&mut self, client: usize) -> bool {
        while let Some(input) = self.clients[client].next_input() {
            let closes = matches!(input, Input::Close);
            if let Some(session) = &mut self.clients[client].session {
                let result = session.handle(input, self.now);
                assert_eq!(result, Ok(()), "the client does not wrong itself");
            }
            if closes {
                self.clients[client].sessions_done += 1;
                return true;
            }
            self.endanger(client);
        }
        false
    }

    fn end_session(&mut self, client: usize) {
        let now = self.now;
        let of = &mut self.clients[client];
        (of.session, of.armed, of.end) = (None, None, 0);
        of.expected.clear();
        of.reference.forget(REFERENCE);
        match of.next_session(now) {
            Some(at) => self.queue.plan(at, Event::Start { client }),
            None => self.busy_clients -= 1,
        }
    }
}
