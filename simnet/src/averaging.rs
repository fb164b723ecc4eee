//! Trainers who share a run, in virtual time: they learn at speeds of their own, come, stall, leave with and
//! without a word, and some of them lie.

mod learner;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::training::round::{
    Input, Member, Message, OuterStep, Output, Rule, RunSettings, RunState, Stand,
};
use umbel_protocol::PeerId;

use crate::queue::Queue;
use crate::seed::Seed;
pub use learner::Nature;
use learner::{Learner, Problem};

/// How long trainers learn before they tell, and how long they are then waited for.
const LEARN: Duration = Duration::from_secs(60);
const GATHER: Duration = Duration::from_secs(6);

/// Bytes a second of a link.
const LINK_BYTES_PER_SECOND: u64 = 2_000_000;

/// The shortest and the longest delay of a link: of one town, and around half the world.
const DELAYS_MS: (u64, u64) = (5, 150);

/// After how long it is noticed that a trainer has gone without a word.
const NOTICED: Duration = Duration::from_secs(15);

/// How late a trainer is that stalls: a turn of several others.
const STALL: Duration = Duration::from_secs(20);

/// What happens to a run.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Trainers that learn what their own data says.
    pub honest: usize,
    /// Those that do not.
    pub liars: Vec<Nature>,
    /// The share of the honest that leaves in each round, each at a moment of its own; as many others come.
    pub leaving: f64,
    /// The share of the honest that tells too late in a round.
    pub stalling: f64,
    /// How deltas are combined.
    pub rule: Rule,
    /// After how many rounds it ends.
    pub rounds: u64,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The adapter at the end, as most have it.
    pub values: Vec<f32>,
    /// How far it is from what is best for all honest trainers, as a share of how far it was at first.
    pub error: f64,
    /// Rounds whose members came to more than one state at first.
    pub split_rounds: usize,
    /// Members that were there at the end, and those of them that stood at the same state.
    pub members: usize,
    /// Those of them that stood at the same state.
    pub agreeing: usize,
    /// Trainers that left, and states that were downloaded.
    pub left: usize,
    /// States that were downloaded.
    pub downloads: usize,
    /// How long a round took in the mean.
    pub round: Duration,
    /// SHA-256 over all that was said, with its time.
    pub trace: [u8; 32],
}

#[derive(Debug)]
enum Event {
    Deliver { from: usize, to: usize, message: Message },
    Timer(usize),
    Learned { of: usize, round: u64 },
    Leave(usize),
    Noticed { gone: usize, by: usize },
    Join,
    Churn,
}

struct Trainer {
    member: Member,
    learner: Learner,
    armed: Option<Time>,
    gone: bool,
}

struct World {
    setting: Setting,
    problem: Problem,
    trainers: Vec<Trainer>,
    queue: Queue<Event>,
    /// When a link is free again.
    links: BTreeMap<(usize, usize), Time>,
    random: Random,
    now: Time,
    /// The states to which rounds have led.
    stands: BTreeMap<u64, BTreeSet<Stand>>,
    left: usize,
    downloads: usize,
    trace: Sha256,
}

/// Lets a run take its rounds.
///
/// # Panics
/// If the run comes to a halt: no state for so long as three rounds take with every turn.
#[must_use]
pub fn run(seed: Seed, setting: &Setting) -> Outcome {
    let mut world = World::new(seed, setting.clone());
    while world.rounds() < setting.rounds {
        let (at, event) = world.queue.pop().expect("a run has timers");
        world.now = at;
        let rounds = u32::try_from(world.rounds()).unwrap_or(u32::MAX).saturating_add(3);
        let turns = u32::try_from(setting.honest + setting.liars.len()).unwrap_or(u32::MAX);
        let longest = (LEARN + GATHER * (turns + 1)) * rounds;
        assert!(at.elapsed() < longest, "a round does not end: {}", world.picture());
        world.handle(event);
    }
    // What is under way arrives, and nobody begins anything new.
    let end = world.now + GATHER;
    while let Some((at, event)) = world.queue.pop().filter(|(at, _)| *at < end) {
        world.now = at;
        world.handle(event);
    }
    world.outcome()
}

impl World {
    fn new(seed: Seed, setting: Setting) -> Self {
        let mut random = seed.stream("averaging");
        let problem = Problem::draw(seed);
        let mut world = Self {
            problem,
            trainers: Vec::new(),
            queue: Queue::default(),
            links: BTreeMap::new(),
            now: Time::START,
            stands: BTreeMap::new(),
            left: 0,
            downloads: 0,
            trace: Sha256::new(),
            setting: setting.clone(),
            random: Random::new(random.bits()),
        };
        let start = RunState::begin(vec![0.0; world.problem.value_count()]).expect("numbers");
        for _ in 0..setting.honest {
            world.come(Nature::Honest, Some(start.clone()));
        }
        for nature in setting.liars {
            world.come(nature, Some(start.clone()));
        }
        world.queue.plan(Time::START, Event::Churn);
        world
    }

    /// The round to which half of those who have a state have come.
    fn rounds(&self) -> u64 {
        // Who has just come has none yet.
        let state = |index: usize| self.trainers[index].member.state();
        let mut rounds: Vec<_> = self.here().filter_map(state).map(RunState::round).collect();
        rounds.sort_unstable();
        rounds.get(rounds.len() / 2).copied().unwrap_or_default()
    }

    /// Who is there, and in which round.
    fn picture(&self) -> String {
        let round =
            |index: usize| (index, self.trainers[index].member.state().map(RunState::stand));
        format!("{:?}: {:?}", self.now, self.here().map(round).collect::<Vec<_>>())
    }

    fn here(&self) -> impl Iterator<Item = usize> {
        (0..self.trainers.len()).filter(|index| !self.trainers[*index].gone)
    }

    fn come(&mut self, nature: Nature, state: Option<RunState>) {
        let index = self.trainers.len();
        let settings = RunSettings {
            rule: self.setting.rule,
            outer: OuterStep::default(),
            learn: LEARN,
            gather: GATHER,
        };
        let member = Member::new(peer(index), settings, state, self.now);
        let learner = self.problem.learner(index, nature);
        let others: Vec<_> = self.here().collect();
        self.trainers.push(Trainer { member, learner, armed: None, gone: false });
        for other in others {
            self.tell(index, Input::Met { peer: peer(other) });
            self.tell(other, Input::Met { peer: peer(index) });
        }
        self.drain(index);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => {
                self.trace.update(self.now.elapsed().as_nanos().to_le_bytes());
                self.trace.update(format!("{from} {to} {:?}", std::mem::discriminant(&message)));
                if let Message::State(_) = message {
                    self.downloads += 1;
                }
                self.tell(to, Input::Received { from: peer(from), message });
            }
            Event::Timer(index) => {
                let trainer = &mut self.trainers[index];
                if trainer.armed.take_if(|at| *at <= self.now).is_some() && !trainer.gone {
                    trainer.member.handle_timeout(self.now);
                    self.drain(index);
                }
            }
            Event::Learned { of, round } => {
                if let Some(values) = self.trainers[of].learner.learned(round) {
                    self.tell(of, Input::Learned { round, values });
                }
            }
            Event::Leave(index) => self.leave(index),
            Event::Noticed { gone, by } => self.tell(by, Input::Left { peer: peer(gone) }),
            Event::Join => self.come(Nature::Honest, None),
            Event::Churn => self.churn(),
        }
    }

    /// Draws who leaves within the time of one round, and who comes instead.
    fn churn(&mut self) {
        let honest: Vec<_> = self
            .here()
            .filter(|index| self.trainers[*index].learner.nature() == Nature::Honest)
            .collect();
        for index in honest {
            if self.random.unit() < self.setting.leaving {
                for event in [Event::Leave(index), Event::Join] {
                    let at = self.now + (LEARN + GATHER).mul_f64(self.random.unit());
                    self.queue.plan(at, event);
                }
            }
        }
        self.queue.plan(self.now + LEARN + GATHER, Event::Churn);
    }

    fn leave(&mut self, index: usize) {
        if std::mem::replace(&mut self.trainers[index].gone, true) {
            return;
        }
        self.left += 1;
        let says_so = self.random.unit() < 0.5;
        let others: Vec<_> = self.here().collect();
        for by in others {
            let after = if says_so { self.delay(index, by) } else { NOTICED };
            self.queue.plan(self.now + after, Event::Noticed { gone: index, by });
        }
    }

    fn tell(&mut self, index: usize, input: Input) {
        if !self.trainers[index].gone {
            self.trainers[index].member.handle(input, self.now);
            self.drain(index);
        }
    }

    fn drain(&mut self, index: usize) {
        while let Some(output) = self.trainers[index].member.poll() {
            match output {
                Output::Send { to, message } => self.carry(index, to, message),
                Output::Begin { state } => {
                    self.stands.entry(state.round()).or_default().insert(state.stand());
                    self.trainers[index].learner.begin(&state, self.now);
                }
                Output::Learned { round } => {
                    let stalls = self.random.unit() < self.setting.stalling;
                    let stalls = stalls && self.trainers[index].learner.nature() == Nature::Honest;
                    let step = self.trainers[index].learner.step_time();
                    let after = if stalls { STALL } else { step.mul_f64(self.random.unit()) };
                    self.queue.plan(self.now + after, Event::Learned { of: index, round });
                }
            }
        }
        let timer = self.trainers[index].member.poll_timeout();
        let trainer = &mut self.trainers[index];
        if let Some(at) = timer.filter(|at| trainer.armed.is_none_or(|armed| *at < armed)) {
            let at = if at < self.now { self.now } else { at };
            trainer.armed = Some(at);
            self.queue.plan(at, Event::Timer(index));
        }
    }

    fn carry(&mut self, from: usize, to: PeerId, message: Message) {
        let Some(to) = (0..self.trainers.len()).find(|index| peer(*index) == to) else { return };
        let free = self.links.get(&(from, to)).copied().unwrap_or_default();
        let begins = if free < self.now { self.now } else { free };
        let sent =
            begins + Duration::from_nanos(bytes(&message) * 1_000_000_000 / LINK_BYTES_PER_SECOND);
        self.links.insert((from, to), sent);
        let arrives = sent + self.delay(from, to);
        self.queue.plan(arrives, Event::Deliver { from, to, message });
    }

    /// The same in both directions, and whenever it is asked.
    fn delay(&self, a: usize, b: usize) -> Duration {
        let mut random = Random::new((a.min(b) * 1_000 + a.max(b)) as u64);
        let (least, most) = DELAYS_MS;
        Duration::from_millis(least + random.bits() % (most - least))
    }

    fn outcome(self) -> Outcome {
        let here: Vec<_> = self.here().collect();
        let state = |index: &usize| self.trainers[*index].member.state();
        let mut counts: BTreeMap<Stand, usize> = BTreeMap::new();
        for state in here.iter().filter_map(state) {
            *counts.entry(state.stand()).or_default() += 1;
        }
        let (most, agreeing) =
            counts.into_iter().max_by_key(|(_, count)| *count).expect("a run has members");
        let of_most = here.iter().filter_map(state).find(|state| state.stand() == most);
        let values = of_most.expect("it was one of them").values().to_vec();
        let rounds = u32::try_from(most.round.max(1)).unwrap_or(u32::MAX);
        Outcome {
            error: self.problem.error(&values),
            values,
            split_rounds: self.stands.values().filter(|stands| stands.len() > 1).count(),
            members: here.len(),
            agreeing,
            left: self.left,
            downloads: self.downloads,
            round: self.now.elapsed() / rounds,
            trace: self.trace.finalize().into(),
        }
    }
}

/// How far an adapter is from another, as a share of how far that one has come.
///
/// # Panics
/// If they have different numbers of values.
#[must_use]
pub fn distance(values: &[f32], clean: &[f32]) -> f64 {
    assert_eq!(values.len(), clean.len(), "two adapters of one shape");
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let apart = squares(&mut values.iter().zip(clean).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (apart / squares(&mut clean.iter().map(|value| f64::from(*value)))).sqrt()
}

/// What a message takes on the wire, about.
fn bytes(message: &Message) -> u64 {
    let values = |count: usize| count as u64;
    32 + match message {
        Message::Stand(_) | Message::WantDelta { .. } | Message::WantState(_) => 40,
        Message::Contribution { delta, .. } | Message::Relayed { delta, .. } => {
            values(delta.steps().len() + 4 * delta.scales().len())
        }
        Message::Proposal { deltas, .. } => values(64 * deltas.len()),
        Message::State(state) => values(8 * state.values().len()),
    }
}

fn peer(index: usize) -> PeerId {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(index as u64).to_le_bytes());
    PeerId::from_public_key(key)
}
