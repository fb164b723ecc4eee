//! Thin sessions: what is drawn is what the oracle draws, whatever happens, and a token crosses each
//! link of the route once.

use super::*;
use crate::workload::Turn;

/// A conversation at random: prompts in chunks, answers, now and then another way to go on from an
/// earlier place, and answers that are given up in their middle.
fn talk(random: &mut Random, _standby: bool) -> Plan {
    let mut plan = Plan { tokens_max: 400, ..Plan::default() };
    let mut length = 0;
    for turn in 0..1 + random.below(3) {
        let back = if turn > 0 && random.below(3) == 0 { random.below(length) } else { 0 };
        let chunks = 1 + random.below(5);
        let chunk =
            |random: &mut Random| tokens(1 + u32::try_from(random.below(9)).unwrap(), random);
        let prompt: Vec<_> = (0..chunks).map(|_| chunk(random)).collect();
        let answer = 1 + random.below(40);
        let unwanted = if random.below(3) == 0 { random.below(12) } else { 0 };
        length = length - back + prompt.iter().map(Vec::len).sum::<usize>() + answer;
        plan.turns.push_back(Turn {
            back,
            prompt,
            answer: u32::try_from(answer).unwrap(),
            unwanted: u32::try_from(unwanted).unwrap(),
            penalty: random.below(2) == 0,
        });
    }
    plan
}

fn answers(plan: &Plan) -> usize {
    plan.turns.iter().map(|turn| turn.prompt.len() + turn.answer as usize - 1).sum()
}

fn check_talk(seed: u64) {
    let (world, plans) = run(Seed(seed), talk, false);
    for (number, (client, plan)) in world.clients.iter().zip(&plans).enumerate() {
        let replay = format!("client {number}, replay with Seed({seed})");
        assert_eq!(client.failures, [], "{replay}");
        assert_eq!(client.answers.len(), answers(plan), "{replay}");
    }
    assert_eq!(world.totals.broken, [""; 0], "replay with Seed({seed})");
    assert_eq!(world.totals.violations, 0, "replay with Seed({seed})");
    assert_eq!(world.unsettled(), [""; 0], "replay with Seed({seed})");
    calm(&world, seed);
}

#[test]
fn under_faults_every_token_is_the_one_that_the_oracle_draws() {
    for seed in 0..100 {
        check_talk(seed);
    }
}

fn one_turn(answer: u32) -> Plan {
    let prompt = vec![vec![1, 2, 3, 4]];
    let turn = Turn { prompt, answer, ..Turn::default() };
    Plan { tokens_max: 100, turns: [turn].into(), ..Plan::default() }
}

#[test]
fn a_token_crosses_each_link_of_the_route_once() {
    let mut world = halves(512);
    world.join(Time::START, one_turn(20), 0);
    world.run();
    assert_eq!(world.totals.broken, [""; 0]);
    let [_, second, .., last] = world.clients[0].answers.as_slice() else { panic!("20 tokens") };
    for answer in [second, last] {
        // Two ways of 50 ms, not three, and six blocks of 1 ms.
        let beyond = answer.took.checked_sub(ms(106)).unwrap();
        assert!(beyond < Duration::from_micros(10), "{answer:?}");
    }
}

#[test]
fn on_one_server_a_token_crosses_no_link() {
    let mut world = one_server();
    world.join(Time::START, one_turn(40), 0);
    world.run();
    assert_eq!(world.totals.broken, [""; 0]);
    let answers = &world.clients[0].answers;
    assert_eq!(answers.len(), 40);
    // Six blocks of 1 ms, and nothing besides: the way here is the same for all.
    assert_eq!(answers[30].at.since(answers[29].at), ms(6));
}

#[test]
fn thin_sessions_share_passes_with_others() {
    let mut world = one_server();
    (0..4).for_each(|_| world.join(Time::START, one_turn(40), 0));
    (0..4).for_each(|_| world.join(Time::START, singles(40), 0));
    world.run();
    assert_eq!(world.totals.broken, [""; 0]);
    let took = world.clients.iter().map(|client| client.answers[39].at).max().unwrap();
    // One after another, 320 tokens of 6 ms each would take two seconds.
    assert!(took < at(1_000), "{took:?}");
}

#[test]
fn a_further_turn_begins_at_once_also_where_an_answer_is_left() {
    let mut world = halves(512);
    let prompt = vec![vec![7; 3], vec![8; 5], vec![9; 2]];
    let turn = |unwanted| Turn { prompt: prompt.clone(), answer: 6, unwanted, ..Turn::default() };
    let back = Turn { back: 4, penalty: true, ..turn(9) };
    let turns = [turn(0), turn(20), back, turn(0)].into();
    world.join(Time::START, Plan { tokens_max: 100, turns, ..Plan::default() }, 0);
    world.run();
    let client = &world.clients[0];
    assert_eq!((world.totals.broken_count, client.blamed.len(), client.answers.len()), (0, 0, 32));
    let gaps = client.answers.windows(2).map(|pair| pair[1].at.since(pair[0].at));
    // To say how to draw, there and back, and then one trip round; or one trip.
    let longest = gaps.max().unwrap();
    assert!(longest <= ms(100 + 156 + 30), "{longest:?}");
}

#[test]
fn a_hop_that_ends_costs_no_more_than_its_replay() {
    // Each server in turn; some are on the route, as the first hop, the last or another.
    let mut blamed = 0;
    for victim in 0..9 {
        let links = LinkClass::new(ms(5), Duration::ZERO, 1e9);
        let mut world = World::new(Seed(victim as u64), Settings::new(MODEL, BLOCKS, links));
        for (name, start) in (1..).zip([0, 2, 4].repeat(3)) {
            let speed = Speed::new(ms(1), Duration::ZERO);
            world.serve(server(name, start, start + 2, 512), speed, 0);
        }
        world.join(Time::START, one_turn(60), 0);
        world.plan(at(600), Fault::Crash { server: victim, noticed: true });
        world.run();
        let client = &world.clients[0];
        assert_eq!((world.totals.broken_count, client.answers.len()), (0, 60), "{victim}");
        blamed += client.blamed.len();
        let gaps = client.answers.windows(2).map(|pair| pair[1].at.since(pair[0].at));
        let longest = gaps.max().unwrap();
        assert!(longest < ms(300), "{victim}: {longest:?}, {:?}", client.blamed);
    }
    assert!(blamed >= 3, "only {blamed} were on a route");
}

#[test]
fn a_last_server_that_cannot_reach_the_first_sends_tokens_over_the_client() {
    let links = LinkClass::new(ms(50), Duration::ZERO, 1e9);
    let mut settings = Settings::new(MODEL, BLOCKS, links);
    settings.topology.between.insert((1, 0), LinkClass { dialable: false, ..links });
    let mut world = World::new(Seed(1), settings);
    for (group, (name, start)) in [(1, 0), (2, 3)].into_iter().enumerate() {
        let speed = Speed::new(ms(1), Duration::ZERO);
        world.serve(server(name, start, start + 3, 512), speed, group);
    }
    world.join(Time::START, one_turn(20), 0);
    world.run();
    let client = &world.clients[0];
    assert_eq!((world.totals.broken_count, client.answers.len()), (0, 20));
    assert!(client.blamed.is_empty(), "{:?}", client.blamed);
    // As for a client that draws itself.
    let beyond = client.answers[19].took.checked_sub(ms(156)).unwrap();
    assert!(beyond < Duration::from_micros(10), "{:?}", client.answers[19]);
}
