//! Servers that have more to do than they can: they are late, and nobody gives them up for it.

use super::tests::{BLOCKS, MODEL, at, ms, server};
use super::*;
use crate::workload::tokens;

/// Sessions of one process.
const SESSIONS: usize = 100;

/// Tokens of each answer.
const ANSWER: u32 = 12;

/// How long the thread of a server takes for a message: with a ping of each session every 40 ms, 50
/// of them on each server, it has more than it can do.
const PER_MESSAGE: Duration = Duration::from_millis(4);

/// Within this time a frozen server is given up by every session. A ping follows after 40 ms of
/// silence to all of them. Fifty sessions keep the thread busy for 200 ms with a message each, so its
/// answers take up to that, and twice that while prompts come; then the patience is twice their time
/// and four times its variation.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);

/// A hundred sessions that begin in the same second on two servers of each half of the model, each in
/// a process of its own or all in one.
fn laden(seed: u64, together: bool, fault: Option<(Time, Fault)>) -> World {
    let seed = Seed(seed);
    let mut settings = Settings::new(MODEL, BLOCKS, LinkClass::new(ms(1), ms(1), 1e8));
    settings.token_bytes = 2_304;
    let mut world = World::new(seed, settings);
    for (name, start, end) in [(1, 0, 3), (2, 3, BLOCKS), (3, 0, 3), (4, 3, BLOCKS)] {
        let config = server(name, start, end, 20_000);
        world.serve(config, Speed::new(ms(4), Duration::from_micros(500)), 0);
        world.hosts.last_mut().unwrap().per_message = PER_MESSAGE;
    }
    let mut random = seed.stream("plans");
    for session in 0..SESSIONS {
        let mut plan = Plan { tokens_max: 80, ..Plan::default() };
        plan.steps.push_back((0, tokens(40, &mut random)));
        let answer = (40..40 + ANSWER).map(|position| (position, tokens(1, &mut random)));
        plan.steps.extend(answer.collect::<Vec<_>>());
        let begin = at(random.below(1_000) as u64);
        if together && session > 0 {
            world.join_beside(begin, plan, 0);
        } else {
            world.join(begin, plan, 0);
        }
    }
    if let Some((at, fault)) = fault {
        world.plan(at, fault);
    }
    world.run();
    assert_eq!(world.totals.broken, [""; 0], "replay with {seed:?}");
    for client in &world.clients {
        assert_eq!(client.failures, [], "replay with {seed:?}");
        assert_eq!(client.answers.len(), 1 + ANSWER as usize, "replay with {seed:?}");
    }
    world
}

#[test]
fn a_hundred_sessions_of_a_process_give_no_laden_server_up() {
    for seed in 0..5 {
        let world = laden(seed, true, None);
        let blamed: Vec<_> = world.clients.iter().flat_map(|client| &client.blamed).collect();
        assert!(blamed.is_empty(), "replay with Seed({seed}): {blamed:?}");
    }
}

#[test]
fn the_load_is_one_under_which_servers_seem_silent_to_who_asks_alone() {
    let world = laden(0, false, None);
    assert!(world.totals.blames > 10, "{} are no load", world.totals.blames);
}

#[test]
fn a_server_that_freezes_among_laden_ones_is_given_up_in_time_and_no_other_is() {
    for seed in 0..5 {
        let frozen = PeerId::from_public_key([1; 32]);
        let world = laden(seed, true, Some((at(3_000), Fault::Freeze { server: 0 })));
        let blamed: Vec<_> = world.clients.iter().flat_map(|client| &client.blamed).collect();
        assert!(blamed.len() > SESSIONS / 4, "replay with Seed({seed}): {} had it", blamed.len());
        let last = world.clients.iter().filter_map(|client| client.blamed_at).max().unwrap();
        let noticed = last.since(at(3_000));
        assert!(noticed < NOTICED_WITHIN, "replay with Seed({seed}): {noticed:?}");
        for failure in blamed {
            assert_eq!(failure.hop.peer, frozen, "replay with Seed({seed}): {failure}");
        }
    }
}
