//! The world: clients, servers, the links between them, and what happens next.

mod client;

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use umbel_coordinator::random::Random;
use umbel_coordinator::server::{ComputeFailure, Input, Job, JobId, LinkId, Output, ServerConfig};
use umbel_coordinator::session::RouteHop;
use umbel_coordinator::{Route, Time};
use umbel_protocol::inference::{ClientMessage, PushMessage, ServerMessage, Step};
use umbel_protocol::{ModelId, PeerId, SessionId, Tensor};

use crate::host::{Host, Speed};
use crate::link::Link;
use crate::queue::Queue;
use crate::seed::Seed;

pub use client::{Client, Plan};

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

#[derive(Debug)]
enum Event {
    ToServer { server: usize, client: usize, message: ClientMessage },
    Pushed { server: usize, from: PeerId, step: Step },
    ToClient { client: usize, hop: usize, message: ServerMessage },
    Computed { server: usize },
    ServerTimer { server: usize },
    ClientTimer { client: usize },
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// The servers.
    pub hosts: Vec<Host>,
    /// The clients.
    pub clients: Vec<Client>,
    links: Links,
    ways: BTreeMap<(Place, Place), Link>,
    queue: Queue<Event>,
    jitter: Random,
    trace: Sha256,
    /// The moment of the event that happened last.
    pub now: Time,
}

impl World {
    /// A world without anybody in it.
    #[must_use]
    pub fn new(seed: Seed, links: Links) -> Self {
        Self {
            hosts: Vec::new(),
            clients: Vec::new(),
            links,
            ways: BTreeMap::new(),
            queue: Queue::default(),
            jitter: seed.stream("jitter"),
            trace: Sha256::new(),
            now: Time::START,
        }
    }

    /// Adds a server.
    pub fn serve(&mut self, config: ServerConfig, speed: Speed) {
        self.hosts.push(Host::new(config, speed));
    }

    /// Adds a client that opens a session along `route` at once and then follows its plan.
    pub fn open(&mut self, session: SessionId, model: ModelId, route: &Route, plan: Plan) {
        let hops = route.hops().iter().map(|hop| RouteHop { hop: *hop, addresses: Vec::new() });
        let client = self.clients.len();
        self.clients.push(Client::open(client, session, model, hops.collect(), plan, self.now));
        self.drive_client(client);
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
        self.trace.update(self.now.elapsed().as_nanos().to_le_bytes());
        self.trace.update(format!("{event:?}"));
        match event {
            Event::ToServer { server, client, message } => {
                let link = LinkId(client as u64);
                let from = self.clients[client].peer;
                self.tell_server(server, Input::Received { link, from, message });
            }
            Event::Pushed { server, from, step } => {
                self.tell_server(server, Input::Pushed { from, step });
            }
            Event::Computed { server } => {
                let computing = self.hosts[server].computing.take();
                let (job, hidden, compute) = computing.expect("a job was being computed");
                let result: Result<Tensor, ComputeFailure> = Ok(hidden);
                self.tell_server(server, Input::Computed { job, result, compute });
            }
            Event::ServerTimer { server } => {
                self.hosts[server].armed = None;
                self.hosts[server].server.handle_timeout(self.now);
                self.drive_server(server);
            }
            Event::ToClient { client, hop, message } => {
                self.clients[client].received(hop, message, self.now);
                self.drive_client(client);
            }
            Event::ClientTimer { client } => {
                self.clients[client].timeout(self.now);
                self.drive_client(client);
            }
        }
    }

    fn tell_server(&mut self, server: usize, input: Input) {
        let result = self.hosts[server].server.handle(input, self.now);
        assert_eq!(result, Ok(()), "honest peers keep to the protocol");
        self.drive_server(server);
    }

    fn drive_server(&mut self, server: usize) {
        while let Some(output) = self.hosts[server].server.poll() {
            match output {
                Output::Send { link, message } => self.answer(server, link, message),
                Output::Push { next, step } => {
                    let to = self.server_of(next);
                    let from = self.hosts[server].peer;
                    let bytes = frame_bytes(&PushMessage::Step(step.clone()).encode());
                    let event = Event::Pushed { server: to, from, step };
                    self.send(Place::Server(server), Place::Server(to), bytes, event);
                }
                Output::OpenCache { session, blocks, .. } => {
                    self.hosts[server].oracle.open(session, blocks);
                }
                Output::Forget { session } => self.hosts[server].oracle.forget(session),
                Output::Compute(job) => self.compute(server, &job),
                Output::Connect { .. } => {}
            }
        }
        let host = &mut self.hosts[server];
        if let Some(at) = host.server.poll_timeout()
            && host.armed.is_none_or(|armed| at < armed)
        {
            host.armed = Some(at);
            self.queue.plan(at, Event::ServerTimer { server });
        }
    }

    fn answer(&mut self, server: usize, link: LinkId, message: ServerMessage) {
        let client = usize::try_from(link.0).expect("links are numbered by clients");
        let peer = self.hosts[server].peer;
        let hop = self.clients[client].hop_of(peer).expect("only hops of the route are asked");
        let bytes = frame_bytes(&message.clone().encode());
        let event = Event::ToClient { client, hop, message };
        self.send(Place::Server(server), Place::Client(client), bytes, event);
    }

    fn compute(&mut self, server: usize, job: &Job) {
        let host = &mut self.hosts[server];
        let hidden = host.oracle.step(job.session, job.blocks, job.position, &job.hidden);
        let duration = host.duration(job.blocks.block_count(), job.hidden.shape()[0]);
        let id: JobId = job.id;
        host.computing = Some((id, hidden, duration));
        self.queue.plan(self.now + duration, Event::Computed { server });
    }

    fn drive_client(&mut self, client: usize) {
        while let Some((hop, message)) = self.clients[client].next_message(self.now) {
            let to = self.server_of(self.clients[client].peer_of(hop));
            let bytes = frame_bytes(&message.clone().encode());
            let event = Event::ToServer { server: to, client, message };
            self.send(Place::Client(client), Place::Server(to), bytes, event);
        }
        if let Some(at) = self.clients[client].arm() {
            self.queue.plan(at, Event::ClientTimer { client });
        }
    }

    fn send(&mut self, from: Place, to: Place, bytes: usize, event: Event) {
        let links = self.links;
        let way = self
            .ways
            .entry((from, to))
            .or_insert_with(|| Link::new(links.delay, links.jitter, links.bytes_per_second));
        let arrival = way.send(bytes, self.now, &mut self.jitter);
        self.queue.plan(arrival, event);
    }

    fn server_of(&self, peer: PeerId) -> usize {
        self.hosts.iter().position(|host| host.peer == peer).expect("every hop is in the world")
    }
}

fn frame_bytes(frame: &umbel_protocol::frame::Frame) -> usize {
    8 + frame.header.len() + frame.payload.len()
}

#[cfg(test)]
mod tests;
