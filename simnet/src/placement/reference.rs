//! The best placement that can be found with everything in one hand.

use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::flow::Supply;
use umbel_protocol::Span;

use super::{Machine, bound};

/// The part of the bound at which a search may stop.
const ENOUGH: f64 = 0.999;

/// Temperatures of the annealing at the beginning and at the end, in parts of the bound.
const HOTTEST: f64 = 0.05;
const COLDEST: f64 = 0.000_01;

/// The best of all placements, by trying each: `(blocks - limit + 1)` to the number of machines.
#[must_use]
pub fn exhaustive(block_count: u32, machines: &[Machine]) -> f64 {
    let mut supply = Supply::new(block_count);
    try_each(block_count, machines, &mut supply)
}

fn try_each(block_count: u32, machines: &[Machine], supply: &mut Supply) -> f64 {
    let Some((machine, others)) = machines.split_first() else {
        return supply.throughput();
    };
    let mut best: f64 = 0.0;
    for start in 0..=block_count - machine.block_limit {
        let span = place(start, machine);
        supply.add(span, machine.rate);
        best = best.max(try_each(block_count, others, supply));
        supply.remove(span, machine.rate);
    }
    best
}

/// The best placement found by simulated annealing: moves to anywhere, moves beside another server,
/// short shifts, exchanges of two, and one put between others who make room. The first run starts from `placed`, where that is given, so
/// that the best is at least what can be made of it; the others start anywhere.
#[must_use]
pub fn search(
    block_count: u32,
    machines: &[Machine],
    placed: Option<&[Span]>,
    runs: usize,
    steps: u32,
    random: &mut Random,
) -> f64 {
    let enough = bound(block_count, machines) * ENOUGH;
    let mut best: f64 = 0.0;
    for run in 0..runs {
        let starts = match placed.filter(|_| run == 0) {
            Some(placed) => placed.iter().map(|span| span.start()).collect(),
            None => machines.iter().map(|machine| anywhere(block_count, machine, random)).collect(),
        };
        let mut annealing = Annealing::new(block_count, machines, starts, enough);
        best = best.max(annealing.run(steps, random));
        if best >= enough {
            break;
        }
    }
    best
}

/// A placement that is changed bit by bit.
struct Annealing<'a> {
    block_count: u32,
    machines: &'a [Machine],
    starts: Vec<u32>,
    supply: Supply,
    /// How many servers each block has.
    servers: Vec<usize>,
    enough: f64,
}

impl<'a> Annealing<'a> {
    fn new(block_count: u32, machines: &'a [Machine], starts: Vec<u32>, enough: f64) -> Self {
        let mut supply = Supply::new(block_count);
        let mut servers = vec![0; block_count as usize];
        for (start, machine) in starts.iter().zip(machines) {
            let span = place(*start, machine);
            supply.add(span, machine.rate);
            span.blocks().for_each(|block| servers[block as usize] += 1);
        }
        Self { block_count, machines, starts, supply, servers, enough }
    }

    fn run(&mut self, steps: u32, random: &mut Random) -> f64 {
        let (mut value, mut best) = (value_of(&self.supply, self.enough), self.supply.throughput());
        for step in 0..steps {
            let temperature =
                HOTTEST * (COLDEST / HOTTEST).powf(f64::from(step) / f64::from(steps));
            let unserved = self.unserved();
            let change = self.draw(random);
            let back = self.apply(&change);
            // A block less is never accepted, so it need not be valued.
            if self.unserved() > unserved {
                self.apply(&back);
                continue;
            }
            let found = value_of(&self.supply, self.enough);
            if found < value && random.unit() >= ((found - value) / temperature).exp() {
                self.apply(&back);
                continue;
            }
            value = found;
            best = best.max(self.supply.throughput());
            if best >= self.enough {
                break;
            }
        }
        best
    }

    fn unserved(&self) -> usize {
        self.servers.iter().filter(|servers| **servers == 0).count()
    }

    fn draw(&self, random: &mut Random) -> Vec<(usize, u32)> {
        let (one, other) = (random.below(self.starts.len()), random.below(self.starts.len()));
        let (here, there) = (self.starts[one], self.starts[other]);
        match random.below(8) {
            0 | 1 => vec![self.at(one, there), self.at(other, here)],
            2 => vec![self.at(one, self.end(other))],
            3 => vec![self.at(one, there.saturating_sub(self.machines[one].block_limit))],
            4 => vec![self.at(one, (here + super::below(random, 7)).saturating_sub(3))],
            5 => self.exchanged_in_row(one.min(other), one.max(other)),
            6 => self.put_between(one, other),
            _ => vec![(one, anywhere(self.block_count, &self.machines[one], random))],
        }
    }

    fn end(&self, index: usize) -> u32 {
        self.starts[index] + self.machines[index].block_limit
    }

    fn at(&self, index: usize, start: u32) -> (usize, u32) {
        (index, start.min(self.block_count - self.machines[index].block_limit))
    }

    /// Two in each other's places, and those between them moved up or down by what one is longer.
    fn exchanged_in_row(&self, one: usize, other: usize) -> Vec<(usize, u32)> {
        let (first, last) =
            if self.starts[one] < self.starts[other] { (one, other) } else { (other, one) };
        if self.end(first) > self.starts[last] {
            return Vec::new();
        }
        let (wider, narrower) = (self.machines[last].block_limit, self.machines[first].block_limit);
        let mut change = self.moved_up(self.end(first), self.starts[last], wider, narrower);
        change.push(self.at(last, self.starts[first]));
        change.push(self.at(first, self.end(last) - narrower));
        change
    }

    /// One in the place of another, which moves with all between to where the one was.
    fn put_between(&self, one: usize, other: usize) -> Vec<(usize, u32)> {
        let length = self.machines[one].block_limit;
        if self.end(one) <= self.starts[other] {
            let mut change = self.moved_up(self.end(one), self.end(other), 0, length);
            change.push(self.at(one, self.end(other) - length));
            change
        } else if self.end(other) <= self.starts[one] {
            let mut change = self.moved_up(self.starts[other], self.starts[one], length, 0);
            change.push(self.at(one, self.starts[other]));
            change
        } else {
            Vec::new()
        }
    }

    /// All that lie inside these blocks, later by so many and then earlier by so many.
    fn moved_up(&self, start: u32, end: u32, later: u32, earlier: u32) -> Vec<(usize, u32)> {
        let inside = (0..self.starts.len())
            .filter(|index| self.starts[*index] >= start && self.end(*index) <= end);
        inside
            .map(|index| self.at(index, (self.starts[index] + later).saturating_sub(earlier)))
            .collect()
    }

    /// Puts machines elsewhere; what puts them back.
    fn apply(&mut self, change: &[(usize, u32)]) -> Vec<(usize, u32)> {
        let mut back = Vec::new();
        for &(index, start) in change {
            let (machine, before) = (&self.machines[index], self.starts[index]);
            back.insert(0, (index, before));
            if before == start {
                continue;
            }
            let (left, taken) = (place(before, machine), place(start, machine));
            self.supply.remove(left, machine.rate);
            self.supply.add(taken, machine.rate);
            left.blocks().for_each(|block| self.servers[block as usize] -= 1);
            taken.blocks().for_each(|block| self.servers[block as usize] += 1);
            self.starts[index] = start;
        }
        back
    }
}

/// Throughput, refined so that there is a slope everywhere: the power mean of order -8 of what
/// blocks get, in parts of what is enough, less one for each block that has no server.
fn value_of(supply: &Supply, enough: f64) -> f64 {
    let (mut unserved, mut sum, mut served) = (0.0, 0.0, 0.0);
    for level in supply.levels() {
        if level > 0.0 {
            sum += (enough / level).powi(8);
            served += 1.0;
        } else {
            unserved += 1.0;
        }
    }
    if served > 0.0 { (served / sum).powf(0.125) - unserved } else { -unserved }
}

fn anywhere(block_count: u32, machine: &Machine, random: &mut Random) -> u32 {
    super::below(random, block_count - machine.block_limit + 1)
}

fn place(start: u32, machine: &Machine) -> Span {
    Span::new(start, start + machine.block_limit).expect("a machine has room for a block")
}
