//! Sessions that begin with what others of their client have left, under faults.

use umbel_coordinator::server::IDLE_KEPT;

use super::tests::{BLOCKS, MODEL, at, faults, links, ms, serve_some, server};
use super::*;
use crate::workload::tokens;

/// Sessions of one client: each begins with some of what the one before it read, now and then with
/// something else than it said, and now and then tokens are taken back.
fn plans(random: &mut Random, standby: bool) -> Vec<(Duration, Plan)> {
    let count = 2 + random.below(4);
    let mut text = tokens(20 + u32::try_from(random.below(60)).unwrap(), random);
    let mut plans = Vec::new();
    for _ in 0..count {
        let mut plan =
            Plan { tokens_max: 250, standby, window: 1 + random.below(6), ..Plan::default() };
        let mut says = text.clone();
        if random.below(6) == 0 {
            let wrong = random.below(says.len());
            says[wrong] = 1_000;
        }
        plan.says = (random.below(10) > 0).then_some(says);
        let chunk = 1 + random.below(text.len());
        let mut end = 0;
        for part in text.chunks(chunk) {
            plan.steps.push_back((end, part.to_vec()));
            end += u32::try_from(part.len()).unwrap();
        }
        let mut read = text.clone();
        for _ in 0..random.below(40) {
            let at = read.len();
            let at = if random.below(8) == 0 { at - random.below(at.min(30)) } else { at };
            read.truncate(at);
            let new = tokens(1 + u32::try_from(random.below(3)).unwrap(), random);
            plan.steps.push_back((u32::try_from(at).unwrap(), new.clone()));
            read.extend(new);
        }
        let kept = if random.below(3) == 0 { random.below(read.len()) } else { read.len() };
        text = read[..kept].to_vec();
        text.extend(tokens(1 + u32::try_from(random.below(20)).unwrap(), random));
        text.truncate(150);
        plans.push((ms(random.below(400) as u64), plan));
    }
    plans
}

/// Four clients, of which two have one name, with routes that nobody would choose or those of
/// production.
fn run(seed: u64, standby: bool) -> (World, Vec<usize>) {
    let planner = if seed.is_multiple_of(2) { Planner::Random } else { Planner::Announced };
    let seed = Seed(seed);
    let mut random = seed.stream("swarm");
    let settings = Settings { planner, ..Settings::new(MODEL, BLOCKS, links()) };
    let mut world = World::new(seed, settings);
    // Room for few sessions, so that what is kept has to go.
    if random.below(3) == 0 {
        serve_some(&mut world, &mut random, 700);
    } else {
        for (name, (start, end)) in (1..).zip([(0, 3), (3, 6), (0, 3), (3, 6), (2, 6)]) {
            let mut config = server(name, start, end, 700);
            if random.below(3) == 0 {
                config.journal_bytes_max = 2_000;
            }
            world.serve(config, Speed::new(ms(4), Duration::from_micros(200)), 0);
        }
    }
    let mut steps = Vec::new();
    let shared = plans(&mut random, standby);
    for client in 0..4 {
        let plans = if client < 2 { shared.clone() } else { plans(&mut random, standby) };
        steps.push(plans.iter().map(|(_, plan)| plan.steps.len()).sum());
        let begin = at(random.below(500) as u64);
        world.join_for(begin, plans, 0);
    }
    world.clients[1].peer = world.clients[0].peer;
    faults(&mut world, &mut random);
    world.run();
    (world, steps)
}

fn check(seed: u64, standby: bool) -> u64 {
    let (world, steps) = run(seed, standby);
    for (number, (client, steps)) in world.clients.iter().zip(&steps).enumerate() {
        let replay = format!("client {number}, replay with seed {seed}, standby {standby}");
        assert_eq!(client.failures, [], "{replay}");
        assert_eq!(client.answers.len() + client.skipped, *steps, "{replay}");
    }
    assert_eq!(world.totals.broken, [""; 0], "replay with seed {seed}, standby {standby}");
    assert_eq!(world.unsettled(), [""; 0], "replay with seed {seed}, standby {standby}");
    world.totals.tokens_shared
}

#[test]
fn under_faults_every_answer_is_that_of_a_session_that_shares_nothing() {
    let shared: u64 = (0..80).map(|seed| check(seed, false)).sum();
    assert!(shared > 80 * 60, "{shared} tokens");
}

#[test]
fn with_spares_too() {
    for seed in 0..20 {
        check(seed, true);
    }
}

/// Two servers of half the blocks each, and two clients that ask the same, one after the other.
fn two_clients(kv_tokens_max: u32, pause: Duration) -> World {
    let mut world =
        World::new(Seed(1), Settings::new(MODEL, BLOCKS, LinkClass::new(ms(5), ms(0), 1e9)));
    for (name, (start, end)) in [(1, (0, 3)), (2, (3, 6))] {
        world.serve(server(name, start, end, kv_tokens_max), Speed::new(ms(1), ms(0)), 0);
    }
    let text: Vec<u32> = (0..100).collect();
    for client in 0..2u64 {
        let plan = Plan {
            tokens_max: 150,
            steps: [(0, text.clone()), (100, vec![7])].into(),
            says: Some(text.clone()),
            ..Plan::default()
        };
        let at = Time::START + pause * u32::try_from(client).unwrap();
        world.join_for(at, vec![(ms(0), plan.clone()), (ms(50), plan)], 0);
    }
    world
}

#[test]
fn a_prompt_is_read_once_by_its_own_client_and_again_by_another() {
    let mut world = two_clients(1_000, Duration::from_secs(5));
    world.run();
    assert_eq!(world.totals.broken, [""; 0]);
    // The second session of each client: the last page is not full.
    assert_eq!(world.totals.tokens_shared, 2 * 96);
}

#[test]
fn what_is_kept_makes_room_for_whoever_comes() {
    // A session takes 160 tokens, and what is left is no room for seven pages.
    let mut world = two_clients(256, ms(80));
    world.run();
    assert_eq!(world.totals.broken, [""; 0]);
    for client in &world.clients {
        assert_eq!((client.failures.len(), client.answers.len()), (0, 4));
        assert_eq!(client.blamed, []);
    }
}

#[test]
fn what_nobody_asks_for_any_more_is_dropped() {
    let mut world = two_clients(1_000, IDLE_KEPT * 3);
    world.run();
    assert!(world.hosts.iter().all(|host| host.server.pages_kept() == 0));
    assert!(world.hosts.iter().all(|host| host.oracle.page_count() == 0 && host.used() == 0));
}
