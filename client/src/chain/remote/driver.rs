//! The body of [`umbel_coordinator::session`]: links, routes and the clock against the machine.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use umbel_coordinator::Hop;
use umbel_coordinator::route::NoRoute;
use umbel_coordinator::session::{
    DrawWanted, HopFailure, HopId, Input, Output, RouteHop, RouteWanted, Session, SessionConfig,
    SessionFailure,
};
use umbel_protocol::inference::{AnswerRows, ClientMessage, HopTiming, ServerMessage};
use umbel_protocol::prefix::{PageDigest, PrefixChain, PrefixSeed};
use umbel_protocol::{ModelId, Tensor};

use super::links::{self, HopLink};
use super::thin::Drawn;
use crate::adapter::NamedAdapter;
use crate::clock::Clock;
use crate::swarm::Swarm;
use crate::swarm::route::{FORGIVEN_AGAIN, Search};

/// Events of all hops that wait for the session: a few of each hop.
const EVENTS_WAITING_MAX: usize = 256;

/// Most failures that are remembered for whoever asks: the newest.
const FAILURES_MAX: usize = 64;

/// How long the farewells may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the caller asks for.
pub(super) enum Command {
    Step(NextStep),
    /// What enters the first block for tokens that servers hold.
    Remember {
        hidden: Tensor,
    },
    /// How tokens are drawn from now on, and who takes them.
    Draw {
        wanted: DrawWanted,
        tell: mpsc::Sender<Result<Drawn, SessionFailure>>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// A step that is to begin.
pub(super) struct NextStep {
    pub(super) position: u32,
    pub(super) hidden: Tensor,
    /// Empty where they are not known.
    pub(super) ids: Vec<u32>,
    pub(super) answer_rows: AnswerRows,
    /// Absent in a thin session, whose tokens come in a row.
    pub(super) answer: Option<Answer>,
}

type Answer = oneshot::Sender<Result<Stepped, SessionFailure>>;

/// A step that went through the whole route.
pub(super) struct Stepped {
    pub(super) hidden: Tensor,
    pub(super) trace: Vec<HopTiming>,
    pub(super) total: Duration,
}

/// What happens to the session.
pub(super) enum Event {
    Message { hop: HopId, message: ServerMessage },
    Lost { hop: HopId, detail: String },
    Routed { needed: bool, found: Result<Vec<RouteHop>, NoRoute> },
}

pub(super) struct Driver {
    swarm: Arc<Swarm>,
    model: ModelId,
    /// As many tokens in binary32 take as much of a server's memory as the session does.
    room_tokens: u32,
    token_bytes: u32,
    /// Names of the session's pages for this side's own use; `None` where it shares nothing.
    pages: Option<PrefixChain>,
    /// What the session is to begin with.
    prefix: Vec<PageDigest>,
    /// What servers are sent that lack it.
    adapter: Option<NamedAdapter>,
    session: Session,
    links: BTreeMap<HopId, HopLink>,
    /// Links over which something may still have to be said.
    closing: JoinSet<()>,
    tell: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    commands: mpsc::Receiver<Command>,
    /// Who waits for the session to open, and wants to know how many tokens it begins with.
    ready: Option<oneshot::Sender<Result<u32, SessionFailure>>>,
    /// It waits until the session accepts it.
    next: Option<NextStep>,
    /// Who waits for the steps under way, in order, and how many tokens each has.
    answers: VecDeque<(Answer, u32)>,
    /// Who takes what a thin session draws.
    drawn: Option<mpsc::Sender<Result<Drawn, SessionFailure>>>,
    is_thin: bool,
    hops: watch::Sender<Vec<Hop>>,
    failures: watch::Sender<Vec<HopFailure>>,
    clock: Clock,
    started: Instant,
    /// When a route was last looked for.
    searched: Option<Instant>,
    /// Since when the steps under way have waited for a server.
    waiting: Option<Instant>,
    /// Whether a server has failed since the last answer.
    troubled: bool,
    /// Whether a step was answered.
    stepped: bool,
    over: bool,
}

impl Driver {
    pub(super) fn new(
        swarm: Arc<Swarm>,
        (config, adapter): (SessionConfig, Option<NamedAdapter>),
        room_tokens: u32,
        commands: mpsc::Receiver<Command>,
        ready: oneshot::Sender<Result<u32, SessionFailure>>,
    ) -> (Self, watch::Receiver<Vec<Hop>>, watch::Receiver<Vec<HopFailure>>) {
        let (tell, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let (hops, failures) = (watch::Sender::new(Vec::new()), watch::Sender::new(Vec::new()));
        let views = (hops.subscribe(), failures.subscribe());
        let mut pages = config.sharing.as_ref().map(|sharing| {
            // Routes are told apart by their hops, so the blocks at which links round say no more.
            let (model, cache, wire) = (config.model, config.cache, config.results);
            PrefixChain::new(PrefixSeed::new(&sharing.secret, model, cache, wire, None))
        });
        let text = config.sharing.as_ref().map_or(&[][..], |sharing| &sharing.tokens);
        let prefix = pages.as_mut().map_or_else(Vec::new, |pages| pages.digests(text).to_vec());
        let clock = swarm.clock();
        let driver = Self {
            swarm,
            model: config.model,
            room_tokens,
            token_bytes: config.token_bytes,
            pages,
            prefix,
            adapter,
            is_thin: config.thin_vocabulary.is_some(),
            drawn: None,
            session: Session::open(config, clock.now()),
            links: BTreeMap::new(),
            closing: JoinSet::new(),
            tell,
            events,
            commands,
            ready: Some(ready),
            next: None,
            answers: VecDeque::new(),
            hops,
            failures,
            clock,
            started: Instant::now(),
            searched: None,
            waiting: None,
            troubled: false,
            stepped: false,
            over: false,
        };
        (driver, views.0, views.1)
    }

    /// Drives the session until it is over, or its caller is gone.
    pub(super) async fn run(mut self) {
        self.drain();
        while !self.over {
            let deadline = self.session.poll_timeout();
            // A step waits for those before it, also where nobody waits for their answers.
            let idle = self.next.is_none();
            tokio::select! {
                // What has come is heard before anybody is given up for silence.
                biased;
                event = self.events.recv() => {
                    self.happen(event.expect("the driver itself holds a sender"));
                }
                command = self.commands.recv(), if idle => match command {
                    Some(Command::Step(next)) => self.next = Some(next),
                    Some(Command::Remember { hidden }) => self.tell(Input::Remember { hidden }),
                    Some(Command::Draw { wanted, tell }) => {
                        self.drawn = Some(tell);
                        self.tell(Input::Draw(wanted));
                    }
                    Some(Command::Close { done }) => {
                        self.close().await;
                        // The caller may not wait for it.
                        let _gone = done.send(());
                        return;
                    }
                    None => {
                        self.close().await;
                        return;
                    }
                },
                () = self.clock.wait_until(deadline) => {
                    let mut contacts = self.swarm.contacts();
                    self.session.handle_timeout(&mut contacts, self.clock.now());
                }
            }
            self.drain();
            self.begin_next();
            self.report_hops();
            while self.closing.try_join_next().is_some() {}
        }
        while self.closing.join_next().await.is_some() {}
    }

    /// Begins the step that waits, if it need not wait any more.
    fn begin_next(&mut self) {
        let accepts = |next: &mut NextStep| self.session.accepts(next.position);
        if let Some(next) = self.next.take_if(accepts) {
            let NextStep { position, hidden, ids, answer_rows, answer } = next;
            if self.answers.is_empty() {
                // What was waited for before is no patience lost to this one.
                self.waiting = None;
            }
            let tokens = hidden.shape().first().copied().unwrap_or(0);
            self.answers.extend(answer.map(|answer| (answer, tokens)));
            self.tell(Input::Step { position, hidden, ids, answer_rows });
            self.drain();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Message { hop, message } => self.tell(Input::Received { hop, message }),
            Event::Lost { hop, detail } => {
                self.links.remove(&hop);
                self.tell(Input::LinkLost { hop, detail });
            }
            Event::Routed { needed, found: Ok(hops) } => self.tell(Input::Routed { needed, hops }),
            Event::Routed { needed, found: Err(no_route) } => {
                self.tell(Input::NoRoute { needed, no_route });
            }
        }
    }

    fn tell(&mut self, input: Input) {
        if let Err(violation) = self.session.handle(input, self.clock.now()) {
            tracing::warn!(%violation, "a server broke the protocol");
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Route(wanted) => self.search(wanted),
                Output::Connect { hop, peer, addresses } => {
                    let (swarm, tell) = (Arc::clone(&self.swarm), self.tell.clone());
                    self.links.insert(hop, links::open(swarm, hop, peer, addresses, tell));
                }
                Output::Send { hop, message } => self.send(hop, message),
                Output::SendAdapter { hop, session, blocks, offset } => {
                    let adapter = self.adapter.as_ref();
                    match adapter.and_then(|adapter| adapter.part(session, blocks, offset)) {
                        Some(part) => self.send(hop, ClientMessage::Adapter(part)),
                        None => self.lose(hop, "it asks for what no adapter has"),
                    }
                }
                Output::Disconnect { hop } => {
                    if let Some(link) = self.links.remove(&hop) {
                        let mut writer = link.close();
                        self.closing.spawn(async move {
                            // A server that reads no more must not be waited for: the task ends here, too.
                            let _late = tokio::time::timeout(FAREWELL, writer.ended()).await;
                        });
                    }
                }
                Output::Ready => {
                    self.report_hops();
                    if let Some(ready) = self.ready.take() {
                        // Its caller may be gone; then the commands end too.
                        let _gone = ready.send(Ok(self.session.taken_over()));
                    }
                }
                Output::Stepped { hidden, trace, total } => {
                    self.recover();
                    if !std::mem::replace(&mut self.stepped, true) {
                        self.remember();
                    }
                    self.swarm.praise(trace.iter().map(|hop| hop.peer));
                    if let Some((answer, tokens)) = self.answers.pop_front() {
                        if tokens == 1 {
                            self.swarm.note_times(&self.session.hops(), &trace, total);
                        }
                        let _gone = answer.send(Ok(Stepped { hidden, trace, total }));
                    }
                }
                Output::Drawn { id, goes_on, trace, total } => {
                    self.recover();
                    self.swarm.praise(trace.iter().map(|hop| hop.peer));
                    if let Some(drawn) = &self.drawn {
                        // Its caller may be gone.
                        let _gone = drawn.try_send(Ok(Drawn { id, goes_on, trace, total }));
                    }
                }
                Output::Blame(failure) => self.blame(failure),
                Output::Full { peer } => self.swarm.note_full(peer),
                Output::Failed(failure) => self.fail(failure),
            }
        }
    }

    fn search(&mut self, wanted: RouteWanted) {
        let (swarm, tell) = (Arc::clone(&self.swarm), self.tell.clone());
        let (begun, needed, now) = (self.ready.is_none(), wanted.needed, Instant::now());
        let searched = self.searched.replace(now);
        let waiting = if begun && needed { *self.waiting.get_or_insert(now) } else { now };
        let search = Search {
            model: self.model,
            tokens_max: self.room_tokens,
            token_bytes: self.token_bytes,
            since: if begun { waiting } else { self.started },
            forgiving_from: searched.map_or(now, |searched| searched + FORGIVEN_AGAIN),
            urgent: begun,
            prefix: if begun { Vec::new() } else { self.prefix.clone() },
            thin: self.is_thin,
            wanted,
        };
        tokio::spawn(async move {
            // A session that is over waits for no server.
            tokio::select! {
                found = swarm.search(search) => {
                    let _over = tell.send(Event::Routed { needed, found }).await;
                }
                () = tell.closed() => {}
            }
        });
    }

    fn send(&mut self, hop: HopId, message: ClientMessage) {
        let peer = self.links.get(&hop).map(|link| link.peer);
        self.swarm.contacts().says(peer, &message);
        let Some(link) = self.links.get(&hop) else {
            return;
        };
        if let ClientMessage::Ping { .. } = message {
            // A process that has ended cannot answer, but its system can.
            self.swarm.probe(link.peer);
        }
        match link.messages.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.lose(hop, "it leaves what is sent to it unread"),
            // The task that writes has ended, and why is on its way as an event.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    fn lose(&mut self, hop: HopId, detail: &str) {
        self.links.remove(&hop);
        self.tell(Input::LinkLost { hop, detail: detail.to_owned() });
    }

    fn blame(&mut self, failure: HopFailure) {
        self.troubled = true;
        tracing::warn!(%failure, "a server has failed");
        self.swarm.blame(&failure);
        self.failures.send_modify(|failures| {
            if failures.len() >= FAILURES_MAX {
                failures.remove(0);
            }
            failures.push(failure);
        });
    }

    /// An answer has come through all hops.
    fn recover(&mut self) {
        self.waiting = None;
        if std::mem::take(&mut self.troubled) {
            let hops = self.session.hops();
            let hops: Vec<_> =
                hops.iter().map(|hop| format!("{} ({})", hop.peer, hop.blocks)).collect();
            tracing::info!(route = hops.join(", "), "the route is whole again");
        }
    }

    fn fail(&mut self, failure: SessionFailure) {
        self.over = true;
        if let Some(ready) = self.ready.take() {
            let _gone = ready.send(Err(failure.clone()));
        }
        if let Some(drawn) = &self.drawn {
            let _gone = drawn.try_send(Err(failure.clone()));
        }
        let waiting = self.next.take().and_then(|next| next.answer);
        let under_way = self.answers.drain(..).map(|(answer, _)| answer);
        for answer in under_way.chain(waiting) {
            let _gone = answer.send(Err(failure.clone()));
        }
    }

    fn report_hops(&self) {
        let hops = self.session.hops();
        self.hops.send_if_modified(|known| {
            let changed = *known != hops;
            *known = hops;
            changed
        });
    }

    /// Takes note of who holds what the session has read, for later ones.
    fn remember(&mut self) {
        let Some(pages) = &mut self.pages else {
            return;
        };
        let text = self.session.text();
        // What it was to begin with need not be what it has read.
        pages.truncate(0);
        self.swarm.remember(self.model, pages.digests(text), self.session.hops());
    }

    async fn close(&mut self) {
        self.remember();
        self.tell(Input::Close);
        self.drain();
        while self.closing.join_next().await.is_some() {}
    }
}
