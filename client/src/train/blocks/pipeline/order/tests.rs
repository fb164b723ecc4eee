//! Servers with little room that answer in any order, and fail, on routes that are given up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use tokio::sync::mpsc;
use umbel_coordinator::random::Random;
use umbel_coordinator::session::FailureReason;
use umbel_engine::HiddenStates;
use umbel_protocol::training::{StateValues, TrainingAnswer, TrainingSequence};
use umbel_protocol::{Span, Tensor};

use super::super::{Fault, GradientSum, Microbatch, Progress};
use super::*;

const BLOCK_COUNT: u32 = 4;

/// Values of an adapter, in all blocks.
const VALUES: usize = 8;

/// Tokens of the longest microbatch.
const TOKENS_MAX: usize = 3;

/// Most microbatches, and most servers that fail in one step.
const MICROBATCHES_MAX: usize = 8;
const FAILURES: usize = 4;

/// More answers than a pass with few servers has.
const ANSWERS: usize = 60;

struct Route {
    name: usize,
    servers: Vec<Server>,
}

struct Server {
    blocks: Span,
    progress: Progress,
    kept: Kept,
}

/// What a server has of microbatches, by their numbers.
struct Kept {
    tokens_max: u32,
    tokens: BTreeMap<u64, u32>,
    brought_back: Vec<u64>,
}

impl Kept {
    fn answer(&mut self, message: TrainerMessage) -> TrainingAnswer {
        match message {
            TrainerMessage::Forward(ForwardMicrobatch { microbatch, hidden, .. }) => {
                let before = self.tokens.insert(microbatch, hidden.shape()[0]);
                assert_eq!(before, None, "it is kept already");
                assert!(self.tokens.values().sum::<u32>() <= self.tokens_max);
                TrainingAnswer::Forwarded { microbatch, hidden }
            }
            TrainerMessage::Backward { microbatch, gradient, .. } => {
                assert!(self.tokens.remove(&microbatch).is_some(), "it has gone forward");
                self.brought_back.push(microbatch);
                TrainingAnswer::Backwarded { microbatch, gradient }
            }
            TrainerMessage::Read { kind, offset, count } => {
                let values = Tensor::from_f32(vec![count], &vec![1.0; count as usize]).unwrap();
                TrainingAnswer::State(StateValues { kind, offset, values })
            }
            TrainerMessage::Open(_)
            | TrainerMessage::Write(_)
            | TrainerMessage::RowNorms { .. }
            | TrainerMessage::Step(_)
            | TrainerMessage::Close => panic!("no pass asks for that"),
        }
    }
}

/// A step along some routes.
struct World {
    routes: Vec<Route>,
    microbatches: Vec<Microbatch>,
    /// Where gradients are added by the trainer.
    sum: Option<GradientSum>,
    /// The route whose servers answer when no others have anything to do.
    slow: Option<usize>,
    /// Rows of gradients that the trainer has held at once.
    held_max: usize,
    random: Random,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (route_count, count) = (1 + random.below(3), 1 + random.below(MICROBATCHES_MAX));
        let world = Self::of(route_count, count, random);
        // Where there are no values, servers on several routes add them too.
        Self { sum: world.sum.filter(|_| !seed.is_multiple_of(4)), ..world }
    }

    fn of(route_count: usize, count: usize, mut random: Random) -> Self {
        let all = Span::new(0, BLOCK_COUNT).unwrap();
        let route = |name| Route { name, servers: servers(&mut random, all) };
        let routes: Vec<_> = (0..route_count).map(route).collect();
        let microbatch = |number| {
            let tokens = 1 + random.below(TOKENS_MAX);
            let mut microbatch = Microbatch::new(number);
            let entering = HiddenStates::from_values(vec![0.0; tokens], 1).unwrap();
            let tokens = u32::try_from(tokens).unwrap();
            microbatch.sequences.push(TrainingSequence { tokens, dropout_seed: 0 });
            microbatch.entering.insert(0, entering);
            microbatch
        };
        let microbatches = (1..=count as u64).map(microbatch).collect();
        let sum = (route_count > 1).then(|| GradientSum::new(VALUES, BLOCK_COUNT, count));
        Self { routes, microbatches, sum, slow: None, held_max: 0, random }
    }

    /// Lets servers answer in any order until nothing is under way. In place of one answer a server fails,
    /// if there are as many: the name of its route, and its place.
    fn pass(&mut self, answers: usize) -> Option<(usize, usize)> {
        let Self { routes, microbatches, sum, slow, held_max, random } = self;
        let (mut stages, mut servers) = (Vec::new(), Vec::new());
        for Route { name, servers: of_route } in routes {
            for (place, Server { blocks, progress, kept }) in of_route.iter_mut().enumerate() {
                let (jobs, waiting) = mpsc::channel(PIPELINED);
                servers.push((waiting, kept));
                stages.push(Stage {
                    route: *name,
                    place,
                    blocks: *blocks,
                    progress,
                    jobs,
                    sent: [BTreeSet::new(), BTreeSet::new()],
                    behind: VecDeque::new(),
                    under_way: VecDeque::new(),
                    failed: false,
                });
            }
        }
        let way = sum.as_mut().map_or(Way::Together, Way::Apart);
        let mut conductor = Conductor::new((None, way), stages, microbatches);
        conductor.forget_routes();
        for answer in 0.. {
            conductor.assign();
            while conductor.send_next() {}
            let stages = conductor.stages.iter().enumerate();
            let busy = stages.filter(|(_, stage)| !stage.under_way.is_empty());
            let busy: Vec<_> = busy.map(|(index, _)| index).collect();
            if busy.is_empty() {
                break;
            }
            let is_quick = |index: &usize| Some(conductor.stages[*index].route) != *slow;
            let quick: Vec<_> = busy.iter().copied().filter(is_quick).collect();
            let busy = if quick.is_empty() { busy } else { quick };
            let index = busy[random.below(busy.len())];
            let (waiting, kept) = &mut servers[index];
            let event = if answer == answers {
                Err(Fault::Hop(FailureReason::Leaving))
            } else {
                Ok(kept.answer(waiting.try_recv().unwrap()))
            };
            conductor.heard(index, event);
            if let Way::Apart(sum) = &conductor.way {
                *held_max = (*held_max).max(sum.held());
            }
            // As the model's end would have it.
            for microbatch in conductor.microbatches.iter_mut() {
                if let Some(left) = microbatch.entering.get(&BLOCK_COUNT).cloned() {
                    microbatch.gradients.entry(BLOCK_COUNT).or_insert(left);
                }
            }
        }
        if let Some((route, place, _)) = conductor.failed.pop() {
            return Some((route, place));
        }
        let complete = (0..conductor.microbatches.len()).all(|index| conductor.is_complete(index));
        assert!(complete, "something is missing, and nothing can be sent");
        None
    }

    /// Puts others in the place of a server that has failed, or gives its route up where there is another.
    fn mend(&mut self, (name, place): (usize, usize)) {
        let route = self.routes.iter().position(|route| route.name == name).unwrap();
        if self.routes.len() > 1 && self.random.below(2) == 0 {
            self.routes.remove(route);
            return;
        }
        let route = &mut self.routes[route].servers;
        let blocks = route.remove(place).blocks;
        route.splice(place..place, servers(&mut self.random, blocks));
    }
}

/// Servers for some blocks, with room for one or two microbatches.
fn servers(random: &mut Random, blocks: Span) -> Vec<Server> {
    let (mut servers, mut start) = (Vec::new(), blocks.start());
    while start < blocks.end() {
        let count = 1 + random.below((blocks.end() - start) as usize);
        let end = start + u32::try_from(count).unwrap();
        let tokens_max = u32::try_from(TOKENS_MAX * (1 + random.below(2))).unwrap();
        servers.push(Server {
            blocks: Span::new(start, end).unwrap(),
            progress: Progress { tokens_max, ..Progress::default() },
            kept: Kept { tokens_max, tokens: BTreeMap::new(), brought_back: Vec::new() },
        });
        start = end;
    }
    servers
}

#[test]
fn a_slow_route_has_no_more_gradients_of_fast_ones_wait_than_all_have_under_way() {
    let mut world = World::of(2, 64, Random::new(7));
    world.slow = Some(0);
    assert_eq!(world.pass(usize::MAX), None);
    let under_way = world.routes.iter().map(|route| route.servers.len() + BESIDE_SERVERS);
    let most = under_way.sum();
    assert!((1..=most).contains(&world.held_max), "{} of {most}", world.held_max);
    assert_eq!(world.sum.unwrap().total(), [64.0; VALUES]);
}

proptest! {
    #[test]
    fn all_microbatches_come_back_whichever_servers_and_routes_are_lost(seed in any::<u64>()) {
        let mut world = World::new(seed);
        let is_one_route = world.routes.len() == 1;
        for _ in 0..FAILURES {
            let answers = world.random.below(ANSWERS);
            if let Some(failed) = world.pass(answers) {
                world.mend(failed);
            }
        }
        prop_assert_eq!(world.pass(usize::MAX), None);
        for Server { kept, .. } in world.routes.iter().flat_map(|route| &route.servers) {
            prop_assert!(kept.tokens.is_empty(), "a step would find something under way");
            let back = &kept.brought_back;
            // In this order the server has added their gradients.
            prop_assert!(!is_one_route || back.is_sorted_by(|one, other| one < other), "{:?}", back);
        }
        if let Some(sum) = world.sum {
            let count = u8::try_from(world.microbatches.len()).unwrap();
            prop_assert_eq!(sum.total(), [f32::from(count); VALUES]);
        }
    }
}
