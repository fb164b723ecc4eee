//! Prints how well servers place themselves, beside the best that is known and the rule of Petals.
//!
//! `cargo run --release -p umbel-simnet --example placement -- [seeds] [sizes] [of Petals]`, where
//! the last two are the largest swarms to try under this project's rule and under that of Petals.
#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::time::{Duration, Instant};

use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::placement::{Own, ServedSpan, View, choose_span, consider_move};
use umbel_protocol::{PeerId, Span};
use umbel_simnet::placement::scenario::SCENARIOS;
use umbel_simnet::placement::{Fleet, Rule, Trial, reference};
use umbel_simnet::seed::Seed;

/// Servers, and most blocks that one has room for: little memory and much.
const SWARMS: [(usize, u32); 10] = [
    (10, 12),
    (10, 40),
    (20, 8),
    (30, 6),
    (30, 40),
    (100, 4),
    (100, 40),
    (300, 40),
    (1000, 4),
    (1000, 40),
];

/// How long it takes until all have joined.
const JOINS: Duration = Duration::from_secs(1000);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let mut next = |default| arguments.next().and_then(Result::ok).unwrap_or(default);
    let (seeds, largest, largest_of_petals) = (next(3), next(1000), next(100));
    for scenario in SCENARIOS {
        println!("Scenario \"{}\". Petals: {}.", scenario.name, scenario.reason);
        for rule in [Rule::Umbel, Rule::Petals] {
            let outcome = scenario.run(Seed(1), rule);
            println!(
                "  {rule:6?} {:6.1} of {:.1} tokens/s, {} moves, {} GB, {} blocks left unserved",
                outcome.throughput,
                outcome.bound,
                outcome.tally.moves,
                outcome.tally.bytes / 1_000_000_000,
                outcome.tally.unserved_by_moves,
            );
        }
    }
    time_decisions();
    println!(
        "\nspare: blocks that fit into all memory, by those of the model\n\
         best: by simulated annealing, where the bound is not reached; - where that is hopeless\n\n\
         servers limit seed blocks spare phase  rule   of bound of best moves GB/server unserved \
         rest_s   looks ms/look"
    );
    for (count, limit) in SWARMS.into_iter().filter(|(count, _)| *count as u64 <= largest) {
        for seed in 0..seeds {
            play(count, limit, Seed(seed), Rule::Umbel);
            if count as u64 <= largest_of_petals {
                play(count, limit, Seed(seed), Rule::Petals);
            }
        }
    }
}

/// How long one decision takes among 1,000 servers with 80 blocks.
fn time_decisions() {
    let mut random = Random::new(5);
    let mut view = |limit: u32| {
        let servers: Vec<ServedSpan> = (0..999u16)
            .map(|name| {
                let mut key = [0; 32];
                key[..2].copy_from_slice(&name.to_be_bytes());
                let mut below = |bound: u32| {
                    u32::try_from(random.below(bound as usize)).expect("below 32 bits")
                };
                let count = 1 + below(limit);
                let start = below(81 - count);
                let span = Span::new(start, start + count).ok();
                let rate = 100.0 * 30f64.powf(random.unit());
                ServedSpan { peer: PeerId::from_public_key(key), span, moving_to: None, rate }
            })
            .collect();
        View::new(80, servers)
    };
    for limit in [2, 40] {
        let view = view(limit);
        let own =
            Own { rate: 500.0, block_limit: limit, missing_bytes: &[], bytes_per_second: 0.0 };
        let mut random = Random::new(1);
        let began = Instant::now();
        let chosen = choose_span(&view, &own, &mut random).expect("there are blocks");
        let choosing = began.elapsed();
        let began = Instant::now();
        let found = consider_move(&view, &own, chosen, &mut random);
        println!(
            "1000 servers, 80 blocks, limit {limit}: choose_span {choosing:.1?}, \
             consider_move {:.1?} ({})",
            began.elapsed(),
            found.map_or("stays".to_owned(), |found| format!("{} steps", found.steps)),
        );
    }
}

fn play(count: usize, limit: u32, seed: Seed, rule: Rule) {
    let fleet = Fleet::random(seed, count, limit);
    let mut trial = Trial::new(seed, fleet.block_count, rule);
    for machine in &fleet.machines {
        trial.join(*machine);
        trial.wait(JOINS / u32::try_from(count).expect("a size fits"));
    }
    let name = format!("{count:7} {limit:5} {:4}", seed.0);
    report(&name, "joins", &mut trial, fleet.block_count, seed, rule);
    let mut random = seed.stream("leaves");
    for host in trial.present() {
        if random.below(5) == 0 {
            trial.leave(host);
        }
    }
    report(&name, "leaves", &mut trial, fleet.block_count, seed, rule);
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
fn report(name: &str, phase: &str, trial: &mut Trial, blocks: u32, seed: Seed, rule: Rule) {
    let before = if phase == "joins" { Default::default() } else { trial.tally };
    let looks = trial.tally.looks;
    let began = Instant::now();
    let rest = trial.rest();
    let took = began.elapsed();
    let (bound, machines, found) = (trial.bound(), trial.machines(), trial.throughput());
    let room: u32 = machines.iter().map(|machine| machine.block_limit).sum();
    let best = if room < blocks {
        0.0
    } else if found >= bound * 0.95 || machines.len() > 100 {
        bound
    } else {
        let steps = 200_000 / machines.len();
        let mut random = seed.stream("best");
        reference::search(blocks, &machines, 3, steps, &mut random).max(found)
    };
    let (tally, looks) = (trial.tally, trial.tally.looks - looks);
    println!(
        "{name} {blocks:6} {:5.2} {phase:6} {rule:6?} {:8.3} {:>7} {:5} {:9.1} {:8} {:>6} {looks:7} {:.2}",
        f64::from(room) / f64::from(blocks),
        found / bound,
        if best > 0.0 { format!("{:.3}", found / best) } else { "-".to_owned() },
        tally.moves - before.moves,
        (tally.bytes - before.bytes) as f64 / 1e9 / machines.len() as f64,
        tally.unserved_by_moves - before.unserved_by_moves,
        rest.map_or("never".to_owned(), |rest| rest.as_secs().to_string()),
        took.as_secs_f64() * 1e3 / looks.max(1) as f64,
    );
}
