//! Sessions of many clients under faults give what the oracle gives in one piece.

mod thin;

use umbel_coordinator::session::HopId;
use umbel_protocol::inference::{AnswerRows, Destination, OpenSession};
use umbel_protocol::{DType, SessionId, Span, StepId};

use super::*;
use crate::oracle::{HIDDEN_SIZE, VOCABULARY};
use crate::workload::tokens;

/// The longest that an answer may take once nothing fails any more: two seconds in which all servers
/// have failed the session lately, and then the replay. (The longest of 900 runs takes 3.0 s, and who
/// waits for what does not come is found out after 5 s.)
const CALM_MAX: Duration = Duration::from_secs(5);

pub(super) const BLOCKS: u32 = 6;
pub(super) const MODEL: ModelId = ModelId::from_bytes([9; 32]);

pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(super) fn at(milliseconds: u64) -> Time {
    Time::after_start(ms(milliseconds))
}

pub(super) fn server(name: u8, start: u32, end: u32, kv_tokens_max: u32) -> ServerConfig {
    ServerConfig {
        peer: PeerId::from_public_key([name; 32]),
        model: MODEL,
        span: Span::new(start, end).unwrap(),
        block_count: BLOCKS,
        vocabulary_size: Some(VOCABULARY),
        hidden_size: HIDDEN_SIZE,
        head_size: 32,
        context_tokens: 512,
        kv_tokens_max,
        cache: None,
        journal_bytes_max: 1 << 20,
        keeps_pages: true,
        adapters: None,
    }
}

/// Steps at random: a prompt in up to six chunks, then tokens, now and then several at once or a
/// rollback; up to six steps under way.
fn plan(random: &mut Random, standby: bool) -> Plan {
    let answer_rows = if random.below(2) == 0 { AnswerRows::All } else { AnswerRows::Last };
    let window = 1 + random.below(6);
    let mut plan = Plan { tokens_max: 200, standby, window, answer_rows, ..Plan::default() };
    let mut end = 0;
    let chunks = 1 + random.below(6);
    for step in 0..20 {
        let count = if step < chunks { 1 + random.below(60 / chunks) } else { 1 + random.below(3) };
        if step >= chunks && random.below(4) == 0 {
            end = random.below(end + 1);
        }
        let tokens = (0..count).map(|_| u32::try_from(random.below(1_000)).unwrap()).collect();
        plan.steps.push_back((u32::try_from(end).unwrap(), tokens));
        end += count;
    }
    plan
}

/// Steps of a client that guesses: a prompt, then steps with drafts, each of which begins where the
/// drafts of the one before it went wrong.
fn guessing_plan(random: &mut Random, standby: bool) -> Plan {
    let mut plan = Plan { tokens_max: 300, standby, ..Plan::default() };
    let prompt = 1 + random.below(60);
    plan.steps.push_back((0, tokens(u32::try_from(prompt).unwrap(), random)));
    let mut end = prompt;
    for _ in 0..20 {
        let drafts = random.below(9);
        let rows = tokens(u32::try_from(drafts + 1).unwrap(), random);
        plan.steps.push_back((u32::try_from(end).unwrap(), rows));
        end += 1 + random.below(drafts + 1);
    }
    plan
}

/// What a client does, by chance.
type MakePlan = fn(&mut Random, bool) -> Plan;

/// Servers of which two at least serve each block, clients with random plans, and faults.
fn run(seed: Seed, make_plan: MakePlan, standby: bool) -> (World, Vec<Plan>) {
    let mut random = seed.stream("swarm");
    let mut world = World::new(seed, Settings::new(MODEL, BLOCKS, links()));
    serve_some(&mut world, &mut random, 4_000);
    let plans: Vec<_> = (0..6).map(|_| make_plan(&mut random, standby)).collect();
    for plan in &plans {
        let begin = at(random.below(500) as u64);
        world.join(begin, plan.clone(), 0);
    }
    faults(&mut world, &mut random);
    world.run();
    (world, plans)
}

pub(super) fn links() -> LinkClass {
    LinkClass::new(ms(20), ms(10), 1e6)
}

/// Nine servers, of which two at least have each block.
pub(super) fn serve_some(world: &mut World, random: &mut Random, kv_tokens_max: u32) {
    for name in 0..9u8 {
        let (start, end) = match name {
            0 | 1 => (0, 3),
            2 | 3 => (2, 6),
            _ => {
                let start = u32::try_from(random.below(5)).unwrap();
                (start, start + 1 + u32::try_from(random.below((6 - start) as usize)).unwrap())
            }
        };
        let mut config = server(name + 1, start, end, kv_tokens_max);
        if random.below(3) == 0 {
            config.journal_bytes_max = 2_000;
        }
        let per_block = Duration::from_secs_f64(0.001 + 0.01 * random.unit());
        world.serve(config, Speed::new(per_block, per_block / 20), 0);
    }
}

/// Everything that can happen to servers, in the first five seconds; all of them run in the end.
pub(super) fn faults(world: &mut World, random: &mut Random) {
    let count = world.hosts.len();
    for _ in 0..12 {
        let (server, begin) = (random.below(count), 100 + random.below(5_000) as u64);
        let end = begin + 50 + random.below(3_000) as u64;
        let (fault, undo) = match random.below(5) {
            0 => (Fault::Crash { server, noticed: true }, Fault::Restart { server }),
            1 => (Fault::Crash { server, noticed: false }, Fault::Restart { server }),
            2 => (Fault::Freeze { server }, Fault::Thaw { server }),
            3 => (Fault::Leave { server }, Fault::Restart { server }),
            _ => (Fault::Restart { server }, Fault::Thaw { server }),
        };
        world.plan(at(begin), fault);
        world.plan(at(end), undo);
    }
    for server in 0..count {
        world.plan(at(9_000), Fault::Thaw { server });
        world.plan(at(10_000), Fault::Restart { server });
    }
}

fn check(seed: u64, make_plan: MakePlan, standby: bool) {
    let (world, plans) = run(Seed(seed), make_plan, standby);
    for (number, (client, plan)) in world.clients.iter().zip(&plans).enumerate() {
        let replay = format!("client {number}, replay with Seed({seed}), standby {standby}");
        assert_eq!(client.failures, [], "{replay}");
        assert_eq!(client.answers.len(), plan.steps.len(), "{replay}");
    }
    assert_eq!(world.totals.broken, [""; 0], "replay with Seed({seed}), standby {standby}");
    assert_eq!(world.unsettled(), [""; 0], "replay with Seed({seed}), standby {standby}");
    calm(&world, seed);
}

/// Nobody waits for long once nothing fails any more.
fn calm(world: &World, seed: u64) {
    let longest = world.longest_calm();
    assert!(longest < CALM_MAX, "replay with Seed({seed}): {longest:?}");
}

#[test]
fn one_seed_gives_one_trace() {
    let trace = |seed| run(Seed(seed), plan, true).0.trace();
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}

#[test]
fn under_faults_every_answer_is_that_of_the_oracle_and_nothing_is_left_behind() {
    for seed in 0..50 {
        check(seed, plan, false);
    }
}

#[test]
fn with_spares_too() {
    for seed in 0..50 {
        check(seed, plan, true);
    }
}

#[test]
fn with_drafts_that_go_wrong_too() {
    for seed in 0..24 {
        check(seed, guessing_plan, seed % 2 == 1);
    }
}

/// Two servers of half the blocks each, without jitter.
fn halves(kv_tokens_max: u32) -> World {
    let links = LinkClass::new(ms(50), Duration::ZERO, 1e9);
    let mut world = World::new(Seed(1), Settings::new(MODEL, BLOCKS, links));
    for (name, (start, end)) in [(1, (0, 3)), (2, (3, 6))] {
        let speed = Speed::new(ms(1), Duration::ZERO);
        world.serve(server(name, start, end, kv_tokens_max), speed, 0);
    }
    world
}

fn singles(count: u32) -> Plan {
    let steps = (0..count).map(|position| (position, vec![position])).collect();
    Plan { tokens_max: 100, steps, ..Plan::default() }
}

#[test]
fn a_session_that_a_server_is_not_told_the_end_of_does_not_go_unnoticed() {
    let mut world = halves(512);
    world.join(Time::START, singles(2), 0);
    let open = OpenSession {
        session: SessionId::new(7),
        model: MODEL,
        blocks: Span::new(0, 3).unwrap(),
        tokens_max: 16,
        previous: None,
        next: Destination::Client,
        next_position: 0,
        next_step: StepId::default(),
        results: DType::F32,
        compress: false,
        cache: DType::F32,
        prefix: Vec::new(),
        thin: false,
        drawer: None,
        adapter: None,
    };
    // On a link that no client knows of.
    let (link, from) = (links::link_id((0, HopId(99))), world.clients[0].peer);
    let message = ClientMessage::Open(open);
    world.tell_server(0, umbel_coordinator::server::Input::Received { link, from, message });
    world.run();
    assert_eq!(world.clients[0].answers.len(), 2);
    let [broken] = world.totals.broken.as_slice() else { panic!("{:?}", world.totals.broken) };
    assert!(broken.contains("nobody told server 0"), "{broken}");
}

#[test]
fn a_token_costs_one_trip_round_the_ring() {
    let mut world = halves(512);
    world.join(Time::START, singles(20), 0);
    world.run();
    let [first, .., last] = world.clients[0].answers.as_slice() else { panic!("20 steps") };
    // Three ways of 50 ms and six blocks of 1 ms; the bytes add microseconds.
    for duration in [first, last] {
        let beyond = duration.took.checked_sub(ms(156)).unwrap();
        assert!(beyond < Duration::from_micros(10), "{duration:?}");
    }
}

#[test]
fn drafts_that_were_wrong_cost_no_trip_of_their_own() {
    let mut world = halves(512);
    // Eight drafts each time, of which three are right.
    let steps = (0..20).map(|step| (step * 4, (0..9).map(|row| step * 9 + row).collect()));
    let plan = Plan { tokens_max: 100, steps: steps.collect(), ..Plan::default() };
    world.join(Time::START, plan, 0);
    world.run();
    assert_eq!(world.totals.broken, [""; 0]);
    assert_eq!(world.clients[0].answers.len(), 20);
    for answer in &world.clients[0].answers {
        // As for a single token.
        assert!(answer.took.checked_sub(ms(156)).unwrap() < ms(1), "{answer:?}");
    }
}

#[test]
fn a_session_for_which_there_is_no_room_waits_and_the_others_go_on() {
    let mut world = halves(160);
    for _ in 0..2 {
        world.join(Time::START, singles(5), 0);
    }
    world.run();
    for client in &world.clients {
        assert_eq!((client.failures.as_slice(), client.answers.len()), (&[][..], 5));
    }
    assert!(world.clients.iter().all(|client| client.blamed.is_empty()), "nobody is at fault");
    assert!(world.hosts.iter().all(|host| host.server.session_count() == 0));
}

/// One server of all blocks whose weights take 6 ms a pass, and each token 0.3 ms.
fn one_server() -> World {
    let links = LinkClass::new(ms(1), Duration::ZERO, 1e9);
    let mut world = World::new(Seed(1), Settings::new(MODEL, BLOCKS, links));
    let config = ServerConfig { context_tokens: 4_096, ..server(1, 0, BLOCKS, 16_384) };
    world.serve(config, Speed::new(ms(1), Duration::from_micros(50)), 0);
    world
}

#[test]
fn clients_that_decode_at_once_share_the_reading_of_weights() {
    let rate = |clients: u32| {
        let mut world = one_server();
        (0..clients).for_each(|_| world.join(Time::START, singles(60), 0));
        world.run();
        let took = |client: &Client| client.answers.iter().map(|a| a.took).sum::<Duration>();
        let longest = world.clients.iter().map(took).max().unwrap();
        f64::from(60 * clients) / longest.as_secs_f64()
    };
    let (one, eight) = (rate(1), rate(8));
    // All of them wait for the pass that runs, and share the next: two halves that take turns.
    assert!(eight > 4.0 * one, "{one} and {eight} tokens a second");
}

#[test]
fn a_long_prompt_delays_another_client_by_a_bounded_time() {
    let mut world = one_server();
    let prompt = |count: u32| -> Vec<u32> { (0..count).collect() };
    let steps = [(0, prompt(512)), (512, prompt(512)), (1_024, prompt(976))];
    world.join(at(300), Plan { tokens_max: 2_100, steps: steps.into(), ..Plan::default() }, 0);
    world.join(Time::START, singles(60), 0);
    world.run();
    let [reader, decoder] = world.clients.as_slice() else { panic!("two clients") };
    let longest = decoder.answers.iter().map(|answer| answer.took).max().unwrap();
    // A pass that runs and one of its own, of 50 ms each, and the way there and back; the first
    // passes are still measured.
    assert!(longest <= ms(2 * 55 + 2), "{longest:?}");
    let unhindered = decoder.answers[10].took;
    assert!(longest > unhindered * 4, "they met: {longest:?}, {unhindered:?}");
    let read: Duration = reader.answers.iter().map(|answer| answer.took).sum();
    // 2,000 tokens alone take 600 ms; weights are read more often, and the other decodes.
    assert!(read < ms(900), "{read:?}");
}
