//! Sessions of many clients over random routes give what the oracle gives in one piece.

use umbel_coordinator::route::{RouteRequest, plan_route};
use umbel_protocol::announcement::{Announcement, Throughput, UnixTime};
use umbel_protocol::error::ErrorCode;
use umbel_protocol::{Span, Tensor};

use super::*;
use crate::oracle::{HIDDEN_SIZE, Oracle, embed};

const BLOCKS: u32 = 6;
const MODEL: ModelId = ModelId::from_bytes([9; 32]);

fn server(name: u8, span: Span, kv_tokens_max: u32) -> ServerConfig {
    ServerConfig {
        peer: PeerId::from_public_key([name; 32]),
        model: MODEL,
        span,
        hidden_size: HIDDEN_SIZE,
        context_tokens: 512,
        kv_tokens_max,
    }
}

fn announcement(config: &ServerConfig) -> Announcement {
    Announcement {
        peer: config.peer,
        model: MODEL,
        model_name: String::new(),
        span: config.span,
        block_count: BLOCKS,
        addresses: Vec::new(),
        version: String::new(),
        throughput: Throughput::default(),
        kv_tokens_free: config.kv_tokens_max,
        queue_depth: 0,
        draining: false,
        issued: UnixTime::after_epoch(Duration::ZERO),
        expires: UnixTime::after_epoch(Duration::from_secs(60)),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
    }
}

/// Steps at random: a prompt, then tokens, now and then several at once or a rollback.
fn plan(random: &mut Random) -> Plan {
    let mut plan = Plan { tokens_max: 200, ..Plan::default() };
    let mut end = 0;
    for step in 0..12 {
        let count = if step == 0 { 1 + random.below(30) } else { 1 + random.below(3) };
        if step > 0 && random.below(4) == 0 {
            end = random.below(end + 1);
        }
        let tokens = (0..count).map(|_| u32::try_from(random.below(1_000)).unwrap()).collect();
        plan.steps.push_back((u32::try_from(end).unwrap(), tokens));
        end += count;
    }
    plan
}

fn expected(plan: &Plan) -> Vec<Tensor> {
    let (mut oracle, session) = (Oracle::default(), SessionId::new(0));
    let all = Span::new(0, BLOCKS).unwrap();
    oracle.open(session, all);
    plan.steps
        .iter()
        .map(|(position, tokens)| oracle.step(session, all, *position, &embed(tokens)))
        .collect()
}

/// Random servers that together serve every block, and clients with random plans.
fn run(seed: Seed) -> (World, Vec<Plan>) {
    let mut random = seed.stream("swarm");
    let ms = Duration::from_millis;
    let links = Links { delay: ms(20), jitter: ms(10), bytes_per_second: 1e6 };
    let mut world = World::new(seed, links);
    let mut servers = Vec::new();
    for name in 1..=5 {
        let start = if name == 1 { 0 } else { random.below(5) };
        let end = if name == 1 { 6 } else { start + 1 + random.below(6 - start) };
        let span = Span::new(u32::try_from(start).unwrap(), u32::try_from(end).unwrap()).unwrap();
        let config = server(name, span, 4_000);
        let mut announced = announcement(&config);
        #[expect(clippy::cast_possible_truncation, reason = "a rate by chance")]
        let rate = (1.0 + 500.0 * random.unit()) as f32;
        announced.throughput.decode_tokens_per_second = rate;
        servers.push(announced);
        let per_block = Duration::from_secs_f32(1.0 / rate);
        world.serve(config, Speed { per_block, per_token: per_block / 20 });
    }
    let plans: Vec<_> = (0..8).map(|_| plan(&mut random)).collect();
    for (plan, number) in plans.iter().zip(0..) {
        let request = RouteRequest::new(Span::new(0, BLOCKS).unwrap(), plan.tokens_max);
        let route = plan_route(&request, &servers, &mut random).unwrap();
        world.open(SessionId::new(number), MODEL, &route, plan.clone());
    }
    world.run();
    (world, plans)
}

#[test]
fn every_answer_is_that_of_the_oracle_and_nothing_is_left_behind() {
    for seed in 0..50 {
        let (world, plans) = run(Seed(seed));
        for (client, plan) in world.clients.iter().zip(&plans) {
            assert_eq!(client.failure, None, "replay with Seed({seed})");
            assert_eq!(client.answers, expected(plan), "replay with Seed({seed})");
        }
        for host in &world.hosts {
            assert_eq!(host.server.session_count(), 0, "replay with Seed({seed})");
            assert_eq!(host.oracle.session_count(), 0, "replay with Seed({seed})");
            assert_eq!(host.server.queue_depth(), 0, "replay with Seed({seed})");
            assert_eq!(host.server.kv_tokens_free(), 4_000, "replay with Seed({seed})");
        }
    }
}

#[test]
fn one_seed_gives_one_trace() {
    assert_eq!(run(Seed(7)).0.trace(), run(Seed(7)).0.trace());
    assert_ne!(run(Seed(7)).0.trace(), run(Seed(8)).0.trace());
}

/// Two servers of half the blocks each, without jitter.
fn halves(kv_tokens_max: u32) -> (World, Route) {
    let ms = Duration::from_millis;
    let links = Links { delay: ms(50), jitter: Duration::ZERO, bytes_per_second: 1e9 };
    let mut world = World::new(Seed(1), links);
    let spans = [Span::new(0, 3).unwrap(), Span::new(3, 6).unwrap()];
    let mut hops = Vec::new();
    for (span, name) in spans.into_iter().zip(1..) {
        let config = server(name, span, kv_tokens_max);
        hops.push(umbel_coordinator::Hop { peer: config.peer, blocks: span });
        world.serve(config, Speed { per_block: ms(1), per_token: Duration::ZERO });
    }
    (world, Route::new(hops, Span::new(0, BLOCKS).unwrap()).unwrap())
}

#[test]
fn a_token_costs_one_trip_round_the_ring() {
    let (mut world, route) = halves(512);
    let steps = (0..20).map(|position| (position, vec![position])).collect();
    world.open(SessionId::new(1), MODEL, &route, Plan { tokens_max: 100, steps });
    world.run();
    let [first, .., last] = world.clients[0].durations.as_slice() else { panic!("20 steps") };
    // Three ways of 50 ms and six blocks of 1 ms; the bytes add microseconds.
    for duration in [first, last] {
        let beyond = duration.checked_sub(Duration::from_millis(156)).unwrap();
        assert!(beyond < Duration::from_micros(10), "{duration:?}");
    }
}

#[test]
fn a_session_for_which_there_is_no_room_is_refused_and_the_others_go_on() {
    let (mut world, route) = halves(160);
    let steps: VecDequeOfSteps = (0..5).map(|position| (position, vec![position])).collect();
    for number in 0..2 {
        let plan = Plan { tokens_max: 100, steps: steps.clone() };
        world.open(SessionId::new(number), MODEL, &route, plan);
    }
    world.run();
    let [first, second] = world.clients.as_slice() else { panic!("two clients") };
    assert_eq!((first.failure.as_ref(), first.answers.len()), (None, 5));
    let failure = second.failure.as_ref().unwrap();
    let umbel_coordinator::session::FailureReason::Refused { code, .. } = &failure.reason else {
        panic!("{failure}");
    };
    assert_eq!(*code, ErrorCode::KvFull);
    assert!(world.hosts.iter().all(|host| host.server.session_count() == 0));
}

type VecDequeOfSteps = std::collections::VecDeque<(u32, Vec<u32>)>;
