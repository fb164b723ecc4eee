//! The best placement that can be found with everything in one hand.

use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::flow::Supply;
use umbel_protocol::Span;

use super::{Machine, bound, throughput};

/// The part of the bound at which a search may stop.
const ENOUGH: f64 = 0.999;

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

/// The best placement found by simulated annealing with restarts: moves to anywhere, moves beside
/// another server, and exchanges of two.
#[must_use]
pub fn search(
    block_count: u32,
    machines: &[Machine],
    restarts: usize,
    steps: usize,
    random: &mut Random,
) -> f64 {
    let enough = bound(block_count, machines) * ENOUGH;
    let mut best: f64 = 0.0;
    for _ in 0..restarts {
        best = best.max(anneal(block_count, machines, steps, enough, random));
        if best >= enough {
            break;
        }
    }
    best
}

fn anneal(
    block_count: u32,
    machines: &[Machine],
    steps: usize,
    enough: f64,
    random: &mut Random,
) -> f64 {
    let mut starts: Vec<u32> =
        machines.iter().map(|machine| anywhere(block_count, machine, random)).collect();
    let placed = |starts: &[u32]| -> Vec<(Span, f64)> {
        let placed = |(start, machine)| (place(start, machine), machine.rate);
        starts.iter().copied().zip(machines).map(placed).collect()
    };
    let mut supply = Supply::new(block_count);
    for (span, rate) in placed(&starts) {
        supply.add(span, rate);
    }
    let (mut value, mut best) = (value_of(&supply, enough), supply.throughput());
    let mut temperature = 0.05;
    let cooling = 1e-4f64.powf(1.0 / f64::from(u32::try_from(steps).unwrap_or(u32::MAX)));
    for _ in 0..steps {
        temperature *= cooling;
        let before = starts.clone();
        change(block_count, machines, &mut starts, random);
        exchange(&mut supply, machines, &before, &starts);
        let found = value_of(&supply, enough);
        if found >= value || random.unit() < ((found - value) / temperature).exp() {
            value = found;
            best = best.max(throughput(block_count, placed(&starts)));
            if best >= enough {
                break;
            }
        } else {
            exchange(&mut supply, machines, &starts, &before);
            starts = before;
        }
    }
    best
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

fn change(block_count: u32, machines: &[Machine], starts: &mut [u32], random: &mut Random) {
    let last = |index: usize| block_count - machines[index].block_limit;
    let (one, other) = (random.below(starts.len()), random.below(starts.len()));
    match random.below(4) {
        0 => {
            (starts[one], starts[other]) =
                (starts[other].min(last(one)), starts[one].min(last(other)));
        }
        1 => starts[one] = (starts[other] + machines[other].block_limit).min(last(one)),
        2 => starts[one] = starts[other].saturating_sub(machines[one].block_limit).min(last(one)),
        _ => starts[one] = anywhere(block_count, &machines[one], random),
    }
}

fn exchange(supply: &mut Supply, machines: &[Machine], before: &[u32], after: &[u32]) {
    for ((machine, before), after) in machines.iter().zip(before).zip(after) {
        if before != after {
            supply.remove(place(*before, machine), machine.rate);
            supply.add(place(*after, machine), machine.rate);
        }
    }
}

fn anywhere(block_count: u32, machine: &Machine, random: &mut Random) -> u32 {
    super::below(random, block_count - machine.block_limit + 1)
}

fn place(start: u32, machine: &Machine) -> Span {
    Span::new(start, start + machine.block_limit).expect("a machine has room for a block")
}
