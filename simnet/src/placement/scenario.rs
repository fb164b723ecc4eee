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
        reason: "it adds up what servers announce for each of their blocks, as if a server could \
                 give it to all of them at once, so a wide one hides how little it can give",
        run: wide_and_narrow,
    },
    Scenario {
        name: "one of many leaves",
        reason: "a hole is not filled while the throughput is zero both before and after the \
                 simulated move, and a gain of less than a third is not taken",
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

/// One fast server holds everything, and eight slow ones of eight blocks join.
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

/// Six servers in a row, one block of overlap at the start, and a hole of one block at the end.
fn chain_of_shifts(seed: Seed, rule: Rule) -> Outcome {
    let servers: Vec<_> =
        [0, 8, 15, 23].into_iter().map(|start| (machine(1000.0, 8), start)).collect();
    placed(seed, rule, 32, &servers)
}
