//! The server's role: the sessions of all its clients, and whose steps are computed next.
//!
//! The machine admits sessions by its KV budget, keeps the order of steps, hands one pass at a time
//! to the accelerator, with steps of as many sessions as have some, and sends each result to the
//! next hop, or to the client from the last one.
//! Of what it sends it keeps a journal, from which it refills whoever takes the next hop's place.

mod adapters;
mod admission;
mod drain;
mod mend;
mod pass;
mod prefix;
mod ring;
mod schedule;
mod served;
mod share;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use umbel_protocol::compression::Packing;
use umbel_protocol::error::{ErrorCode, ProtocolViolation};
use umbel_protocol::inference::{
    ClientMessage, NextHop, OpenSession, ServerMessage, SessionError, Step,
};
use umbel_protocol::keeping::SharedPages;
use umbel_protocol::{DType, ModelId, PeerId, SessionId, Span, StepId, Tensor};

use crate::session::STEPS_IN_FLIGHT_MAX;
use crate::time::Time;
use adapters::Adapters;
use admission::Refusal;
use drain::Shards;
use prefix::Pages;
use ring::Thin;
use schedule::Schedule;
use served::Served;

pub use adapters::{ADAPTER_LEASE, ADAPTER_PART_LEASE, AdapterKey, AdapterOrder, AdapterRoom};
pub use prefix::{IDLE_KEPT, PageId, PageOrder};
pub use ring::DrawJob;
pub use schedule::{DECODE_TOKENS_MAX, PART_TOKENS_MAX};

/// Most sessions at once. Each holds a few hundred bytes here; its KV cache and its journal are
/// budgeted apart.
pub const SESSIONS_MAX: usize = 256;

/// Sessions that a client may have whatever the others have.
pub const SESSIONS_PER_CLIENT: usize = 64;

/// Places that are left to the others by a client that has more: a gateway, which is one client for
/// hundreds of people, may use a server that nobody else does, and everybody else still comes in.
pub const SESSIONS_LEFT_TO_OTHERS: usize = SESSIONS_MAX / 4;

/// Most steps of one session that wait: the replay of a context of 32,768 tokens in chunks of 512,
/// and the steps that a client has under way. Each begins after the one before it, since a step
/// takes the place of what waits from its position on.
pub const STEPS_QUEUED_PER_SESSION_MAX: usize = 64 + STEPS_IN_FLIGHT_MAX;

/// How long a session keeps its cache without a step. A reader may think for minutes between two
/// questions; Petals gives 5 minutes.
pub const SESSION_LEASE: Duration = Duration::from_secs(30 * 60);

/// How long clients have to move away from blocks that are given up: a replay of a long context
/// through slow servers takes tens of seconds.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What a server offers.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The server itself.
    pub peer: PeerId,
    /// The model that it serves.
    pub model: ModelId,
    /// The blocks that it serves first, as shard 0.
    pub span: Span,
    /// Blocks of the whole model.
    pub block_count: u32,
    /// Tokens that the model knows, where the server holds the ends of it that its span touches.
    pub vocabulary_size: Option<u32>,
    /// Elements of one token's hidden state.
    pub hidden_size: u32,
    /// Elements of a head of keys or values.
    pub head_size: u32,
    /// Most tokens of one session: the context of the model.
    pub context_tokens: u32,
    /// Tokens of KV cache in binary32 for all sessions together, each counted once per block of the
    /// span.
    pub kv_tokens_max: u32,
    /// The pages that keys and values of all sessions share, where they are of one size.
    pub cache: Option<SharedPages>,
    /// Bytes of results that are kept for the failure of a next hop; beyond them the largest
    /// journal is forgotten, and its session is refilled from further upstream.
    pub journal_bytes_max: usize,
    /// Whether pages are kept for later sessions of the same client.
    pub keeps_pages: bool,
    /// Room for the adapters of sessions; `None` where they cannot have any.
    pub adapters: Option<AdapterRoom>,
}

/// A link to a client, as the body numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A pass of the accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Blocks that the server holds: one lot, or two while it moves from one span to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardId(pub u32);

/// What happens to a server.
#[derive(Debug)]
pub enum Input {
    /// A client said something on its link.
    Received {
        /// The link that it came on, which is also where answers go.
        link: LinkId,
        /// Who is at the other end.
        from: PeerId,
        /// What was said.
        message: ClientMessage,
    },
    /// Another server pushed a step.
    Pushed {
        /// Who pushed.
        from: PeerId,
        /// What was pushed.
        step: Step,
    },
    /// The accelerator has finished the pass that it was given.
    Computed {
        /// Which one.
        job: JobId,
        /// For each job of the pass, in order: what leaves the session's last block here, or why
        /// nothing does.
        results: Vec<Result<Tensor, ComputeFailure>>,
        /// How long the accelerator worked on the pass.
        compute: Duration,
    },
    /// A client's link is gone, and its sessions with it.
    LinkClosed {
        /// Which one.
        link: LinkId,
    },
    /// The next hop of a session cannot be reached, or its link closed.
    PushFailed {
        /// Whose.
        session: SessionId,
        /// What the session is called there.
        to: SessionId,
        /// What the network said.
        detail: String,
    },
    /// Other blocks have been loaded: new sessions open on them, and the clients of those before
    /// are asked to leave.
    Serve {
        /// Their name, never used before.
        shard: ShardId,
        /// The blocks. Their sessions share the KV budget with those that are still elsewhere.
        span: Span,
    },
    /// The server is to leave: no session opens any more, and the clients are asked to leave.
    Drain,
}

/// A job that the accelerator refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ComputeFailure {
    /// What to tell the client.
    pub code: ErrorCode,
    /// In words.
    pub detail: String,
}

/// What a server wants done.
#[derive(Debug)]
pub enum Output {
    /// Answer a client.
    Send {
        /// On this link.
        link: LinkId,
        /// With this.
        message: ServerMessage,
    },
    /// Open a link to the next hop of a session, so that its first step need not wait for it.
    Connect {
        /// Whose.
        session: SessionId,
        /// To whom, and what the session is called there.
        next: NextHop,
        /// How large results are to be written.
        packing: Packing,
    },
    /// Hand a step on over the link that was opened for this session and name.
    Push {
        /// Whose.
        session: SessionId,
        /// What it is called there.
        to: SessionId,
        /// What.
        step: Step,
    },
    /// Close the link to a next hop.
    Disconnect {
        /// Whose.
        session: SessionId,
        /// What it is called there.
        to: SessionId,
    },
    /// Make room for a session's keys and values.
    OpenCache {
        /// Whose.
        session: SessionId,
        /// On which shard.
        shard: ShardId,
        /// In these blocks.
        blocks: Span,
        /// For this many tokens.
        tokens: u32,
        /// How its results are written.
        results: DType,
        /// How its keys and values are kept.
        cache: DType,
        /// Pages that are in it from the beginning on.
        prefix: Vec<PageId>,
        /// What is added to the matrices, all of whose values were written.
        adapter: Option<AdapterKey>,
    },
    /// What becomes of adapters.
    Adapter(AdapterOrder),
    /// What becomes of pages that are kept.
    Pages(Vec<PageOrder>),
    /// Compute a pass; the answer is [`Input::Computed`]. There is never more than one.
    Compute(Batch),
    /// The session is over: free its cache.
    Forget {
        /// Which one.
        session: SessionId,
    },
    /// No session uses a shard that was given up: its blocks may be dropped.
    Drained {
        /// Which one.
        shard: ShardId,
    },
}

/// A pass for the accelerator.
#[derive(Debug)]
pub struct Batch {
    /// Its name in the answer.
    pub id: JobId,
    /// At least one job, and of each session at most one.
    pub jobs: Vec<Job>,
}

/// A step of one session, or some consecutive tokens of it.
#[derive(Debug)]
pub struct Job {
    /// Whose cache it uses.
    pub session: SessionId,
    /// Through which blocks it goes.
    pub blocks: Span,
    /// Where in the cache its first token goes, after what is there from that position on is
    /// forgotten.
    pub position: u32,
    /// What enters, `[tokens, hidden]`; of a thin session before its first block ids, `[tokens, 1]`.
    pub hidden: Tensor,
    /// The token that is to be drawn from what leaves; then its id is the result, `[1, 1]`.
    pub draw: Option<DrawJob>,
}

/// All sessions of one server.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    shards: Shards,
    sessions: BTreeMap<SessionId, Served>,
    schedule: Schedule,
    pages: Pages,
    adapters: Adapters,
    journal_bytes: usize,
    outputs: VecDeque<Output>,
}

impl Server {
    /// A server without sessions.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        Self {
            shards: Shards::new(&config),
            config,
            sessions: BTreeMap::new(),
            schedule: Schedule::default(),
            pages: Pages::default(),
            adapters: Adapters::default(),
            journal_bytes: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Takes note of what happened.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where a peer said what it must not: the body closes the link on which
    /// it was said. Sessions of others are not touched.
    pub fn handle(&mut self, input: Input, now: Time) -> Result<(), ProtocolViolation> {
        match input {
            Input::Received { link, from, message } => self.received(link, from, message, now)?,
            Input::Pushed { from, step } => self.pushed(from, step, now),
            Input::Computed { job, results, compute } => self.computed(job, results, compute, now),
            Input::LinkClosed { link } => self.link_closed(link, now),
            Input::PushFailed { session, to, detail } => self.push_failed(session, to, detail),
            Input::Serve { shard, span } => {
                self.serve(shard, span, now);
            }
            Input::Drain => self.drain(now),
        }
        Ok(())
    }

    /// When [`Server::handle_timeout`] is to be called, and a pass may begin that has waited for sessions, if
    /// nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let lease = self.sessions.values().map(|served| served.last_used + SESSION_LEASE).min();
        let deadlines = [self.drain_deadline(), self.schedule.waits(), self.pages.expires()];
        let deadlines = deadlines.into_iter().chain([self.adapters.deadline()]).flatten();
        lease.into_iter().chain(deadlines).min()
    }

    /// Ends sessions that nobody has used for the length of a lease, and those that have not left
    /// blocks that are given up.
    pub fn handle_timeout(&mut self, now: Time) {
        let idle = |served: &Served| now.since(served.last_used) >= SESSION_LEASE;
        let ended: Vec<_> =
            self.sessions.iter().filter(|(_, served)| idle(served)).map(|(id, _)| *id).collect();
        for session in ended {
            let detail = format!("no step for {} minutes", SESSION_LEASE.as_secs() / 60);
            self.fail(session, None, Refusal::new(ErrorCode::LeaseEnded, detail), now);
        }
        self.end_drain(now);
        self.pages.expire(now);
        self.expire_adapters(now);
    }

    /// What to do next; drain it before waiting, behind [`Server::begin_pass`].
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Tokens of KV cache in binary32 that no session has reserved, on the blocks on which sessions
    /// open.
    #[must_use]
    pub fn kv_tokens_free(&self) -> u32 {
        self.shards.kv_tokens_free()
    }

    /// Steps that wait or are being computed.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.schedule.depth()
    }

    /// Sessions that are open.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes of all journals.
    #[must_use]
    pub const fn journal_bytes(&self) -> usize {
        self.journal_bytes
    }

    fn received(
        &mut self,
        link: LinkId,
        from: PeerId,
        message: ClientMessage,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        match message {
            ClientMessage::Open(open) => self.open(link, from, open, now),
            ClientMessage::Step(step) => self.client_step(link, step, now),
            ClientMessage::Close { session } => self.client_close(link, session, now),
            ClientMessage::Redirect(redirect) => self.redirect(link, redirect),
            ClientMessage::Adopt(adopt) => self.adopt(link, adopt),
            ClientMessage::Ping { session } => self.ping(link, session),
            ClientMessage::Keep(keep) => self.keep(link, keep, now),
            ClientMessage::Draw(draw) => self.draw(link, draw, now),
            ClientMessage::Adapter(part) => self.adapter_part(link, part, now),
        }
    }

    fn open(
        &mut self,
        link: LinkId,
        client: PeerId,
        open: OpenSession,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        // Sessions whose keys and values are kept otherwise than they asked are as exact as the model
        // is computed here.
        let cache = self.config.cache.map_or(open.cache, |pages| pages.kept(open.cache));
        let open = OpenSession { cache, ..open };
        let session = open.session;
        if self.sessions.contains_key(&session) || self.adapters.awaits(session) {
            return Err(ProtocolViolation::Unexpected { message: "Open" });
        }
        if open.adapter.is_none() {
            self.open_with(link, client, open, None, now);
            return Ok(());
        }
        match self.adapter_for(link, client, &open, now) {
            Ok(Some(adapter)) => self.open_with(link, client, open, Some(adapter), now),
            Ok(None) => {}
            Err(refusal) => self.refuse(link, session, None, refusal),
        }
        Ok(())
    }

    /// Whether a session could be opened now.
    fn check(&self, client: PeerId, open: &OpenSession) -> Result<(), Refusal> {
        let [waiting, waiting_of_client] = self.adapters.waiting(client);
        let of_client = self.sessions.values().filter(|served| served.client == client).count();
        let counts = (self.sessions.len() + waiting, of_client + waiting_of_client);
        ring::check_ends(&self.config, open)?;
        self.shards.check(&self.config, open, counts)
    }

    /// Opens a session whose adapter, if it has one, is whole.
    fn open_with(
        &mut self,
        link: LinkId,
        client: PeerId,
        open: OpenSession,
        adapter: Option<AdapterKey>,
        now: Time,
    ) {
        let session = open.session;
        if let Err(refusal) = self.check(client, &open) {
            self.refuse(link, session, None, refusal);
            return;
        }
        self.shards.reserve(&open);
        if let Some(adapter) = adapter {
            self.adapters.use_for_session(adapter);
        }
        tracing::info!(%session, %client, blocks = %open.blocks, tokens = open.tokens_max, "opened");
        let shard = self.shards.current().id;
        let (blocks, tokens) = (open.blocks, open.tokens_max);
        let (results, cache) = (open.results, open.cache);
        let prefix = self.take_over(client, shard, &open);
        let thin = Thin::of(&self.config, &open);
        let (served, next) = Served::new(client, link, shard, (open, thin, adapter), &prefix, now);
        let kept = self.config.keeps_pages.then_some(served.received);
        self.outputs.push_back(Output::OpenCache {
            session,
            shard,
            blocks,
            tokens,
            results,
            cache,
            prefix,
            adapter,
        });
        let adapter = adapter.is_some();
        self.send(link, ServerMessage::Opened { session, tokens_max: tokens, kept, adapter });
        let packing = served.packing;
        self.sessions.insert(session, served);
        if let Some(next) = next {
            self.outputs.push_back(Output::Connect { session, next, packing });
        }
    }

    fn client_step(
        &mut self,
        link: LinkId,
        step: Step,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        let Some(served) = self.sessions.get(&step.session) else {
            self.refuse(link, step.session, Some(step.step), Refusal::not_open());
            return Ok(());
        };
        if served.link != link || served.previous.is_some() {
            return Err(ProtocolViolation::NotAllowed { message: "Step" });
        }
        if let Err((session, step, refusal)) = self.enqueue(step, now) {
            self.fail(session, Some(step), refusal, now);
        }
        Ok(())
    }

    fn client_close(
        &mut self,
        link: LinkId,
        session: SessionId,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        match self.sessions.get(&session) {
            Some(served) if served.link != link => {
                return Err(ProtocolViolation::NotAllowed { message: "Close" });
            }
            Some(_) => {
                self.forget(session, now);
            }
            None if self.waiting_on(link).contains(&session) => {
                self.give_up_waiting(session, now);
            }
            None => {}
        }
        self.outputs.push_back(Output::Send { link, message: ServerMessage::Closed { session } });
        Ok(())
    }

    fn link_closed(&mut self, link: LinkId, now: Time) {
        let of_link = |served: &Served| served.link == link;
        let ended: Vec<_> =
            self.sessions.iter().filter(|(_, served)| of_link(served)).map(|(id, _)| *id).collect();
        for session in ended {
            self.forget(session, now);
        }
        for session in self.waiting_on(link) {
            self.give_up_waiting(session, now);
        }
    }

    fn fail(&mut self, session: SessionId, step: Option<StepId>, reason: Refusal, now: Time) {
        let Some(served) = self.forget(session, now) else {
            return;
        };
        let Refusal { code, detail } = &reason;
        tracing::info!(%session, client = %served.client, %code, detail, "session failed");
        self.refuse(served.link, session, step, reason);
    }

    fn forget(&mut self, session: SessionId, now: Time) -> Option<Served> {
        let served = self.sessions.remove(&session)?;
        // A page is kept while its session is there.
        self.order_pages();
        self.shards.release(&served);
        self.schedule.abandon(session);
        self.journal_bytes -= served.journal.bytes();
        for to in served.destinations() {
            self.outputs.push_back(Output::Disconnect { session, to });
        }
        self.outputs.push_back(Output::Forget { session });
        self.pages.release(served.pages.values().copied(), now);
        if let Some((adapter, _)) = served.adapter {
            self.adapters.release(adapter, now);
        }
        self.report_left(served.shard);
        Some(served)
    }

    fn send(&mut self, link: LinkId, message: ServerMessage) {
        self.outputs.push_back(Output::Send { link, message });
    }

    /// Says to whoever is behind `link` why a session, or its step, is not taken.
    fn refuse(
        &mut self,
        link: LinkId,
        session: SessionId,
        step: Option<StepId>,
        Refusal { code, detail }: Refusal,
    ) {
        self.send(link, ServerMessage::Error(SessionError { session, step, code, detail }));
    }
}

#[cfg(test)]
mod tests;
