//! Three swarms in which the rule of Petals does clearly worse, and why.

use std::time::Duration;

use umbel_protocol::Span;

use super::{Machine, Rule, Tally, Trial};
use crate::seed::Seed;

/// What a rule made of a scenario.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Tokens a second in the end.
    pub throughput: f64,
    /// Tokens a second that no placement can exceed.
    pub bound: f64,
    /// What the servers did for it.
    pub tally: Tally,
    /// The least throughput on the way, once there was any.
    pub least: f64,
}

/// A scenario: its name, why Petals is bad at it, and how it goes.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// A name for a table.
    pub name: &'static str,
    /// Why the rule of Petals does worse.
    pub reason: &'static str,
    run: fn(Seed, Rule) -> Outcome,
}

impl Scenario {
    /// Plays it under a rule.
    #[must_use]
    pub fn run(&self, seed: Seed, rule: Rule) -> Outcome {
        (self.run)(seed, rule)
    }
}

/// All of them.
pub const SCENARIOS: [Scenario; 3] = [
    Scenario {
        name: "wide and narrow",
        reason: "it counts each server as if it gave the same to all of its blocks, though one that \
                 has help on one side can give more to the other",
        run: wide_and_narrow,
    },
    Scenario {
        name: "ten and six",
        reason: "it moves only for a gain of more than a third, so a quarter of the throughput \
                 stays unused for good",
        run: small_gains,
    },
    Scenario {
        name: "a chain of shifts",
        reason: "a server that is the only one of some block stays for good, though its neighbour \
                 could take that block over",
        run: chain_of_shifts,
    },
];

fn machine(rate: f64, block_limit: u32) -> Machine {
    Machine { rate, block_limit, held_max: 2 * block_limit, bytes_per_second: 50e6 }
}

/// Servers that are there from the beginning, spans included.
fn placed(seed: Seed, rule: Rule, block_count: u32, servers: &[(Machine, u32)]) -> Outcome {
    let mut trial = Trial::new(seed, block_count, rule);
    for (machine, start) in servers {
        let span = Span::new(*start, start + machine.block_limit).expect("room for a block");
        trial.join_at(*machine, span);
    }
    finish(&mut trial)
}

fn finish(trial: &mut Trial) -> Outcome {
    let mut least = trial.throughput();
    // Four hours, minute by minute, are enough for either rule to come to rest.
    for _ in 0..240 {
        trial.wait(Duration::from_secs(60));
        least = least.min(trial.throughput());
    }
    Outcome { throughput: trial.throughput(), bound: trial.bound(), tally: trial.tally, least }
}

/// Ten servers with room for 8 to 32 of 64 blocks join one after the other.
fn wide_and_narrow(seed: Seed, rule: Rule) -> Outcome {
    let mut trial = Trial::new(seed, 64, rule);
    for count in [8, 32, 8, 24, 8, 16, 8, 32, 8, 24] {
        // The wider, the slower per block: memory is cheap where speed is not.
        trial.join(machine(6400.0 / f64::from(count), count));
        trial.wait(Duration::from_secs(1200));
    }
    finish(&mut trial)
}

/// Ten servers on the first half of a model and six on the second, all alike.
fn small_gains(seed: Seed, rule: Rule) -> Outcome {
    let servers: Vec<_> =
        (0..16).map(|server| (machine(1000.0, 20), if server < 10 { 0 } else { 20 })).collect();
    placed(seed, rule, 40, &servers)
}

/// Four servers in a row, one block of overlap in the middle, and a hole of one at the end.
fn chain_of_shifts(seed: Seed, rule: Rule) -> Outcome {
    let servers: Vec<_> =
        [0, 8, 15, 23].into_iter().map(|start| (machine(1000.0, 8), start)).collect();
    placed(seed, rule, 32, &servers)
}
