//! Prints how well servers place themselves, beside the best that is known and the rule of Petals.
//!
//! `cargo run --release -p umbel-simnet --example placement -- [seeds] [largest size]`

use std::time::{Duration, Instant};

use umbel_simnet::placement::scenario::SCENARIOS;
use umbel_simnet::placement::{Fleet, Rule, Trial, reference};
use umbel_simnet::seed::Seed;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let mut next = |default| arguments.next().and_then(Result::ok).unwrap_or(default);
    let (seeds, largest, petals_largest) = (next(3), next(1000), next(100));
    for scenario in SCENARIOS {
        println!("{}: {}", scenario.name, scenario.reason);
        for rule in [Rule::Umbel, Rule::Petals] {
            println!("  {rule:?}: {:.1?}", scenario.run(Seed(1), rule));
        }
    }
    println!(
        "servers limit seed blocks | phase  rule   | of bound of best | moves GB/server unserved \
         rest | looks ms/look"
    );
    for (count, limit) in [
        (10, 12),
        (10, 40),
        (30, 6),
        (30, 40),
        (100, 4),
        (100, 40),
        (300, 40),
        (1000, 2),
        (1000, 40),
    ] {
        if count > largest {
            continue;
        }
        for seed in 0..seeds {
            run(count, limit, Seed(seed), Rule::Umbel);
            if count <= petals_largest {
                run(count, limit, Seed(seed), Rule::Petals);
            }
        }
    }
}

fn run(count: u64, limit: u32, seed: Seed, rule: Rule) {
    let count = usize::try_from(count).expect("a size fits");
    let fleet = Fleet::random(seed, count, limit);
    let mut trial = Trial::new(seed, fleet.block_count, rule);
    for machine in &fleet.machines {
        trial.join(*machine);
        trial.wait(Duration::from_secs(10));
    }
    report("joins", &mut trial, fleet.block_count, (count, limit, seed, rule));
    let mut random = seed.stream("leaves");
    for host in trial.present() {
        if random.below(5) == 0 {
            trial.leave(host);
        }
    }
    report("leaves", &mut trial, fleet.block_count, (count, limit, seed, rule));
}

fn report(phase: &str, trial: &mut Trial, blocks: u32, name: (usize, u32, Seed, Rule)) {
    let (count, limit, seed, rule) = name;
    let began = Instant::now();
    let before = trial.tally;
    let rest = trial.rest();
    let took = began.elapsed();
    let bound = trial.bound();
    let machines = trial.machines();
    let (restarts, steps) = if count <= 100 { (3, 400_000 / count) } else { (1, 400) };
    let found = trial.throughput();
    let best = if found >= bound * 0.98 {
        bound
    } else {
        let best = reference::search(blocks, &machines, restarts, steps, &mut seed.stream("best"));
        best.max(found)
    };
    let tally = trial.tally;
    let looks = tally.looks - before.looks;
    println!(
        "{count:7} {limit:5} {:4} {blocks:6} | {phase:6} {rule:?} | {:8.3} {:7.3} | {:5} {:9.1} {:8} {} | {looks:6} {:.2}",
        seed.0,
        found / bound,
        if best > 0.0 { found / best } else { 1.0 },
        tally.moves - before.moves,
        (tally.bytes - if phase == "joins" { 0 } else { before.bytes }) as f64
            / 1e9
            / machines.len() as f64,
        tally.unserved_by_moves - before.unserved_by_moves,
        rest.map_or("never".to_owned(), |rest| format!("{:.0}s", rest.as_secs_f64())),
        took.as_secs_f64() * 1e3 / looks.max(1) as f64,
    );
}
