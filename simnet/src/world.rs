//! The world: clients, servers, the links between them, what fails, and what happens next.

mod announce;
mod check;
mod client;
mod fault;
mod links;
mod route;
mod server;
mod talk;
mod trace;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::server::ServerConfig;
use umbel_coordinator::session::{Contacts, Input, RouteWanted};
use umbel_protocol::inference::{ClientMessage, ServerMessage, Step};
use umbel_protocol::{ModelId, PeerId};

use crate::host::{Condition, Host, Speed};
use crate::link::LinkClass;
use crate::oracle;
use crate::queue::Queue;
use crate::seed::Seed;
use crate::workload::{Plan, Workload};

pub use check::Totals;
pub use client::{Answer, Client};
pub use fault::{Fault, Hazard};
pub use links::Topology;
pub use route::Planner;

use announce::Announcements;
use links::{End, Links, PushLink, SessionLink};
use trace::Trace;

/// What a world is made for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The model that every server serves.
    pub model: ModelId,
    /// Its blocks.
    pub block_count: u32,
    /// Bytes of one token's hidden state on a link. (Those of the oracle are fewer.)
    pub token_bytes: usize,
    /// The links.
    pub topology: Topology,
    /// How clients find routes.
    pub planner: Planner,
    /// How long that takes them.
    pub lookup: Duration,
    /// Failures that come with the steps of the clients.
    pub hazard: Option<Hazard>,
    /// Most events of a run: one that needs more does not end.
    pub events_max: u64,
}

impl Settings {
    /// Everything small, every link the same, and routes at random.
    #[must_use]
    pub fn new(model: ModelId, block_count: u32, links: LinkClass) -> Self {
        Self {
            model,
            block_count,
            token_bytes: oracle::TOKEN_BYTES,
            topology: Topology::new(links),
            planner: Planner::Random,
            lookup: Duration::from_millis(100),
            hazard: None,
            events_max: 5_000_000,
        }
    }
}

/// A place in the world: a client or a server, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Client(usize),
    Server(usize),
}

/// Something that is going to happen.
#[derive(Debug)]
pub enum Event {
    /// A client's message arrives.
    Session {
        /// On this link.
        link: SessionLink,
        /// The message.
        message: ClientMessage,
    },
    /// A client has closed a link.
    SessionClosed {
        /// This one.
        link: SessionLink,
    },
    /// A step arrives that another server pushed, also where it has closed the link since.
    Pushed {
        /// On this link.
        link: PushLink,
        /// Which of all that there have been.
        number: u64,
        /// To whom.
        server: usize,
        /// In which of its lives.
        life: u32,
        /// The step.
        step: Step,
    },
    /// A server's message arrives.
    Answer {
        /// On this link.
        link: SessionLink,
        /// The message.
        message: ServerMessage,
    },
    /// A client learns that a link is gone.
    LinkLost {
        /// This one.
        link: SessionLink,
    },
    /// A server learns that its link to a next hop is gone.
    PushLost {
        /// This one.
        link: PushLink,
        /// Which of all that there have been.
        number: u64,
    },
    /// A server's thread has taken note of a message.
    Heard {
        /// Whose.
        server: usize,
        /// In which of its lives.
        life: u32,
    },
    /// An accelerator has finished.
    Computed {
        /// Whose.
        server: usize,
        /// In which of its lives.
        life: u32,
    },
    /// A server's timer fires.
    ServerTimer {
        /// Whose.
        server: usize,
        /// In which of its lives.
        life: u32,
    },
    /// A client's timer fires.
    ClientTimer {
        /// Whose.
        client: usize,
    },
    /// A client has looked for a route.
    Route {
        /// Who.
        client: usize,
        /// Which of its sessions, counted from the first.
        session: u32,
        /// For what.
        wanted: RouteWanted,
        /// Since when.
        since: Time,
    },
    /// A client begins a session.
    Start {
        /// Who.
        client: usize,
    },
    /// A server says what it serves.
    Announce {
        /// Which one.
        server: usize,
        /// In which of its lives.
        life: u32,
    },
    /// Something fails, or ceases to.
    Fault(Fault),
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// The servers.
    pub hosts: Vec<Host<Event>>,
    /// The clients.
    pub clients: Vec<Client>,
    /// What the processes of clients hear of servers, one for each client.
    contacts: Vec<Contacts>,
    /// The moment of the event that happened last.
    pub now: Time,
    /// What was counted.
    pub totals: Totals,
    settings: Settings,
    links: Links,
    peers: BTreeMap<PeerId, usize>,
    announcements: Announcements,
    /// Clients that have not come to their end.
    busy_clients: usize,
    /// When something last failed, or ceased to.
    last_fault: Time,
    queue: Queue<Event>,
    seed: Seed,
    routes: Random,
    names: Random,
    hazards: Random,
    trace: Trace,
}

impl World {
    /// A world without anybody in it.
    #[must_use]
    pub fn new(seed: Seed, settings: Settings) -> Self {
        Self {
            hosts: Vec::new(),
            clients: Vec::new(),
            contacts: Vec::new(),
            now: Time::START,
            totals: Totals::default(),
            links: Links::new(settings.topology.clone(), seed.stream("links")),
            settings,
            peers: BTreeMap::new(),
            announcements: Announcements::default(),
            busy_clients: 0,
            last_fault: Time::START,
            queue: Queue::default(),
            seed,
            routes: seed.stream("routes"),
            names: seed.stream("names"),
            hazards: seed.stream("hazards"),
            trace: Trace::default(),
        }
    }

    /// Adds a server; its number is that of servers before it.
    pub fn serve(&mut self, config: ServerConfig, speed: Speed, group: usize) {
        let server = self.hosts.len();
        self.peers.insert(config.peer, server);
        self.hosts.push(Host::new(config, speed, group));
        self.links.add_server();
        self.begin_announcing(server);
    }

    /// Adds a client that begins at a moment and follows its plan.
    pub fn join(&mut self, at: Time, plan: Plan, group: usize) {
        let client = self.clients.len();
        self.clients.push(Client::new(client, &self.settings, group, plan));
        self.begin(at, client);
    }

    /// The same in the process of the client that was added before.
    ///
    /// # Panics
    /// If there is none.
    pub fn join_beside(&mut self, at: Time, plan: Plan, group: usize) {
        let beside = self.clients.last().expect("a client was added before").process;
        self.join(at, plan, group);
        self.clients.last_mut().expect("it was just added").process = beside;
    }

    /// Adds a client that begins at a moment and follows these plans one after the other, each after
    /// a pause; without one it does nothing.
    pub fn join_for(&mut self, at: Time, plans: Vec<(Duration, Plan)>, group: usize) {
        let mut plans = VecDeque::from(plans);
        let Some((pause, plan)) = plans.pop_front() else {
            return;
        };
        let client = self.clients.len();
        self.clients.push(Client::new(client, &self.settings, group, plan).with_more(plans));
        self.begin(at + pause, client);
    }

    /// Adds a client that begins at a moment and has one session after another.
    pub fn work(&mut self, at: Time, workload: Workload, group: usize) {
        let client = self.clients.len();
        let random = self.seed.stream(&format!("client {client}"));
        self.clients.push(Client::with_workload(client, &self.settings, group, workload, random));
        self.begin(at, client);
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
        while let Some((at, event)) = self.queue.pop() {
            self.now = at;
            self.totals.events += 1;
            assert!(self.totals.events <= self.settings.events_max, "the world comes to rest");
            self.trace.happened(at, &event);
            self.happen(event);
        }
    }

    /// The hash of everything that was said and happened, in order, with its time.
    #[must_use]
    pub fn trace(&self) -> [u8; 32] {
        self.trace.hash()
    }

    fn begin(&mut self, at: Time, client: usize) {
        self.contacts.push(Contacts::default());
        self.busy_clients += 1;
        self.queue.plan(at, Event::Start { client });
    }

    fn happen(&mut self, event: Event) {
        let Some(event) = self.hold_if_frozen(event) else {
            return;
        };
        let Some(event) = self.queue_for_thread(event) else {
            return;
        };
        self.come(event);
    }

    /// Something happens to who has time for it.
    fn come(&mut self, event: Event) {
        match event {
            Event::Heard { server, life } => self.heard(server, life),
            Event::Session { link, message } => self.session_message(link, message),
            Event::SessionClosed { link } => self.session_closed(link),
            Event::Pushed { link, number, server, life, step } => {
                self.pushed((link, number), End { server, life }, step);
            }
            Event::PushLost { link, number } => self.push_lost(link, number),
            Event::Computed { server, life } => self.computed(server, life),
            Event::ServerTimer { server, life } => self.server_timer(server, life),
            Event::Answer { link, message } => self.answered(link, message),
            Event::LinkLost { link } => {
                let detail = "the link closed".to_owned();
                self.tell_client_of(link, |hop| Input::LinkLost { hop, detail });
            }
            Event::ClientTimer { client } => self.client_timer(client),
            Event::Route { client, session, wanted, since } => {
                self.answer_route(client, session, wanted, since);
            }
            Event::Start { client } => self.start_client(client),
            Event::Announce { server, life } => self.announce(server, life),
            Event::Fault(fault) => self.fail(fault),
        }
    }

    /// Sends something on its way; it is lost where the other end is down by then.
    fn send(&mut self, from: Place, to: Place, bytes: usize, event: Event) {
        let (from, to) = (self.seat(from), self.seat(to));
        let arrival = self.links.send(from, to, bytes, self.now);
        self.totals.bytes_sent += bytes as u64;
        self.queue.plan(arrival, event);
    }

    /// Where a place is, and in which of its lives.
    fn seat(&self, place: Place) -> links::Seat {
        let (group, life) = match place {
            Place::Client(client) => (self.clients[client].group, 0),
            Place::Server(server) => (self.hosts[server].group, self.hosts[server].life),
        };
        links::Seat { place, group, life }
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

    /// Bytes of a frame on a link of the modelled network.
    const fn frame_bytes(&self, frame: &umbel_protocol::frame::Frame) -> usize {
        let tokens = frame.payload.len() / oracle::TOKEN_BYTES;
        8 + frame.header.len() + tokens * self.settings.token_bytes
    }
}

#[cfg(test)]
mod known;
#[cfg(test)]
mod laden;
#[cfg(test)]
mod prefix;
#[cfg(test)]
mod tests;
