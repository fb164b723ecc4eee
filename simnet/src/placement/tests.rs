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

/// Whether a fifth more memory is there than the model needs. With less, spans can hardly be
/// shifted without leaving a block, and the order of the joins decides.
fn has_spare(block_count: u32, machines: &[Machine]) -> bool {
    machines.iter().map(|machine| machine.block_limit).sum::<u32>() * 5 >= block_count * 6
}

#[test]
fn small_swarms_come_near_the_best_of_all_placements() {
    let seeds = (0..30).map(Seed).filter(|seed| has_spare(10, &small(*seed).machines));
    for seed in seeds.take(8) {
        let fleet = small(seed);
        let trial = settled(seed, &fleet);
        let best = reference::exhaustive(fleet.block_count, &fleet.machines);
        assert!(
            trial.throughput() >= NEAR * best,
            "{seed:?}: {} of {best} {:?}",
            trial.throughput(),
            trial.spans()
        );
        assert_eq!(trial.tally.unserved_by_moves, 0, "{seed:?}");
    }
}

#[test]
fn swarms_come_near_the_bound_when_servers_join_and_leave() {
    for (count, seed) in [(10, 0), (10, 1), (20, 2)] {
        let seed = Seed(seed);
        let fleet = Fleet::random(seed, count, 40);
        let mut trial = settled(seed, &fleet);
        assert!(trial.throughput() >= NEAR * trial.bound(), "{count} {seed:?} after joins");
        let mut random = seed.stream("leaves");
        for host in trial.present() {
            if random.below(5) == 0 {
                trial.leave(host);
            }
        }
        assert!(trial.rest().is_some(), "{seed:?} never comes to rest");
        assert!(trial.throughput() >= NEAR * trial.bound(), "{count} {seed:?} after leaves");
        assert_eq!(trial.tally.unserved_by_moves, 0, "{seed:?}");
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
        let found = reference::search(block_count, &machines, 3, 2000, &mut random);
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
    };
    let view = View::new(8, [server(1, 0, 4), server(2, 2, 6), server(3, 0, 2)]);
    assert_eq!(petals::choose(&view, 3), Some(Span::new(5, 8).unwrap()));
    assert_eq!(petals::choose(&View::new(8, []), 3), Some(Span::new(0, 3).unwrap()));
}
