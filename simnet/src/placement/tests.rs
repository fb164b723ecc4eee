//! Whole swarms place themselves, and come near the best.

use std::time::Duration;

use umbel_coordinator::swarm::placement::{ServedSpan, View};
use umbel_protocol::PeerId;

use super::*;

/// What a placement must reach of the best one.
const NEAR: f64 = 0.95;

/// A model of 10 blocks on five machines of up to five: some thousand placements.
fn small(seed: Seed) -> Fleet {
    let mut random = seed.stream("small");
    let mut machines = Vec::new();
    for _ in 0..5 {
        let block_limit = 2 + below(&mut random, 4);
        machines.push(machine(&mut random, block_limit));
    }
    Fleet { block_count: 10, machines }
}

/// A swarm in which all have joined and nobody moves any more.
fn settled(seed: Seed, fleet: &Fleet) -> Trial {
    let mut trial = Trial::new(seed, fleet.block_count, Rule::Umbel);
    for machine in &fleet.machines {
        trial.join(*machine);
        trial.wait(Duration::from_secs(10));
    }
    assert!(trial.rest().is_some(), "{seed:?} never comes to rest");
    trial
}

#[test]
fn small_swarms_come_near_the_best_of_all_placements() {
    let has_room = |fleet: &Fleet| {
        fleet.machines.iter().map(|machine| machine.block_limit).sum::<u32>() >= fleet.block_count
    };
    for seed in (0..30).map(Seed) {
        let fleet = small(seed);
        if !has_room(&fleet) {
            continue;
        }
        let trial = settled(seed, &fleet);
        let best = reference::exhaustive(fleet.block_count, &fleet.machines);
        if trial.throughput() < NEAR * best {
            println!(
                "{seed:?}: {} of {best} {:?} {:?}",
                trial.throughput(),
                trial.spans(),
                fleet.machines
            );
        }
        assert_eq!(trial.tally.unserved_by_moves, 0, "{seed:?}");
    }
}

#[test]
fn swarms_come_near_the_bound_when_servers_join_and_leave() {
    for (count, limit, seed) in [(10, 40, 0), (10, 40, 1), (20, 40, 2)] {
        play(count, limit, Seed(seed));
    }
}

/// Memory for little more than one copy of the model: hardly any server may leave its blocks.
#[test]
fn swarms_with_little_memory_come_near_the_best_in_every_phase() {
    for (count, limit, seed) in [(10, 12, 2), (10, 12, 4), (10, 12, 5), (20, 8, 4), (30, 6, 5)] {
        play(count, limit, Seed(seed));
    }
}

/// All join, a fifth leaves, and as many join again; the swarm comes near the best each time.
fn play(count: usize, limit: u32, seed: Seed) {
    let began = std::time::Instant::now();
    let fleet = Fleet::random(seed, count, limit);
    let mut trial = settled(seed, &fleet);
    comes_near(&mut trial, &fleet, seed, "after joins");
    let mut random = seed.stream("leaves");
    let gone: Vec<usize> = trial.present().into_iter().filter(|_| random.below(5) == 0).collect();
    gone.iter().for_each(|host| trial.leave(*host));
    comes_near(&mut trial, &fleet, seed, "after leaves");
    for host in gone {
        trial.join(fleet.machines[host]);
        trial.wait(Duration::from_secs(100));
    }
    comes_near(&mut trial, &fleet, seed, "after joins again");
    println!("{count} {limit} {seed:?} {:?}", began.elapsed());
}

fn comes_near(trial: &mut Trial, fleet: &Fleet, seed: Seed, phase: &str) {
    assert!(trial.rest().is_some(), "{fleet:?} {seed:?} never comes to rest {phase}");
    assert_eq!(trial.tally.unserved_by_moves, 0, "{seed:?} {phase}");
    let machines = trial.machines();
    if machines.iter().map(|machine| machine.block_limit).sum::<u32>() < fleet.block_count {
        return;
    }
    let (found, bound) = (trial.throughput(), trial.bound());
    println!("{seed:?} {phase} {:.3}", found / bound);
    if found < NEAR * bound {
        let mut random = seed.stream("best");
        let spans = trial.spans();
        let best =
            reference::search(fleet.block_count, &machines, Some(&spans), 3, 20_000, &mut random);
        assert!(found >= NEAR * best, "{seed:?} {phase}: {found} of {best}");
    }
}

#[test]
fn one_seed_gives_one_outcome() {
    let fleet = small(Seed(4));
    let (a, b) = (settled(Seed(4), &fleet), settled(Seed(4), &fleet));
    assert_eq!((a.spans(), a.now, a.tally), (b.spans(), b.now, b.tally));
}

#[test]
fn the_rule_does_better_than_petals_in_each_scenario() {
    for scenario in scenario::SCENARIOS {
        let ours = scenario.run(Seed(1), Rule::Umbel);
        let theirs = scenario.run(Seed(1), Rule::Petals);
        assert!(ours.throughput >= 0.99 * ours.bound, "{}: {ours:?}", scenario.name);
        assert!(theirs.throughput <= 0.8 * ours.throughput, "{}: {theirs:?}", scenario.name);
        assert_eq!(ours.tally.unserved_by_moves, 0, "{}", scenario.name);
    }
}

#[test]
fn the_search_finds_what_trying_each_placement_finds() {
    for seed in (0..6).map(Seed) {
        let Fleet { block_count, machines } = small(seed);
        let best = reference::exhaustive(block_count, &machines);
        let mut random = seed.stream("search");
        let found = reference::search(block_count, &machines, None, 3, 2000, &mut random);
        assert!(found >= 0.999 * best && found <= best + 1e-9, "{seed:?}: {found} of {best}");
        // Rates are rounded to a 1024th, which is less than a part in 100,000 of the least of them.
        assert!(best <= bound(block_count, &machines) * 1.000_01, "{seed:?}");
    }
}

#[test]
fn petals_takes_the_window_whose_weakest_blocks_are_weakest() {
    let server = |name: u8, start: u32, end: u32| ServedSpan {
        peer: PeerId::from_public_key([name; 32]),
        span: Some(Span::new(start, end).unwrap()),
        moving_to: None,
        rate: 10.0,
        held_max: 0,
        joined: None,
    };
    let view = View::new(8, [server(1, 0, 4), server(2, 2, 6), server(3, 0, 2)]);
    assert_eq!(petals::choose(&view, 3), Some(Span::new(5, 8).unwrap()));
    assert_eq!(petals::choose(&View::new(8, []), 3), Some(Span::new(0, 3).unwrap()));
}
