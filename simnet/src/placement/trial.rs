//! Servers that place themselves, in virtual time, on views that are old.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::placement::{
    Input, Intention, LOOK_INTERVAL, MOVE_INTERVAL_MIN, Mover, MoverConfig, Output, Own,
    ServedSpan, Sight, View, choose_span,
};
use umbel_protocol::announcement::Proposal;
use umbel_protocol::{PeerId, Span};

use super::{Machine, bound, petals, throughput};
use crate::queue::Queue;
use crate::seed::Seed;

/// Bytes of one block: half a gigabyte, as of a model of 70 thousand million weights at four bits.
pub(super) const BLOCK_BYTES: u64 = 500_000_000;

/// Most that a view is older than a swarm of so few servers that all are told of a change at once.
const VIEW_AGE_MAX: Duration = Duration::from_secs(5);

/// How much older each time that there are twice as many: a change is told to sixteen of them, and
/// then twice as many know after each ten seconds.
const VIEW_AGE_LONGER: Duration = Duration::from_secs(10);

/// Servers that are told at once.
const TOLD_AT_ONCE: usize = 16;

/// Most that a view is older than a swarm of a thousand servers; what is older is nowhere to be seen.
const VIEW_AGE_KEPT: Duration = Duration::from_secs(65);

/// Most that old sessions go on.
const DRAIN: Duration = Duration::from_secs(120);

/// Reading the blocks from disk.
const READ: Duration = Duration::from_secs(10);

/// A trial that has not come to rest after a week never will.
const REST_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// By which rule servers place themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The one of this project.
    Umbel,
    /// The one of Petals 2.3.
    Petals,
}

/// What servers did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    /// Bytes that all of them downloaded.
    pub bytes: u64,
    /// How often one of them went to another span.
    pub moves: usize,
    /// Blocks that lost their last server because it moved.
    pub unserved_by_moves: usize,
    /// Decisions taken.
    pub looks: usize,
}

#[derive(Debug)]
enum Event {
    Timer(usize),
    Loaded(usize),
    Drained(usize),
}

#[derive(Debug)]
enum Brain {
    /// Loads its first span.
    Joining(Span),
    Mover(Box<Mover>),
    /// Looks when its timer says so.
    Petals,
    /// Is off and will choose anew when its timer says so.
    PetalsMoving,
    Gone,
}

/// What a server announced, and when.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    at: Time,
    server: Option<ServedSpan>,
    proposal: Option<Proposal>,
}

#[derive(Debug)]
struct Host {
    machine: Machine,
    peer: PeerId,
    brain: Brain,
    serving: Option<Span>,
    said: Vec<Said>,
    on_disk: Vec<bool>,
    loading: Option<Span>,
    armed: Option<Time>,
}

/// One swarm under one rule.
#[derive(Debug)]
pub struct Trial {
    block_count: u32,
    rule: Rule,
    hosts: Vec<Host>,
    queue: Queue<Event>,
    random: Random,
    changed: Time,
    /// What happened so far.
    pub tally: Tally,
    /// The moment of the event that happened last.
    pub now: Time,
}

impl Trial {
    /// A swarm without servers.
    #[must_use]
    pub fn new(seed: Seed, block_count: u32, rule: Rule) -> Self {
        Self {
            block_count,
            rule,
            hosts: Vec::new(),
            queue: Queue::default(),
            random: seed.stream("trial"),
            changed: Time::START,
            tally: Tally::default(),
            now: Time::START,
        }
    }

    /// A machine joins now and chooses its span.
    pub fn join(&mut self, machine: Machine) {
        let host = self.hosts.len();
        self.add(machine);
        self.choose(host);
    }

    /// A machine is there already and serves `span`.
    pub fn join_at(&mut self, machine: Machine, span: Span) {
        let host = self.hosts.len();
        self.add(machine);
        self.fetch(host, span);
        self.tally.bytes = 0;
        self.serve_first(host, span);
    }

    /// The server with this index leaves without a word.
    pub fn leave(&mut self, host: usize) {
        self.hosts[host].brain = Brain::Gone;
        self.hosts[host].serving = None;
        self.say(host, None, None);
    }

    /// The servers that are there, by index.
    #[must_use]
    pub fn present(&self) -> Vec<usize> {
        let there = |host: &usize| !matches!(self.hosts[*host].brain, Brain::Gone);
        (0..self.hosts.len()).filter(there).collect()
    }

    /// Lets this much time go by.
    pub fn wait(&mut self, duration: Duration) {
        let until = self.now + duration;
        // An event of the trial itself marks the end, because a queue cannot be looked into.
        self.queue.plan(until, Event::Timer(usize::MAX));
        while let Some((at, event)) = self.queue.pop() {
            self.now = at;
            if matches!(event, Event::Timer(usize::MAX)) {
                return;
            }
            self.happen(&event);
        }
    }

    /// Lets time go by until nobody has moved or intended to for as long as it takes everybody to
    /// look and be free to move; how long it took from now to the last change, or `None` if that
    /// never happens.
    pub fn rest(&mut self) -> Option<Duration> {
        let began = self.now;
        let quiet = MOVE_INTERVAL_MIN + LOOK_INTERVAL * 2;
        while self.now.since(self.changed.max(began)) < quiet || !self.is_resting() {
            if self.now.since(began) > REST_MAX {
                return None;
            }
            self.wait(LOOK_INTERVAL);
        }
        Some(self.changed.since(began))
    }

    /// Tokens a second that the swarm carries now.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        let placed = self.hosts.iter().filter_map(|host| Some((host.serving?, host.machine.rate)));
        throughput(self.block_count, placed)
    }

    /// Blocks of the model.
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        self.block_count
    }

    /// The machines that are there.
    #[must_use]
    pub fn machines(&self) -> Vec<Machine> {
        self.present().into_iter().map(|host| self.hosts[host].machine).collect()
    }

    /// Tokens a second that no placement of the machines that are there can exceed.
    #[must_use]
    pub fn bound(&self) -> f64 {
        bound(self.block_count, &self.machines())
    }

    /// What is served now.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.hosts.iter().filter_map(|host| host.serving).collect()
    }

    fn add(&mut self, machine: Machine) {
        let mut name = [0; 32];
        // Ids in no order that the trial knows of.
        name[..8].copy_from_slice(&self.random.bits().to_le_bytes());
        self.hosts.push(Host {
            machine,
            peer: PeerId::from_public_key(name),
            brain: Brain::Petals,
            serving: None,
            said: Vec::new(),
            on_disk: vec![false; self.block_count as usize],
            loading: None,
            armed: None,
        });
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Timer(host) => {
                if self.hosts[host].armed != Some(self.now) {
                    return;
                }
                self.hosts[host].armed = None;
                match &mut self.hosts[host].brain {
                    Brain::Mover(mover) => {
                        mover.handle_timeout(self.now);
                        self.drive(host);
                    }
                    Brain::Petals => self.petals_look(host),
                    Brain::PetalsMoving => self.choose(host),
                    Brain::Joining(_) | Brain::Gone => {}
                }
            }
            Event::Loaded(host) => {
                let loaded = self.hosts[host].loading.take();
                match &self.hosts[host].brain {
                    Brain::Joining(span) => self.serve_first(host, *span),
                    Brain::Mover(_) => {
                        let Some(span) = loaded else { return };
                        self.fetch(host, span);
                        self.tell(host, Input::Loaded);
                    }
                    Brain::Petals | Brain::PetalsMoving | Brain::Gone => {}
                }
            }
            Event::Drained(host) => self.tell(host, Input::Drained),
        }
    }

    /// Chooses a span for a server that serves nothing, and begins to load it.
    fn choose(&mut self, host: usize) {
        let view = self.view(host);
        let machine = self.hosts[host].machine;
        let span = match self.rule {
            Rule::Umbel => {
                let own = Own {
                    rate: machine.rate,
                    block_limit: machine.block_limit,
                    missing_bytes: &self.missing_bytes(host),
                    bytes_per_second: machine.bytes_per_second,
                };
                choose_span(&view, &own, &mut self.random)
            }
            Rule::Petals => petals::choose(&view, machine.block_limit),
        };
        let span = span.expect("a machine has room for a block");
        self.hosts[host].brain = Brain::Joining(span);
        self.announce(host, None, moving_to(span));
        let duration = self.load_duration(host, span);
        self.fetch(host, span);
        self.queue.plan(self.now + duration, Event::Loaded(host));
    }

    fn serve_first(&mut self, host: usize, span: Span) {
        self.hosts[host].serving = Some(span);
        self.announce(host, Some(span), Intention::default());
        match self.rule {
            Rule::Umbel => {
                let machine = self.hosts[host].machine;
                let config = MoverConfig {
                    look_interval: umbel_coordinator::swarm::placement::LOOK_INTERVAL,
                    peer: self.hosts[host].peer,
                    span,
                    block_limit: machine.block_limit,
                    held_max: machine.held_max,
                    seed: self.random.bits(),
                };
                self.hosts[host].brain = Brain::Mover(Box::new(Mover::new(config, self.now)));
                self.drive(host);
            }
            Rule::Petals => {
                self.hosts[host].brain = Brain::Petals;
                self.arm_petals(host, LOOK_INTERVAL);
            }
        }
    }

    fn tell(&mut self, host: usize, input: Input) {
        if let Brain::Mover(mover) = &mut self.hosts[host].brain {
            mover.handle(input, self.now);
            self.drive(host);
        }
    }

    fn drive(&mut self, host: usize) {
        while let Brain::Mover(mover) = &mut self.hosts[host].brain {
            let Some(output) = mover.poll() else { break };
            self.act(host, output);
        }
        let Brain::Mover(mover) = &self.hosts[host].brain else {
            return;
        };
        if let Some(at) = mover.poll_timeout() {
            self.arm(host, at);
        }
    }

    fn act(&mut self, host: usize, output: Output) {
        let serving = self.hosts[host].serving;
        match output {
            Output::Look => {
                self.tally.looks += 1;
                let machine = self.hosts[host].machine;
                let sight = Sight {
                    view: self.view(host),
                    rate: machine.rate,
                    missing_bytes: self.missing_bytes(host),
                    bytes_per_second: machine.bytes_per_second,
                };
                if let Brain::Mover(mover) = &mut self.hosts[host].brain {
                    mover.handle(Input::Seen(sight), self.now);
                }
            }
            Output::Announce(intention) => self.announce(host, serving, intention),
            Output::Withdraw { to } => {
                let intention = self.intention(host);
                self.put(host, to);
                self.announce(host, to, intention);
                self.drain(host);
            }
            Output::Load(span) => {
                self.hosts[host].loading = Some(span);
                let duration = self.load_duration(host, span);
                self.queue.plan(self.now + duration, Event::Loaded(host));
            }
            Output::Serve(span) => {
                self.put(host, Some(span));
                self.tally.moves += 1;
                let intention = Intention { moving_to: None, ..self.intention(host) };
                self.announce(host, Some(span), intention);
                self.drain(host);
            }
            Output::DropOld(_) => {}
        }
    }

    fn drain(&mut self, host: usize) {
        let duration = DRAIN.mul_f64(self.random.unit());
        self.queue.plan(self.now + duration, Event::Drained(host));
    }

    /// A look by the rule of Petals: stays, or shuts down and chooses anew.
    fn petals_look(&mut self, host: usize) {
        self.tally.looks += 1;
        let view = self.view(host);
        let Some(span) = self.hosts[host].serving else { return };
        let rate = self.hosts[host].machine.rate;
        let peer = self.hosts[host].peer;
        let span = Some(span);
        let own = ServedSpan { peer, span, moving_to: None, rate, held_max: 0, joined: None };
        if petals::should_move(&view, own, &mut self.random) {
            self.put(host, None);
            self.say(host, None, None);
            self.tally.moves += 1;
            self.hosts[host].brain = Brain::PetalsMoving;
            self.arm_petals(host, VIEW_AGE_MAX);
        } else {
            self.arm_petals(host, LOOK_INTERVAL);
        }
    }

    /// After up to twice this long, as Petals waits.
    fn arm_petals(&mut self, host: usize, mean: Duration) {
        let at = self.now + mean.mul_f64(2.0 * self.random.unit());
        self.arm(host, at);
    }

    fn arm(&mut self, host: usize, at: Time) {
        self.hosts[host].armed = Some(at);
        self.queue.plan(at, Event::Timer(host));
    }

    /// Serves these blocks and no others, and counts what lost its last server.
    fn put(&mut self, host: usize, span: Option<Span>) {
        let before = self.served();
        self.hosts[host].serving = span;
        let lost = before.iter().zip(self.served()).filter(|(before, now)| **before && !now);
        self.tally.unserved_by_moves += lost.count();
    }

    fn served(&self) -> Vec<bool> {
        let mut served = vec![false; self.block_count as usize];
        for span in self.hosts.iter().filter_map(|host| host.serving) {
            served[span.start() as usize..span.end() as usize].fill(true);
        }
        served
    }

    fn announce(&mut self, host: usize, span: Option<Span>, intention: Intention) {
        let Host { peer, machine, .. } = self.hosts[host];
        let Intention { moving_to, held_max, proposal, joined } = intention;
        let server = ServedSpan { peer, span, moving_to, rate: machine.rate, held_max, joined };
        self.say(host, Some(server), proposal);
    }

    /// What a server says beside what it serves.
    fn intention(&self, host: usize) -> Intention {
        let Some(Said { server, proposal, .. }) = self.hosts[host].said.last() else {
            return Intention::default();
        };
        let Some(ServedSpan { moving_to, held_max, joined, .. }) = *server else {
            return Intention::default();
        };
        Intention { moving_to, held_max, proposal: proposal.clone(), joined }
    }

    fn say(&mut self, host: usize, server: Option<ServedSpan>, proposal: Option<Proposal>) {
        let said = &mut self.hosts[host].said;
        // That a server may be asked to move again is no news of the swarm's.
        let news = |server: Option<ServedSpan>| Some(ServedSpan { held_max: 0, ..server? });
        if said
            .last()
            .is_none_or(|last| news(last.server) != news(server) || last.proposal != proposal)
        {
            self.changed = self.now;
        }
        // Of what is older than any view only the newest is ever seen.
        let old = |said: &Said| said.at + VIEW_AGE_KEPT <= self.now;
        let kept = said.iter().rposition(old).unwrap_or(0);
        said.drain(..kept);
        said.push(Said { at: self.now, server, proposal });
    }

    /// What a server sees of the others: the swarm as it was some seconds ago.
    fn view(&mut self, of: usize) -> View {
        let doublings = self.present().len().div_ceil(TOLD_AT_ONCE).next_power_of_two().ilog2();
        let oldest = (VIEW_AGE_MAX + VIEW_AGE_LONGER * doublings).min(VIEW_AGE_KEPT);
        let age = oldest.mul_f64(self.random.unit());
        let at = |said: &&Said| said.at + age <= self.now;
        let others = self.hosts.iter().enumerate().filter(|(host, _)| *host != of);
        let seen = others.filter_map(|(_, host)| host.said.iter().rev().find(at));
        let servers = seen.clone().filter_map(|said| said.server);
        let proposals = seen.filter_map(|said| Some((said.server?.peer, said.proposal.clone()?)));
        View::new(self.block_count, servers).with_proposals(proposals)
    }

    fn is_resting(&self) -> bool {
        self.hosts.iter().all(|host| match &host.brain {
            Brain::Mover(mover) => mover.is_resting(self.now),
            Brain::Petals | Brain::Gone => true,
            Brain::Joining(_) | Brain::PetalsMoving => false,
        })
    }

    fn missing_bytes(&self, host: usize) -> Vec<u64> {
        let bytes = |on_disk: &bool| if *on_disk { 0 } else { BLOCK_BYTES };
        self.hosts[host].on_disk.iter().map(bytes).collect()
    }

    fn bytes(&self, host: usize, span: Span) -> u64 {
        let blocks = span.start() as usize..span.end() as usize;
        self.missing_bytes(host)[blocks].iter().sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "a number of bytes fits the mantissa")]
    fn load_duration(&self, host: usize, span: Span) -> Duration {
        let seconds = self.bytes(host, span) as f64 / self.hosts[host].machine.bytes_per_second;
        READ + Duration::from_secs_f64(seconds)
    }

    fn fetch(&mut self, host: usize, span: Span) {
        self.tally.bytes += self.bytes(host, span);
        let blocks = span.start() as usize..span.end() as usize;
        self.hosts[host].on_disk[blocks].fill(true);
    }
}

fn moving_to(span: Span) -> Intention {
    Intention { moving_to: Some(span), ..Intention::default() }
}
