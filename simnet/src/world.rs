//! The world: clients, servers, the links between them, what fails, and what happens next.

mod client;
mod fault;
mod route;
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::server::{LinkId, ServerConfig};
use umbel_coordinator::session::{HopId, Input, RouteWanted};
use umbel_protocol::inference::{ClientMessage, ServerMessage, Step};
use umbel_protocol::{ModelId, PeerId, SessionId};

use crate::host::{Condition, Host, Speed};
use crate::link::Link;
use crate::queue::Queue;
use crate::seed::Seed;

pub use client::{Client, Plan};
pub use fault::Fault;

/// Most events of one run: a run that needs more does not end.
const EVENTS_MAX: usize = 5_000_000;

/// Delay, jitter and bandwidth of every link of a world.
#[derive(Debug, Clone, Copy)]
pub struct Links {
    /// One way.
    pub delay: Duration,
    /// Added by chance, at most.
    pub jitter: Duration,
    /// Bytes that leave in a second.
    pub bytes_per_second: f64,
}

/// A place in the world: a client or a server, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Client(usize),
    Server(usize),
}

/// A session link, as both its ends number it: the client and its hop.
type SessionLink = (usize, HopId);

/// A push link: the server that pushes, its name of the session, and the other server's name.
type PushLink = (usize, SessionId, SessionId);

#[derive(Debug)]
pub enum Event {
    Session { link: SessionLink, message: ClientMessage },
    SessionClosed { link: SessionLink },
    Pushed { link: PushLink, step: Step },
    Answer { link: SessionLink, message: ServerMessage },
    LinkLost { link: SessionLink },
    PushLost { link: PushLink },
    Computed { server: usize, life: u32 },
    ServerTimer { server: usize, life: u32 },
    ClientTimer { client: usize },
    Route { client: usize, wanted: RouteWanted, since: Time },
    Start { client: usize },
    Fault(Fault),
}

/// The far end of a link: which server, in which of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    server: usize,
    life: u32,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// The servers.
    pub hosts: Vec<Host<Event>>,
    /// The clients.
    pub clients: Vec<Client>,
    /// The moment of the event that happened last.
    pub now: Time,
    model: ModelId,
    block_count: u32,
    links: Links,
    ways: BTreeMap<(Place, Place), Link>,
    sessions: BTreeMap<SessionLink, End>,
    pushes: BTreeMap<PushLink, End>,
    peers: BTreeMap<PeerId, usize>,
    queue: Queue<Event>,
    jitter: Random,
    routes: Random,
    names: Random,
    trace: Sha256,
}

impl World {
    /// A world without anybody in it.
    #[must_use]
    pub fn new(seed: Seed, model: ModelId, block_count: u32, links: Links) -> Self {
        Self {
            hosts: Vec::new(),
            clients: Vec::new(),
            now: Time::START,
            model,
            block_count,
            links,
            ways: BTreeMap::new(),
            sessions: BTreeMap::new(),
            pushes: BTreeMap::new(),
            peers: BTreeMap::new(),
            queue: Queue::default(),
            jitter: seed.stream("jitter"),
            routes: seed.stream("routes"),
            names: seed.stream("names"),
            trace: Sha256::new(),
        }
    }

    /// Adds a server.
    pub fn serve(&mut self, config: ServerConfig, speed: Speed) {
        self.peers.insert(config.peer, self.hosts.len());
        self.hosts.push(Host::new(config, speed));
    }

    /// Adds a client that begins at a moment and follows its plan.
    pub fn join(&mut self, at: Time, plan: Plan) {
        let client = self.clients.len();
        self.clients.push(Client::new(client, self.model, self.block_count, plan));
        self.queue.plan(at, Event::Start { client });
    }

    /// Lets something fail at a moment.
    pub fn plan(&mut self, at: Time, fault: Fault) {
        self.queue.plan(at, Event::Fault(fault));
    }

    /// Lets everything happen, until nothing more will.
    ///
    /// # Panics
    /// If that takes more events than a sound run needs.
    pub fn run(&mut self) {
        for _ in 0..EVENTS_MAX {
            let Some((at, event)) = self.queue.pop() else {
                return;
            };
            self.now = at;
            self.trace.update(at.elapsed().as_nanos().to_le_bytes());
            self.trace.update(format!("{event:?}"));
            self.happen(event);
        }
        panic!("the world does not come to rest");
    }

    /// The hash of everything that happened, in order, with its time.
    #[must_use]
    pub fn trace(&self) -> [u8; 32] {
        self.trace.clone().finalize().into()
    }

    fn happen(&mut self, event: Event) {
        let Some(event) = self.hold_if_frozen(event) else {
            return;
        };
        match event {
            Event::Session { link, message } => self.session_message(link, message),
            Event::SessionClosed { link } => self.session_closed(link),
            Event::Pushed { link, step } => self.pushed(link, step),
            Event::PushLost { link } => self.push_lost(link),
            Event::Computed { server, life } => self.computed(server, life),
            Event::ServerTimer { server, life } => self.server_timer(server, life),
            Event::Answer { link: (client, hop), message } => {
                self.tell_client(client, Input::Received { hop, message });
            }
            Event::LinkLost { link: (client, hop) } => {
                let detail = "the link closed".to_owned();
                self.tell_client(client, Input::LinkLost { hop, detail });
            }
            Event::ClientTimer { client } => self.client_timer(client),
            Event::Route { client, wanted, since } => self.answer_route(client, wanted, since),
            Event::Start { client } => self.start_client(client),
            Event::Fault(fault) => self.fail(fault),
        }
    }

    /// Sends something on its way; it is lost where the other end is down by then.
    fn send(&mut self, from: Place, to: Place, bytes: usize, event: Event) {
        let links = self.links;
        let way = self
            .ways
            .entry((from, to))
            .or_insert_with(|| Link::new(links.delay, links.jitter, links.bytes_per_second));
        let arrival = way.send(bytes, self.now, &mut self.jitter);
        self.queue.plan(arrival, event);
    }

    fn end_of(&self, peer: PeerId) -> End {
        let server = self.peers[&peer];
        End { server, life: self.hosts[server].life }
    }

    /// Whether the far end of a link still lives the life in which it was opened.
    fn stands(&self, end: End) -> bool {
        let host = &self.hosts[end.server];
        host.life == end.life && host.condition != Condition::Down
    }
}

fn link_id((client, hop): SessionLink) -> LinkId {
    LinkId(((client as u64) << 32) | u64::from(hop.0))
}

fn session_link(link: LinkId) -> SessionLink {
    let hop = u32::try_from(link.0 & u64::from(u32::MAX)).expect("it is masked");
    (usize::try_from(link.0 >> 32).expect("clients are counted in 32 bits"), HopId(hop))
}

#[cfg(test)]
mod tests;
