//! The server's machine against clients that do well, badly, and too much.

mod batch;
mod drain;

use bytes::Bytes;
use proptest::prelude::*;
use umbel_protocol::DType;
use umbel_protocol::inference::{Adopt, AnswerRows, Destination, Neighbour, Redirect, Trouble};

use super::*;

mod adapters;
mod share;
mod stream;
mod thin;

const MODEL: ModelId = ModelId::from_bytes([3; 32]);
const CLIENT: PeerId = PeerId::from_public_key([1; 32]);
const BEFORE: PeerId = PeerId::from_public_key([2; 32]);
const AFTER: PeerId = PeerId::from_public_key([4; 32]);
const LINK: LinkId = LinkId(0);
const HIDDEN: u32 = 2;
const VOCABULARY: u32 = 100;

fn server(kv_tokens_max: u32) -> Server {
    Server::new(ServerConfig {
        peer: PeerId::from_public_key([3; 32]),
        model: MODEL,
        span: Span::new(2, 6).unwrap(),
        block_count: 6,
        vocabulary_size: Some(VOCABULARY),
        hidden_size: HIDDEN,
        head_size: 32,
        context_tokens: 512,
        kv_tokens_max,
        cache: None,
        journal_bytes_max: 1 << 20,
        keeps_pages: true,
        adapters: None,
    })
}

fn opening(session: u128) -> OpenSession {
    OpenSession {
        session: SessionId::new(session),
        model: MODEL,
        blocks: Span::new(2, 6).unwrap(),
        tokens_max: 64,
        previous: None,
        next: Destination::Client,
        next_position: 0,
        next_step: StepId(0),
        results: DType::F32,
        compress: false,
        cache: DType::F32,
        prefix: Vec::new(),
        thin: false,
        drawer: None,
        adapter: None,
    }
}

fn step(session: u128, number: u64, position: u32, tokens: u32) -> Step {
    let bytes = Bytes::from(vec![0; 4 * (tokens * HIDDEN) as usize]);
    Step {
        session: SessionId::new(session),
        step: StepId(number),
        position,
        hidden: Tensor::new(DType::F32, vec![tokens, HIDDEN], bytes).unwrap(),
        trace: Vec::new(),
        replay: false,
        answer_rows: AnswerRows::All,
        goes_on: false,
    }
}

fn say(server: &mut Server, link: LinkId, message: ClientMessage) -> Vec<Output> {
    say_as(server, link, CLIENT, message)
}

fn say_as(server: &mut Server, link: LinkId, from: PeerId, message: ClientMessage) -> Vec<Output> {
    server.handle(Input::Received { link, from, message }, Time::START).unwrap();
    drain(server)
}

fn drain(server: &mut Server) -> Vec<Output> {
    server.begin_pass(Time::START);
    std::iter::from_fn(|| server.poll()).collect()
}

fn refusal(outputs: &[Output]) -> Option<ErrorCode> {
    outputs.iter().find_map(|output| {
        let Output::Send { message: ServerMessage::Error(error), .. } = output else {
            return None;
        };
        Some(error.code)
    })
}

fn job(outputs: &[Output]) -> Option<JobId> {
    outputs.iter().find_map(|output| {
        let Output::Compute(batch) = output else { return None };
        Some(batch.id)
    })
}

/// The steps that are pushed, with the session's name there.
fn pushes(outputs: &[Output]) -> Vec<(u128, u32, u32, bool)> {
    let push = |output: &Output| {
        let Output::Push { to, step, .. } = output else { return None };
        Some((to.number(), step.position, step.token_count(), step.replay))
    };
    outputs.iter().filter_map(push).collect()
}

fn next_hop(session: u128) -> Destination {
    let session = SessionId::new(session);
    Destination::Server(NextHop { peer: AFTER, addresses: Vec::new(), session })
}

fn compute(server: &mut Server, job: JobId, tokens: u32) -> Vec<Output> {
    let results = vec![Ok(step(0, 0, 0, tokens).hidden)];
    let compute = Duration::from_millis(5);
    let now = Time::after_start(Duration::from_millis(8));
    server.handle(Input::Computed { job, results, compute }, now).unwrap();
    drain(server)
}

#[test]
fn narrower_caches_leave_more_room() {
    for (cache, tokens) in [(DType::F32, 128), (DType::BF16, 256), (DType::Q8, 480)] {
        let mut server = server(128);
        let open = OpenSession { tokens_max: tokens + 1, cache, ..opening(1) };
        assert_eq!(
            refusal(&say(&mut server, LINK, ClientMessage::Open(open.clone()))),
            Some(ErrorCode::KvFull)
        );
        let open = OpenSession { tokens_max: tokens, ..open };
        let outputs = say(&mut server, LINK, ClientMessage::Open(open));
        let kept =
            |output: &Output| matches!(output, Output::OpenCache { cache: of, .. } if *of == cache);
        assert!(outputs.iter().any(kept), "{cache}: {outputs:?}");
        let session = SessionId::new(1);
        say(&mut server, LINK, ClientMessage::Close { session });
        assert_eq!(server.kv_tokens_free(), 128);
    }
}

#[test]
fn what_a_server_cannot_serve_it_refuses_with_a_reason() {
    type Spoil = fn(&mut OpenSession);
    let refused: [(&str, Spoil, ErrorCode); 5] = [
        ("model", |open| open.model = ModelId::from_bytes([0; 32]), ErrorCode::UnknownModel),
        ("blocks", |open| open.blocks = Span::new(1, 6).unwrap(), ErrorCode::BlocksNotServed),
        ("no tokens", |open| open.tokens_max = 0, ErrorCode::ContextExceeded),
        ("context", |open| open.tokens_max = 513, ErrorCode::ContextExceeded),
        ("room", |open| open.tokens_max = 129, ErrorCode::KvFull),
    ];
    for (why, change, code) in refused {
        let mut server = server(128);
        let mut open = opening(1);
        change(&mut open);
        let outputs = say(&mut server, LINK, ClientMessage::Open(open));
        assert_eq!(refusal(&outputs), Some(code), "{why}");
        assert_eq!((server.session_count(), server.kv_tokens_free()), (0, 128), "{why}");
    }
}

#[test]
fn a_result_is_pushed_to_the_next_hop_or_sent_to_the_client() {
    for next in [Destination::Client, next_hop(77)] {
        let mut server = server(128);
        let open = OpenSession { next: next.clone(), ..opening(1) };
        let outputs = say(&mut server, LINK, ClientMessage::Open(open));
        let connects = outputs.iter().any(|output| matches!(output, Output::Connect { .. }));
        assert_eq!(connects, next != Destination::Client);
        let outputs = say(&mut server, LINK, ClientMessage::Step(step(1, 0, 0, 3)));
        let outputs = compute(&mut server, job(&outputs).unwrap(), 3);
        let trace = match (outputs.as_slice(), next) {
            ([Output::Push { step, .. }], Destination::Server(_)) => {
                assert_eq!(step.session, SessionId::new(77), "its name there");
                &step.trace
            }
            (
                [Output::Send { link: LINK, message: ServerMessage::Output(step) }],
                Destination::Client,
            ) => &step.trace,
            other => panic!("{other:?}"),
        };
        assert_eq!(trace.len(), 1);
        assert_eq!(trace[0].compute, Duration::from_millis(5));
        assert_eq!(trace[0].hop, Duration::from_millis(8));
    }
}

#[test]
fn one_pass_runs_at_a_time_and_what_comes_meanwhile_waits_for_the_next() {
    let mut server = server(128);
    for session in [1, 2] {
        say(&mut server, LINK, ClientMessage::Open(opening(session)));
    }
    let first = job(&say(&mut server, LINK, ClientMessage::Step(step(1, 0, 0, 1)))).unwrap();
    assert_eq!(job(&say(&mut server, LINK, ClientMessage::Step(step(2, 0, 0, 1)))), None);
    assert_eq!(server.queue_depth(), 2);
    let second = job(&compute(&mut server, first, 1)).unwrap();
    assert!(second > first);
    compute(&mut server, second, 1);
    assert_eq!(server.queue_depth(), 0);
}

#[test]
fn a_step_that_does_not_fit_its_session_ends_that_session_alone() {
    let wrong = [
        (step(1, 0, 1, 1), ErrorCode::WrongPosition),
        (step(1, 0, 0, 65), ErrorCode::ContextExceeded),
        (
            Step {
                hidden: Tensor::new(DType::F32, vec![1, 3], Bytes::from(vec![0; 12])).unwrap(),
                ..step(1, 0, 0, 1)
            },
            ErrorCode::WrongShape,
        ),
        (
            Step {
                hidden: Tensor::new(DType::F32, vec![2], Bytes::from(vec![0; 8])).unwrap(),
                ..step(1, 0, 0, 1)
            },
            ErrorCode::WrongShape,
        ),
    ];
    for (step, code) in wrong {
        let mut server = server(128);
        say(&mut server, LINK, ClientMessage::Open(opening(1)));
        say(&mut server, LINK, ClientMessage::Open(opening(2)));
        let outputs = say(&mut server, LINK, ClientMessage::Step(step));
        assert_eq!(refusal(&outputs), Some(code));
        assert!(job(&outputs).is_none());
        assert_eq!((server.session_count(), server.kv_tokens_free()), (1, 64));
    }
}

#[test]
fn only_the_named_hop_may_push_and_then_the_client_may_not_step() {
    let mut server = server(128);
    let open = OpenSession { previous: Some(BEFORE), ..opening(1) };
    say(&mut server, LINK, ClientMessage::Open(open));
    let input = Input::Pushed { from: AFTER, step: step(1, 0, 0, 1) };
    server.handle(input, Time::START).unwrap();
    assert!(drain(&mut server).is_empty());
    let message = ClientMessage::Step(step(1, 0, 0, 1));
    let input = Input::Received { link: LINK, from: CLIENT, message };
    assert!(server.handle(input, Time::START).is_err());
    let input = Input::Pushed { from: BEFORE, step: step(1, 0, 0, 1) };
    server.handle(input, Time::START).unwrap();
    assert!(job(&drain(&mut server)).is_some());
    let input = Input::Pushed { from: BEFORE, step: step(99, 0, 0, 1) };
    server.handle(input, Time::START).unwrap();
    assert!(drain(&mut server).is_empty(), "a push that came too late is nobody's fault");
}

#[test]
fn a_session_belongs_to_the_link_that_opened_it() {
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    let session = SessionId::new(1);
    for message in [
        ClientMessage::Step(step(1, 0, 0, 1)),
        ClientMessage::Close { session },
        ClientMessage::Open(opening(1)),
    ] {
        let input = Input::Received { link: LinkId(1), from: CLIENT, message };
        assert!(server.handle(input, Time::START).is_err());
    }
    assert_eq!(server.session_count(), 1);
    server.handle(Input::LinkClosed { link: LINK }, Time::START).unwrap();
    assert_eq!((server.session_count(), server.kv_tokens_free()), (0, 128));
}

#[test]
fn a_session_that_ends_while_its_step_is_computed_leaves_no_answer() {
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    let running = job(&say(&mut server, LINK, ClientMessage::Step(step(1, 0, 0, 1)))).unwrap();
    say(&mut server, LINK, ClientMessage::Close { session: SessionId::new(1) });
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    assert!(compute(&mut server, running, 1).is_empty());
}

#[test]
fn an_idle_session_ends_with_its_lease() {
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    let end = server.poll_timeout().unwrap();
    assert_eq!(end, Time::START + SESSION_LEASE);
    server.handle_timeout(Time::after_start(Duration::from_secs(1)));
    assert_eq!(server.session_count(), 1);
    server.handle_timeout(end);
    assert_eq!(refusal(&drain(&mut server)), Some(ErrorCode::LeaseEnded));
    assert_eq!((server.session_count(), server.poll_timeout()), (0, None));
}

#[test]
fn nobody_takes_every_place() {
    let mut server = server(1_000_000);
    let alone = SESSIONS_MAX - SESSIONS_LEFT_TO_OTHERS;
    for session in 0..alone as u128 {
        let outputs = say(&mut server, LINK, ClientMessage::Open(opening(session)));
        assert_eq!(refusal(&outputs), None);
    }
    let outputs = say(&mut server, LINK, ClientMessage::Open(opening(u128::MAX)));
    assert_eq!(refusal(&outputs), Some(ErrorCode::Busy), "the rest is left to others");
    // Each of them may have as many as before, until there is no place at all.
    for session in alone..=SESSIONS_MAX {
        let open = ClientMessage::Open(opening(session as u128));
        let outputs = say_as(&mut server, LinkId(7), PeerId::from_public_key([7; 32]), open);
        let expected = (session == SESSIONS_MAX).then_some(ErrorCode::Busy);
        assert_eq!(refusal(&outputs), expected, "{session}");
    }
}

#[test]
fn no_session_queues_steps_without_end() {
    let mut server = server(1_000_000);
    say(&mut server, LINK, ClientMessage::Open(OpenSession { tokens_max: 512, ..opening(0) }));
    let mut last = Vec::new();
    for position in 0..=u32::try_from(STEPS_QUEUED_PER_SESSION_MAX).unwrap() + 1 {
        let next = step(0, position.into(), position, 1);
        last = say(&mut server, LINK, ClientMessage::Step(next));
    }
    assert_eq!(refusal(&last), Some(ErrorCode::Busy));
}

/// A session that results of 5 tokens have gone through, in two steps.
fn busy(next: Destination) -> Server {
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(OpenSession { next, ..opening(1) }));
    for (number, position, tokens) in [(0, 0, 3), (1, 3, 2)] {
        let message = ClientMessage::Step(step(1, number, position, tokens));
        let running = job(&say(&mut server, LINK, message)).unwrap();
        compute(&mut server, running, tokens);
    }
    server
}

fn redirect(next: Destination, next_position: u32, next_step: u64, mirror: bool) -> ClientMessage {
    ClientMessage::Redirect(Redirect {
        session: SessionId::new(1),
        next,
        next_position,
        next_step: StepId(next_step),
        settled: 3,
        mirror,
    })
}

fn redirected(outputs: &[Output]) -> Option<bool> {
    outputs.iter().find_map(|output| {
        let Output::Send { message: ServerMessage::Redirected { complete, .. }, .. } = output
        else {
            return None;
        };
        Some(*complete)
    })
}

#[test]
fn a_new_next_hop_is_filled_from_the_journal() {
    let mut server = busy(next_hop(77));
    let outputs = say(&mut server, LINK, redirect(next_hop(78), 0, 0, false));
    assert_eq!(pushes(&outputs), [(78, 0, 3, true), (78, 3, 2, false)]);
    assert_eq!(redirected(&outputs), Some(true));
    let closes =
        |output: &Output| matches!(output, Output::Disconnect { to, .. } if to.number() == 77);
    assert!(outputs.iter().any(closes), "the link to the one before");
}

#[test]
fn a_next_hop_that_has_all_that_was_answered_gets_the_open_step_alone() {
    let mut server = busy(next_hop(77));
    let outputs = say(&mut server, LINK, redirect(next_hop(78), 3, 1, false));
    assert_eq!(pushes(&outputs), [(78, 3, 2, false)]);
}

#[test]
fn nothing_goes_to_the_client_as_a_replay() {
    let mut server = busy(next_hop(77));
    let outputs = say(&mut server, LINK, redirect(Destination::Client, 0, 0, false));
    let answer = |output: &Output| {
        let Output::Send { message: ServerMessage::Output(step), .. } = output else {
            return None;
        };
        Some((step.position, step.token_count()))
    };
    let answers: Vec<_> = outputs.iter().filter_map(answer).collect();
    assert_eq!((answers.as_slice(), redirected(&outputs)), (&[(3, 2)][..], Some(true)));
}

#[test]
fn a_journal_that_was_evicted_is_admitted_to_be() {
    let mut server = busy(next_hop(77));
    server.config.journal_bytes_max = 8;
    let message = ClientMessage::Step(step(1, 2, 5, 1));
    let running = job(&say(&mut server, LINK, message)).unwrap();
    compute(&mut server, running, 1);
    assert!(server.journal_bytes() <= 8);
    let outputs = say(&mut server, LINK, redirect(next_hop(78), 0, 0, false));
    assert_eq!((redirected(&outputs), pushes(&outputs).len()), (Some(false), 0));
}

#[test]
fn a_mirror_gets_everything_twice_and_takes_over_without_a_replay() {
    let mut server = busy(next_hop(77));
    let outputs = say(&mut server, LINK, redirect(next_hop(78), 0, 0, true));
    assert_eq!(pushes(&outputs), [(78, 0, 3, true), (78, 3, 2, false)]);
    let running = job(&say(&mut server, LINK, ClientMessage::Step(step(1, 2, 5, 1)))).unwrap();
    let outputs = compute(&mut server, running, 1);
    assert_eq!(pushes(&outputs), [(78, 5, 1, false), (77, 5, 1, false)]);
    let outputs = say(&mut server, LINK, redirect(next_hop(78), 0, 0, false));
    assert_eq!((redirected(&outputs), pushes(&outputs).len()), (Some(true), 0));
    let running = job(&say(&mut server, LINK, ClientMessage::Step(step(1, 3, 6, 1)))).unwrap();
    assert_eq!(pushes(&compute(&mut server, running, 1)), [(78, 6, 1, false)]);
}

#[test]
fn a_mirror_that_is_not_wanted_any_more_gets_nothing_more() {
    let mut server = busy(next_hop(77));
    say(&mut server, LINK, redirect(next_hop(78), 0, 0, true));
    let outputs = say(&mut server, LINK, redirect(Destination::Held, 0, 0, true));
    let closes =
        |output: &Output| matches!(output, Output::Disconnect { to, .. } if to.number() == 78);
    assert!(outputs.iter().any(closes), "{outputs:?}");
    let running = job(&say(&mut server, LINK, ClientMessage::Step(step(1, 2, 5, 1)))).unwrap();
    assert_eq!(pushes(&compute(&mut server, running, 1)), [(77, 5, 1, false)]);
}

#[test]
fn a_next_hop_that_is_lost_is_reported_and_its_results_wait_in_the_journal() {
    let mut server = busy(next_hop(77));
    let (session, to) = (SessionId::new(1), SessionId::new(77));
    let lost = || Input::PushFailed { session, to, detail: "gone".to_owned() };
    server.handle(lost(), Time::START).unwrap();
    let outputs = drain(&mut server);
    let told = |output: &Output| {
        let Output::Send { message: ServerMessage::Trouble(Trouble { neighbour, .. }), .. } =
            output
        else {
            return false;
        };
        *neighbour == Neighbour::Next
    };
    assert!(outputs.iter().any(told), "{outputs:?}");
    server.handle(lost(), Time::START).unwrap();
    assert!(drain(&mut server).is_empty(), "it is none any more");
    let running = job(&say(&mut server, LINK, ClientMessage::Step(step(1, 2, 5, 1)))).unwrap();
    assert!(pushes(&compute(&mut server, running, 1)).is_empty());
    let outputs = say(&mut server, LINK, redirect(next_hop(78), 5, 2, false));
    assert_eq!(pushes(&outputs), [(78, 5, 1, false)]);
}

#[test]
fn a_session_that_is_emptied_waits_for_its_beginning() {
    let mut server = busy(Destination::Client);
    let adopt =
        Adopt { session: SessionId::new(1), previous: Some(BEFORE), empty: true, drawer: None };
    say(&mut server, LINK, ClientMessage::Adopt(adopt));
    assert_eq!(server.journal_bytes(), 0);
    let push = |server: &mut Server, position| {
        let input = Input::Pushed { from: BEFORE, step: step(1, 9, position, 1) };
        server.handle(input, Time::START).unwrap();
        job(&drain(server)).is_some()
    };
    assert!(!push(&mut server, 5), "it is of no use, and nobody's fault");
    assert!(push(&mut server, 0));
}

#[test]
fn what_former_neighbours_still_had_under_way_is_dropped() {
    let mut server = server(128);
    let open = OpenSession { previous: Some(BEFORE), ..opening(1) };
    say(&mut server, LINK, ClientMessage::Open(open));
    for previous in [AFTER, CLIENT] {
        let adopt = Adopt {
            session: SessionId::new(1),
            previous: Some(previous),
            empty: false,
            drawer: None,
        };
        say(&mut server, LINK, ClientMessage::Adopt(adopt));
        let late = Input::Pushed { from: BEFORE, step: step(1, 0, 0, 1) };
        assert_eq!(server.handle(late, Time::START), Ok(()));
        assert!(drain(&mut server).is_empty());
    }
}

proptest! {
    /// Whatever clients do, what is reserved is what open sessions have reserved.
    #[test]
    fn the_budget_is_never_overrun_and_always_returned(
        actions in
            proptest::collection::vec((0u128..6, 0u8..3, 1u32..200, 2u32..6, 0usize..4), 0..80),
    ) {
        let mut server = server(200);
        let mut open: BTreeMap<u128, u64> = BTreeMap::new();
        for (session, action, tokens, start, cache) in actions {
            let id = SessionId::new(session);
            if action == 0 && !open.contains_key(&session) {
                let blocks = Span::new(start, 6).unwrap();
                let cache = DType::ALL[cache];
                let opening = OpenSession { blocks, tokens_max: tokens, cache, ..opening(session) };
                let outputs = say(&mut server, LINK, ClientMessage::Open(opening));
                if refusal(&outputs).is_none() {
                    let pages = u64::from(tokens.div_ceil(16)) * 16;
                    let bytes = pages * cache.row_bytes(32);
                    open.insert(session, bytes * u64::from(blocks.block_count()));
                }
            } else if action == 1 {
                say(&mut server, LINK, ClientMessage::Close { session: id });
                open.remove(&session);
            } else {
                // Nothing is computed here, so steps pile up until the session is refused.
                let outputs = say(&mut server, LINK, ClientMessage::Step(step(session, 0, 0, 1)));
                if refusal(&outputs).is_some() {
                    open.remove(&session);
                }
            }
            let reserved: u64 = open.values().sum();
            let budget = 192 * 4 * DType::F32.row_bytes(32);
            prop_assert!(reserved <= budget);
            let free = (budget - reserved) / (4 * DType::F32.row_bytes(32));
            prop_assert_eq!(u64::from(server.kv_tokens_free()), free);
            prop_assert_eq!(server.session_count(), open.len());
        }
    }
}
