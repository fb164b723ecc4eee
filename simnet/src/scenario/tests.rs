//! Every scenario that comes with the crate is one, and a small soak breaks nothing.

use super::*;
use crate::seed::Seed;
use crate::world::World;

fn built_in(name: &str) -> Scenario {
    let (_, text) = BUILT_IN.iter().find(|(of, _)| *of == name).unwrap();
    Scenario::parse(text).unwrap()
}

/// A run that ends well.
fn sound(scenario: &Scenario, seed: u64) -> World {
    let mut world = scenario.build(Seed(seed)).unwrap();
    world.run();
    assert_eq!(world.totals.broken, [""; 0], "replay with Seed({seed})");
    assert_eq!(world.unsettled(), [""; 0], "replay with Seed({seed})");
    world
}

#[test]
fn every_built_in_scenario_can_be_built() {
    for (name, _) in BUILT_IN {
        assert!(built_in(name).build(Seed(0)).is_ok(), "{name}");
    }
}

#[test]
fn a_bad_file_is_refused_with_its_reason() {
    let text = BUILT_IN[0].1;
    let refused = |text: &str| Scenario::parse(text).unwrap_err().to_string();
    let unknown = Scenario::parse(&text.replace("about", "abuot")).unwrap_err();
    let source = std::error::Error::source(&unknown).unwrap().to_string();
    assert!(source.contains("abuot"), "{source}");
    let halves = text.replacen("share = 0.1", "share = 1.5", 1);
    assert_eq!(refused(&halves), "faults.share must be from 0 to 1");
    let mut scenario = built_in("partition");
    scenario.partitions[0].between[0] = "mars".to_owned();
    let refused = scenario.build(Seed(0)).unwrap_err().to_string();
    assert_eq!(refused, "no servers or clients are in a group \"mars\"");
}

#[test]
fn a_small_soak_breaks_nothing_and_ends_all_its_sessions() {
    let mut soak = built_in("soak");
    (soak.servers[0].count, soak.clients[0].count) = (60, 2);
    (soak.phases.faults_minutes, soak.phases.quiet_minutes) = (0.8, 0.2);
    for fault in &mut soak.faults {
        // As much in less than a minute as else in ten.
        fault.every_minutes = 0.8;
        fault.for_seconds = [1.0, 20.0];
    }
    for clients in &mut soak.clients {
        (clients.prompt, clients.answer, clients.arrival_seconds) = ([1, 20], [10, 60], 5.0);
    }
    for seed in 0..50 {
        let world = sound(&soak, seed);
        for client in &world.clients {
            assert_eq!(client.failures, [], "replay with Seed({seed})");
        }
        assert!(world.totals.crashes > 0);
    }
}

#[test]
fn groups_that_are_parted_come_together_again() {
    let world = sound(&built_in("partition"), 1);
    assert!(world.clients.iter().all(|client| client.sessions_done > 0));
}

#[test]
fn servers_that_answer_in_the_wrong_shape_are_given_up() {
    let world = sound(&built_in("liar"), 1);
    assert!(world.totals.lies > 0 && world.totals.blames > 0);
    assert!(world.clients.iter().all(|client| client.sessions_done > 0));
}
