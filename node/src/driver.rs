//! The body of [`umbel_coordinator::server`]: links, the compute thread and the clock against the
//! machine.
//!
//! One task owns the machine. Every link has a task that reads and one that writes; the machine's
//! task waits for none of them, so a peer that does not read delays nobody but itself.

mod adapters;
mod dials;
mod links;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use umbel_client::clock::Clock;
use umbel_coordinator::server::{Input, LinkId, Output, Server, ShardId};
use umbel_engine::Device;
use umbel_net::Network;
use umbel_protocol::compression::Packing;
use umbel_protocol::inference::{ClientMessage, NextHop, ServerMessage, Step};
use umbel_protocol::{PeerId, SessionId, Span};
use umbel_shard::ModelConfig;

use crate::compute::{Command, Compute, Computed, Shard, TableWanted};
use crate::measure;
use crate::metrics::server::Counters;
use adapters::Adapters;
use dials::Dials;
pub(crate) use links::EVENTS_WAITING_MAX;
use links::{Steps, Terms};

/// Shards of which it is still to be heard that nobody uses them: a server holds two at once.
const DRAINED_WAITING_MAX: usize = 8;

/// How long the task that owns the machine may compute itself, and with it the thread of all links
/// stand still: what is heard meanwhile would wait for the engine anyway, but for pings, and peers
/// who measure by them how far away this server is take the shortest of several. Two wakes of a thread,
/// which are saved, take 40 microseconds, and 80 where the weights have pushed all else out of the caches.
const PASS_HERE_MAX: Duration = Duration::from_millis(10);

/// What happens on the links and in the engine.
enum Event {
    Accepted { link: LinkId, open: OpenLink },
    Received { link: LinkId, from: PeerId, message: ClientMessage },
    Pushed { from: PeerId, step: Step, close: watch::Sender<bool> },
    Computed(Computed),
    LinkClosed { link: LinkId },
    PushFailed { session: SessionId, to: SessionId, link: u64, detail: String },
    Serve { id: ShardId, span: Span, shard: Box<Shard> },
    Drain,
    Preparing { session: SessionId },
    Prepared { session: SessionId },
}

/// What a server has to spare, for its announcements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tokens of KV cache that no session has reserved.
    pub kv_tokens_free: u32,
    /// Steps that wait or are being computed.
    pub queue_depth: u32,
    /// How long one token takes through one block, smoothed; `None` before the first.
    pub decode_per_block: Option<Duration>,
    /// Pages that are kept for later sessions; nobody else is told, but what they took can go back
    /// to the system when they are fewer.
    pub pages_kept: usize,
}

/// Runs the machine of one server.
pub struct Driver {
    server: Server,
    network: Network,
    compute: Compute,
    adapters: Adapters,
    terms: Terms,
    dials: Dials,
    links: BTreeMap<LinkId, OpenLink>,
    /// Whose the sessions are that are open, and how many tokens they may have.
    clients: BTreeMap<SessionId, (PeerId, u32)>,
    /// By the session's name here and at the next hop.
    pushes: BTreeMap<(SessionId, SessionId), PushLink>,
    push_links: u64,
    drained: mpsc::Sender<ShardId>,
    tell: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    load: watch::Sender<Load>,
    counters: Counters,
    /// How long one token takes through one block, smoothed.
    decode: Option<Duration>,
    /// How long a pass takes that draws one token, smoothed: the head takes as long as several blocks.
    drawing: Option<Duration>,
    /// The job that the engine works on, where it is one token and alone in its pass: what it takes with
    /// others says nothing of how long it takes by itself.
    alone: Option<Alone>,
    clock: Clock,
}

/// A token that is alone in its pass.
#[derive(Debug, Clone, Copy)]
struct Alone {
    blocks: u32,
    /// Whether the next one is drawn from it.
    draws: bool,
}

/// A link to a next hop.
struct PushLink {
    /// Which of all that there have been: what is said of an earlier one comes too late.
    number: u64,
    peer: PeerId,
    steps: Steps,
    task: AbortHandle,
}

impl Drop for PushLink {
    fn drop(&mut self) {
        // What still waits is outdated; and a client that has its results redirected again and
        // again must not leave dials behind.
        self.task.abort();
    }
}

struct OpenLink {
    peer: PeerId,
    answers: mpsc::Sender<ServerMessage>,
    close: watch::Sender<bool>,
}

/// How the engine tells the driver that a job is done.
#[derive(Clone)]
pub struct Completion(mpsc::Sender<Event>);

impl Completion {
    /// Hands a result in; called from the compute thread.
    pub fn done(&self, computed: Computed) {
        // The driver ends before the compute thread does; then nobody waits for the result.
        let _ended = self.0.blocking_send(Event::Computed(computed));
    }
}

/// What the rest of the node asks of a driver that runs.
#[derive(Clone)]
pub struct Handle {
    tell: mpsc::Sender<Event>,
}

impl Handle {
    /// Opens sessions on other blocks from now on.
    pub async fn serve(&self, id: ShardId, span: Span, shard: Shard) {
        let shard = Box::new(shard);
        // A driver that has ended serves nothing any more.
        let _ended = self.tell.send(Event::Serve { id, span, shard }).await;
    }

    /// Opens no session any more, and asks the clients to leave.
    pub async fn drain(&self) {
        let _ended = self.tell.send(Event::Drain).await;
    }
}

/// The queue through which everything reaches the driver.
pub struct Events {
    tell: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
}

impl Events {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        let (tell, events) = mpsc::channel(EVENTS_WAITING_MAX);
        Self { tell, events }
    }

    /// The end of it for the rest of the node.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { tell: self.tell.clone() }
    }

    /// The end of it for the engine.
    #[must_use]
    pub fn completion(&self) -> Completion {
        Completion(self.tell.clone())
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Driver {
    /// A driver that listens for links as soon as it runs, and where it says which blocks no
    /// session uses any more.
    #[must_use]
    pub fn new(
        server: Server,
        network: Network,
        compute: Compute,
        events: Events,
    ) -> (Self, mpsc::Receiver<ShardId>) {
        let (drained, drained_shards) = mpsc::channel(DRAINED_WAITING_MAX);
        let load = watch::Sender::new(load(&server, None));
        let Events { tell, events } = events;
        let driver = Self {
            server,
            network,
            compute,
            adapters: Adapters::default(),
            terms: Terms::new(),
            dials: Dials::default(),
            links: BTreeMap::new(),
            clients: BTreeMap::new(),
            pushes: BTreeMap::new(),
            push_links: 0,
            drained,
            tell,
            events,
            load,
            counters: Counters::default(),
            decode: None,
            drawing: None,
            alone: None,
            clock: Clock::start(),
        };
        (driver, drained_shards)
    }

    /// The same for a machine that takes adapters, for blocks of `model`, and nothing larger than these need.
    #[must_use]
    pub fn adapting(self, model: ModelConfig) -> Self {
        let terms = Terms { payload_bytes_max: links::payload_bytes_max(&model), ..self.terms };
        Self { adapters: Adapters::of(model), terms, ..self }
    }

    /// The same, where `device` computes, if it has threads: they wake as soon as something comes to be
    /// computed.
    #[must_use]
    pub fn rousing(self, device: Option<Device>) -> Self {
        Self { terms: Terms { device, ..self.terms }, ..self }
    }

    /// What is counted, for who wants to see it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// What the server has to spare, as it changes.
    #[must_use]
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.subscribe()
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// Where links of the session or push protocol are accepted elsewhere already.
    pub async fn run(mut self) -> Result<(), umbel_net::AcceptError> {
        let _acceptors = links::accept(&self.network, &self.tell, &self.terms)?;
        loop {
            let deadline = self.server.poll_timeout();
            tokio::select! {
                event = self.events.recv() => {
                    self.handle(event.expect("the driver itself holds a sender"));
                }
                () = self.clock.wait_until(deadline) => self.server.handle_timeout(self.clock.now()),
            }
            while self.begin_pass().await {
                // What it came to goes out before the next.
                tokio::task::yield_now().await;
            }
            self.counters.sessions(self.server.session_count());
            let load = load(&self.server, self.decode);
            self.load.send_if_modified(|last| std::mem::replace(last, load) != load);
        }
    }

    /// Does what the machine wants, and has the next pass computed, if there is one. Whether that was done
    /// here: then another may begin.
    async fn begin_pass(&mut self) -> bool {
        self.drain();
        if self.server.is_shared(self.clock.now()) {
            // What the last pass came to goes out, and what others have sent meanwhile is read, so that one
            // pass serves all of them.
            tokio::task::yield_now().await;
        }
        // Not endlessly, however fast they come.
        for _ in 0..EVENTS_WAITING_MAX {
            let Ok(event) = self.events.try_recv() else { break };
            self.handle(event);
            // One small message may have a whole journal sent; those of many must not pile up.
            self.drain();
        }
        self.server.begin_pass(self.clock.now());
        self.drain()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted { link, open } => {
                self.links.insert(link, open);
            }
            // What waited behind the message for which its link was closed: a session that it opened
            // would have no link whose end ends it.
            Event::Received { link, .. } if !self.links.contains_key(&link) => {}
            Event::Received { link, from, message: ClientMessage::Open(_) }
                if self.compute.is_behind() =>
            {
                tracing::warn!(%from, "closing a client's link: it opens sessions faster than can be");
                self.close(link);
            }
            Event::Received { link, from, message } => self.received(link, from, message),
            Event::Pushed { from, step, close } => {
                let checked = self.adapters.check(&step);
                let pushed = Input::Pushed { from, step };
                let result = checked.and_then(|()| self.server.handle(pushed, self.clock.now()));
                if let Err(violation) = result {
                    tracing::warn!(%from, %violation, "closing a server's link");
                    self.counters.violation();
                    close.send_replace(true);
                }
            }
            Event::Computed(Computed { job, results, compute }) => {
                self.counters.pass_over(compute);
                match self.alone.take() {
                    Some(Alone { draws: true, .. }) => {
                        self.drawing = Some(measure::smooth(self.drawing, compute, 1));
                    }
                    Some(Alone { blocks, draws: false }) => {
                        self.decode = Some(measure::smooth(self.decode, compute, blocks));
                    }
                    None => {}
                }
                self.tell_server(Input::Computed { job, results, compute });
            }
            Event::LinkClosed { link } => self.close(link),
            Event::PushFailed { session, to, link, detail } => {
                if self.pushes.get(&(session, to)).is_some_and(|push| push.number == link) {
                    self.counters.push_failed();
                    self.tell_server(Input::PushFailed { session, to, detail });
                }
            }
            Event::Serve { id, span, shard } => {
                self.compute.tell(Command::Add { id, shard });
                self.tell_server(Input::Serve { shard: id, span });
            }
            Event::Drain => self.tell_server(Input::Drain),
            Event::Preparing { session } => {
                if let Some((link, message)) = self.adapters.still_preparing(session) {
                    self.send(link, message);
                }
            }
            Event::Prepared { session } => {
                if let Some((link, message)) = self.adapters.prepared(session) {
                    self.send(link, message);
                }
            }
        }
    }

    fn received(&mut self, link: LinkId, from: PeerId, message: ClientMessage) {
        let checked = match &message {
            ClientMessage::Step(step) => self.adapters.check(step),
            ClientMessage::Open(_)
            | ClientMessage::Close { .. }
            | ClientMessage::Redirect(_)
            | ClientMessage::Adopt(_)
            | ClientMessage::Ping { .. }
            | ClientMessage::Keep(_)
            | ClientMessage::Draw(_)
            | ClientMessage::Adapter(_) => Ok(()),
        };
        let received = Input::Received { link, from, message };
        let result = checked.and_then(|()| self.server.handle(received, self.clock.now()));
        if let Err(violation) = result {
            tracing::warn!(%from, %violation, "closing a client's link");
            self.counters.violation();
            self.close(link);
        }
    }

    /// Tells the machine of something that no peer said, so that nobody can be at fault.
    fn tell_server(&mut self, input: Input) {
        let result = self.server.handle(input, self.clock.now());
        debug_assert!(result.is_ok(), "only what a peer says can break the protocol");
    }

    fn close(&mut self, link: LinkId) {
        if let Some(open) = self.links.remove(&link) {
            open.close.send_replace(true);
            self.tell_server(Input::LinkClosed { link });
        }
    }

    /// Whether a pass was computed here.
    fn drain(&mut self) -> bool {
        let mut computed = false;
        while let Some(output) = self.server.poll() {
            match output {
                Output::Send { link, message } => self.send(link, message),
                Output::Connect { session, next, packing } => self.connect(session, next, packing),
                Output::Push { session, to, step } => self.push(session, to, step),
                Output::Disconnect { session, to } => {
                    self.pushes.remove(&(session, to));
                }
                Output::OpenCache {
                    session,
                    shard,
                    blocks,
                    tokens,
                    results,
                    cache,
                    prefix,
                    adapter,
                } => {
                    self.counters.session_opened();
                    let table = TableWanted { shard, blocks, tokens, cache };
                    let adapter =
                        adapter.map(|adapter| self.adapters.open(session, adapter, &self.tell));
                    let open = Command::Open { session, table, results, prefix, adapter };
                    self.compute.tell(open);
                }
                Output::Adapter(order) => self.adapters.order(order),
                Output::Pages(orders) => self.compute.tell(Command::Pages(orders)),
                Output::Compute(batch) => {
                    let tokens = batch.jobs.iter().map(|job| u64::from(job.hidden.shape()[0]));
                    self.counters.pass_begun(tokens.sum());
                    self.alone = match batch.jobs.as_slice() {
                        [job] if job.hidden.shape()[0] == 1 => Some(Alone {
                            blocks: job.blocks.block_count(),
                            draws: job.draw.is_some(),
                        }),
                        _ => None,
                    };
                    computed |= self.compute(Command::Pass(batch));
                }
                Output::Forget { session } => {
                    let _never_heard = self.adapters.prepared(session);
                    self.clients.remove(&session);
                    self.compute.tell(Command::Forget { session });
                }
                Output::Drained { shard } => {
                    self.compute.tell(Command::Drop { id: shard });
                    // Nobody may wait for it, and who does has a timeout.
                    let _unheard = self.drained.try_send(shard);
                }
            }
        }
        computed
    }

    fn send(&mut self, link: LinkId, message: ServerMessage) {
        let Some(open) = self.links.get(&link) else {
            return;
        };
        if let ServerMessage::Opened { session, tokens_max, .. } = &message {
            self.clients.insert(*session, (open.peer, *tokens_max));
        }
        match open.answers.try_send(self.adapters.withhold(link, message)) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => {
                tracing::warn!(link = link.0, "a client leaves its answers unread");
            }
            // It is gone, and its reader will say so.
            Err(TrySendError::Closed(_)) => {}
        }
        self.close(link);
    }

    fn connect(&mut self, session: SessionId, next: NextHop, packing: Packing) {
        // Without one its link has closed, and with it the session.
        let Some((client, tokens_max)) = self.clients.get(&session).copied() else {
            return;
        };
        let (number, to, peer) = (self.push_links, next.session, next.peer);
        self.push_links += 1;
        let way = links::Way { session, number, next, packing, client, tokens_max };
        let (steps, task) = links::push((&self.network, &self.dials), way, self.tell.clone());
        self.pushes.insert((session, to), PushLink { number, peer, steps, task });
    }

    fn push(&mut self, session: SessionId, to: SessionId, mut step: Step) {
        let Some(push) = self.pushes.get(&(session, to)) else {
            return;
        };
        if let Some(own) = step.trace.last_mut() {
            own.link_round_trip = self.network.round_trip(push.peer);
        }
        if !push.steps.push(step) {
            let detail = format!("{} leaves what is pushed to it unread", push.peer);
            self.counters.push_failed();
            self.tell_server(Input::PushFailed { session, to, detail });
        }
    }

    /// Has a pass computed: here, where it is short and nobody else is about to send anything, else by the
    /// engine's thread. Whether it is done.
    fn compute(&mut self, pass: Command) -> bool {
        let expected = self.alone.and_then(|Alone { blocks, draws }| {
            if draws { self.drawing } else { self.decode.map(|each| each * blocks) }
        });
        let is_short = expected.is_some_and(|expected| expected <= PASS_HERE_MAX);
        // Where several sessions decode, it matters when each comes back: passes wait for those that soon do.
        if !is_short || self.server.is_shared(self.clock.now()) {
            self.compute.tell(pass);
            return false;
        }
        match self.compute.run_here(pass) {
            Ok(Some(computed)) => self.handle(Event::Computed(computed)),
            Ok(None) => {}
            Err(pass) => {
                self.compute.tell(pass);
                return false;
            }
        }
        true
    }
}

fn load(server: &Server, decode: Option<Duration>) -> Load {
    Load {
        kv_tokens_free: server.kv_tokens_free(),
        queue_depth: u32::try_from(server.queue_depth()).unwrap_or(u32::MAX),
        decode_per_block: decode,
        pages_kept: server.pages_kept(),
    }
}
