//! Experiment.
#![allow(clippy::all, clippy::pedantic, missing_docs)]
use std::time::Duration;
use umbel_simnet::placement::{Fleet, Rule, Trial};
use umbel_simnet::seed::Seed;
fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let (count, limit, seed) = (a[0] as usize, a[1] as u32, Seed(a[2]));
    let fleet = Fleet::random(seed, count, limit);
    let b = fleet.block_count;
    let mut trial = Trial::new(seed, b, Rule::Umbel);
    for m in &fleet.machines {
        trial.join(*m);
        trial.wait(Duration::from_secs(a[4]));
    }
    if a.len() > 5 {
        let t0 = trial.now;
        for _ in 0..a[5] {
            trial.wait(Duration::from_secs(120));
            println!(
                "{} {:.3} {:?} {}",
                trial.now.since(t0).as_secs(),
                trial.throughput() / trial.bound(),
                trial.tally.moves,
                trial.states()
            );
        }
        return;
    }
    println!(
        "joins rest {:?} {:.3} {}",
        trial.rest(),
        trial.throughput() / trial.bound(),
        trial.states()
    );
    for (m, s) in trial.machines().iter().zip(trial.spans()) {
        println!("{} {} held {} rate {:.0}", s, m.block_limit, m.held_max, m.rate);
    }
    if a[3] == 0 {
        return;
    }
    let mut random = seed.stream("leaves");
    for host in trial.present() {
        if random.below(5) == 0 {
            trial.leave(host);
        }
    }
    let t0 = trial.now;
    for _ in 0..a[3] {
        trial.wait(Duration::from_secs(300));
        println!(
            "{} {:.3} {:?} {}",
            trial.now.since(t0).as_secs(),
            trial.throughput() / trial.bound(),
            trial.tally,
            trial.states()
        );
    }
}
