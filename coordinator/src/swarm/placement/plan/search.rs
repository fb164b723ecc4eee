//! A better placement near the one that there is, by simulated annealing.

use umbel_protocol::Span;
use umbel_protocol::announcement::PROPOSED_MOVES_MAX;

use super::super::balance::{Balance, count as amount, mean_above};
use super::super::moving::bound;
use super::super::{Own, ServedSpan, View, transit};
use super::{GAIN_MIN, Placed};
use crate::random::Random;
use crate::swarm::flow::Supply;

/// Most servers that change places by one plan. Each is one more that may fail; but from a placement
/// of 30 servers that was 5% below the best, one search in 75 found a way with 8 of them, and one in
/// 17 with 12. With 16 it was no more, because a proposal has to have room for helpers too.
const MOVERS_MAX: usize = 12;

/// What each of these moves must bring, as a part of the bound.
const MOVE_COST: f64 = 0.003;

/// The same for each block that is loaded for them.
const LOAD_COST: f64 = 0.000_3;

/// Temperatures at the beginning, of which chance takes one, and at the end, as parts of the
/// bound. The higher one leaves valleys that the lower one does not, and finds less in a plain.
const TEMPERATURES: [f64; 2] = [0.02, 0.05];
const TEMPERATURE_LAST: f64 = 0.000_5;

/// Most placements that are computed for one search: at some 30 µs each (80 blocks), 60 ms.
const EVALUATIONS_MAX: u32 = 2000;

/// Most changes that are drawn for each placement that is computed. The others would leave a
/// block, which costs nothing to see; where all do, the search ends.
const DRAWS_PER_EVALUATION: u32 = 20;

/// Farthest that a server is shifted in one change.
const SHIFT_MAX: u32 = 3;

/// A placement that is changed bit by bit.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) supply: Supply,
    servers: Vec<Placed>,
    /// How many servers each block has, and had.
    covered: Vec<u32>,
    covered_before: Vec<u32>,
    /// The servers that may be moved, by index.
    movable: Vec<usize>,
    /// How many are elsewhere than they were, and the blocks that they load for it.
    moved: usize,
    loaded: usize,
    /// What no placement can exceed.
    bound: f64,
}

/// A placement as the search values it.
#[derive(Debug, Clone, Copy)]
struct Value {
    unserved: usize,
    mean: f64,
    throughput: f64,
}

/// What the search has found.
struct Found {
    score: f64,
    servers: Vec<Placed>,
}

/// Servers, and where they go.
type Change = Vec<(usize, Span)>;

impl Search {
    /// `None` where nobody may be moved.
    pub(super) fn new(view: &View, own: &Own<'_>, me: ServedSpan) -> Option<Self> {
        let servers: Vec<Placed> =
            [&me].into_iter().chain(view.servers()).filter_map(Placed::new).collect();
        let movable: Vec<usize> =
            (0..servers.len()).filter(|server| servers[*server].held_max > 0).collect();
        if movable.len() < 2 {
            return None;
        }
        let mut supply = Supply::new(view.block_count());
        let mut covered = vec![0; view.block_count() as usize];
        for server in &servers {
            supply.add(server.at, server.rate);
            count(&mut covered, server.at, |covered| covered + 1);
        }
        let covered_before = covered.clone();
        let bound = bound(view, own);
        Some(Self { supply, servers, covered, covered_before, movable, moved: 0, loaded: 0, bound })
    }

    /// The best placement found that is better than the one there is by enough.
    pub(super) fn run(&mut self, random: &mut Random) -> Option<Vec<Placed>> {
        let first = self.value();
        let mut energy = self.energy(first);
        let mut best: Option<Found> = None;
        let hottest = TEMPERATURES[random.below(TEMPERATURES.len())];
        let (mut evaluations, mut draws) = (0, 0);
        while evaluations < EVALUATIONS_MAX && draws < EVALUATIONS_MAX * DRAWS_PER_EVALUATION {
            draws += 1;
            let back = self.cover(&self.draw(random));
            if back.is_empty() || self.moved > MOVERS_MAX || self.leaves_a_block(&back) {
                self.cover(&back);
                continue;
            }
            self.supply_instead(&back);
            let done = f64::from(evaluations) / f64::from(EVALUATIONS_MAX);
            evaluations += 1;
            let temperature = hottest * (TEMPERATURE_LAST / hottest).powf(done);
            // The rule of Metropolis, with the chance drawn first: so what is refused, and that is
            // most, need not be valued to the end.
            let accepted = energy + temperature * random.unit().max(f64::MIN_POSITIVE).ln();
            let Some(found) = self.value_above(accepted) else {
                self.apply(&back);
                continue;
            };
            energy = self.energy(found);
            self.keep_if_best(first, found, &mut best);
        }
        best.map(|best| self.without_idle_moves(first, best))
    }

    fn keep_if_best(&self, first: Value, found: Value, best: &mut Option<Found>) {
        let score = self.score(found);
        if !reaches(first, found) || best.as_ref().is_some_and(|best| best.score >= score) {
            return;
        }
        let parts = transit::arrange(self.block_count(), &self.servers);
        // What one server can do alone it finds alone.
        if parts.is_some_and(|parts| (2..=PROPOSED_MOVES_MAX).contains(&parts.len())) {
            *best = Some(Found { score, servers: self.servers.clone() });
        }
    }

    /// Takes back, one by one, the moves without which the placement is as good.
    fn without_idle_moves(&mut self, first: Value, best: Found) -> Vec<Placed> {
        let place: Change = best.servers.iter().map(|server| server.at).enumerate().collect();
        self.apply(&place);
        let mut best = Some(best);
        for server in self.movable.clone() {
            let back = self.apply(&[(server, self.servers[server].home)]);
            if back.is_empty() {
                continue;
            }
            let score = best.as_ref().map(|best| best.score);
            if !self.leaves_a_block(&back) {
                self.keep_if_best(first, self.value(), &mut best);
            }
            if best.as_ref().map(|best| best.score) == score {
                self.apply(&back);
            }
        }
        best.map(|best| best.servers).unwrap_or_default()
    }

    fn draw(&self, random: &mut Random) -> Change {
        let one = self.movable[random.below(self.movable.len())];
        let other = random.below(self.servers.len());
        let (at, beside) = (self.servers[one].at, self.servers[other].at);
        match random.below(8) {
            0 | 1 if self.servers[other].held_max > 0 => {
                vec![self.starting(one, beside.start()), self.starting(other, at.start())]
            }
            0..=2 => vec![self.starting(one, beside.end())],
            3 => vec![self.starting(one, beside.start().saturating_sub(at.block_count()))],
            4 => {
                let by = 1 + below(random, SHIFT_MAX);
                let later = random.below(2) == 0;
                let start = if later { at.start() + by } else { at.start().saturating_sub(by) };
                vec![self.starting(one, start)]
            }
            5 => self.exchanged(one, other).unwrap_or_default(),
            6 => self.put_in(one, other).unwrap_or_default(),
            _ => vec![self.starting(one, below(random, self.block_count()))],
        }
    }

    /// A server, as near to this start as its length allows.
    fn starting(&self, server: usize, start: u32) -> (usize, Span) {
        let length = self.servers[server].at.block_count();
        let start = start.min(self.block_count() - length);
        (server, Span::new(start, start + length).expect("as long as before"))
    }

    /// Two servers in each other's places; those between make room for the longer one.
    fn exchanged(&self, one: usize, other: usize) -> Option<Change> {
        let is_first = self.servers[one].at.start() <= self.servers[other].at.start();
        let (first, last) = if is_first { (one, other) } else { (other, one) };
        let (left, right) = (self.servers[first].at, self.servers[last].at);
        if self.servers[other].held_max == 0 || left.end() > right.start() || first == last {
            return None;
        }
        let by = i64::from(right.block_count()) - i64::from(left.block_count());
        let mut change = self.shifted(left.end(), right.start(), by)?;
        change.push(self.starting(last, left.start()));
        change.push(self.starting(first, right.end() - left.block_count()));
        Some(change)
    }

    /// A server in the place of another; that one and those between close the gap.
    fn put_in(&self, one: usize, other: usize) -> Option<Change> {
        let (at, there) = (self.servers[one].at, self.servers[other].at);
        let length = i64::from(at.block_count());
        let (mut change, start) = if at.end() <= there.start() {
            (self.shifted(at.end(), there.end(), -length)?, there.end() - at.block_count())
        } else if there.end() <= at.start() {
            (self.shifted(there.start(), at.start(), length)?, there.start())
        } else {
            return None;
        };
        change.push(self.starting(one, start));
        Some(change)
    }

    /// Every server inside these blocks, shifted by so many; `None` where that is too many, or one
    /// that is not to be moved.
    fn shifted(&self, start: u32, end: u32, by: i64) -> Option<Change> {
        let mut change = Vec::new();
        for (server, Placed { at, held_max, .. }) in self.servers.iter().enumerate() {
            if at.start() < start || at.end() > end {
                continue;
            }
            if *held_max == 0 || change.len() == MOVERS_MAX {
                return None;
            }
            let start = u32::try_from(i64::from(at.start()) + by).ok()?;
            change.push(self.starting(server, start));
        }
        Some(change)
    }

    /// Puts servers elsewhere; what puts them back.
    fn apply(&mut self, change: &[(usize, Span)]) -> Change {
        let back = self.cover(change);
        self.supply_instead(&back);
        back
    }

    /// The same, before the rates have followed: most changes are seen to be of no use by the
    /// blocks that have a server. Servers that are there already are left out.
    fn cover(&mut self, change: &[(usize, Span)]) -> Change {
        let mut back = Vec::new();
        for &(server, to) in change {
            let Placed { at, home, .. } = self.servers[server];
            if at == to {
                continue;
            }
            back.push((server, at));
            count(&mut self.covered, at, |covered| covered - 1);
            count(&mut self.covered, to, |covered| covered + 1);
            self.moved = self.moved + usize::from(to != home) - usize::from(at != home);
            self.loaded = self.loaded + beyond(home, to) - beyond(home, at);
            self.servers[server].at = to;
        }
        back
    }

    /// Moves the rates of servers from what they left to where they are.
    fn supply_instead(&mut self, left: &[(usize, Span)]) {
        for &(server, left) in left {
            let Placed { at, rate, .. } = self.servers[server];
            self.supply.remove(left, rate);
            self.supply.add(at, rate);
        }
    }

    /// Whether one of the spans that were left has a block that had a server and has none now.
    fn leaves_a_block(&self, left: &[(usize, Span)]) -> bool {
        left.iter().flat_map(|(_, span)| span.blocks()).any(|block| {
            self.covered[block as usize] == 0 && self.covered_before[block as usize] > 0
        })
    }

    fn block_count(&self) -> u32 {
        u32::try_from(self.covered.len()).expect("a model has far fewer blocks")
    }

    fn value(&self) -> Value {
        let Balance { unserved, mean, least, .. } = Balance::of(&self.supply);
        Value { unserved, mean, throughput: least }
    }

    /// The value of the placement, if its energy is not below this.
    fn value_above(&self, energy: f64) -> Option<Value> {
        if self.covered.contains(&0) {
            return Some(self.value()).filter(|value| self.energy(*value) >= energy);
        }
        let enough = (energy + self.cost()) * self.bound;
        let (mean, throughput) = mean_above(&self.supply, enough)?;
        Some(Value { unserved: 0, mean, throughput })
    }

    /// What the annealing raises.
    fn energy(&self, value: Value) -> f64 {
        value.mean / self.bound - amount(value.unserved) - self.cost()
    }

    /// What decides between placements that are good enough.
    fn score(&self, value: Value) -> f64 {
        value.throughput / self.bound - amount(value.unserved) - self.cost()
    }

    fn cost(&self) -> f64 {
        MOVE_COST * amount(self.moved) + LOAD_COST * amount(self.loaded)
    }
}

/// Whether a placement is so much better than the first that it pays to go there.
fn reaches(first: Value, found: Value) -> bool {
    found.unserved < first.unserved
        || (found.unserved == 0 && found.throughput >= first.throughput * (1.0 + GAIN_MIN))
}

/// Blocks of one span that are not in another.
fn beyond(home: Span, at: Span) -> usize {
    let shared = home.intersection(at).map_or(0, Span::block_count);
    (at.block_count() - shared) as usize
}

fn below(random: &mut Random, bound: u32) -> u32 {
    u32::try_from(random.below(bound as usize)).expect("below a number of 32 bits")
}

fn count(covered: &mut [u32], span: Span, change: impl Fn(u32) -> u32) {
    for covered in &mut covered[span.start() as usize..span.end() as usize] {
        *covered = change(*covered);
    }
}
