//! The server's machine against clients that do well, badly, and too much.

use bytes::Bytes;
use proptest::prelude::*;
use umbel_protocol::DType;

use super::*;

const MODEL: ModelId = ModelId::from_bytes([3; 32]);
const CLIENT: PeerId = PeerId::from_public_key([1; 32]);
const BEFORE: PeerId = PeerId::from_public_key([2; 32]);
const AFTER: PeerId = PeerId::from_public_key([4; 32]);
const LINK: LinkId = LinkId(0);
const HIDDEN: u32 = 2;

fn server(kv_tokens_max: u32) -> Server {
    Server::new(ServerConfig {
        peer: PeerId::from_public_key([3; 32]),
        model: MODEL,
        span: Span::new(2, 6).unwrap(),
        hidden_size: HIDDEN,
        context_tokens: 512,
        kv_tokens_max,
    })
}

fn opening(session: u128) -> OpenSession {
    OpenSession {
        session: SessionId::new(session),
        model: MODEL,
        blocks: Span::new(2, 6).unwrap(),
        tokens_max: 64,
        previous: None,
        next: None,
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
    }
}

fn say(server: &mut Server, link: LinkId, message: ClientMessage) -> Vec<Output> {
    server.handle(Input::Received { link, from: CLIENT, message }, Time::START).unwrap();
    drain(server)
}

fn drain(server: &mut Server) -> Vec<Output> {
    std::iter::from_fn(|| server.poll()).collect()
}

fn refusal(outputs: &[Output]) -> Option<ErrorCode> {
    outputs.iter().find_map(|output| match output {
        Output::Send { message: ServerMessage::Error(error), .. } => Some(error.code),
        Output::Send { .. }
        | Output::Connect { .. }
        | Output::Push { .. }
        | Output::OpenCache { .. }
        | Output::Compute(_)
        | Output::Forget { .. } => None,
    })
}

fn job(outputs: &[Output]) -> Option<JobId> {
    outputs.iter().find_map(|output| match output {
        Output::Compute(job) => Some(job.id),
        Output::Send { .. }
        | Output::Connect { .. }
        | Output::Push { .. }
        | Output::OpenCache { .. }
        | Output::Forget { .. } => None,
    })
}

fn compute(server: &mut Server, job: JobId, tokens: u32) -> Vec<Output> {
    let result = Ok(step(0, 0, 0, tokens).hidden);
    let compute = Duration::from_millis(5);
    let now = Time::after_start(Duration::from_millis(8));
    server.handle(Input::Computed { job, result, compute }, now).unwrap();
    drain(server)
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
    for next in [None, Some(NextHop { peer: AFTER, addresses: Vec::new() })] {
        let mut server = server(128);
        let open = OpenSession { next: next.clone(), ..opening(1) };
        let outputs = say(&mut server, LINK, ClientMessage::Open(open));
        let connects = outputs.iter().any(|output| matches!(output, Output::Connect { .. }));
        assert_eq!(connects, next.is_some());
        let outputs = say(&mut server, LINK, ClientMessage::Step(step(1, 0, 0, 3)));
        let outputs = compute(&mut server, job(&outputs).unwrap(), 3);
        let trace = match (outputs.as_slice(), next) {
            ([Output::Push { next: AFTER, step }], Some(_)) => &step.trace,
            ([Output::Send { link: LINK, message: ServerMessage::Output(step) }], None) => {
                &step.trace
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(trace.len(), 1);
        assert_eq!(trace[0].compute, Duration::from_millis(5));
        assert_eq!(trace[0].hop, Duration::from_millis(8));
    }
}

#[test]
fn one_job_runs_at_a_time_and_the_first_to_come_is_the_first_to_run() {
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
    assert!(server.handle(input, Time::START).is_err());
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
    for session in 0..SESSIONS_PER_CLIENT_MAX as u128 {
        let outputs = say(&mut server, LINK, ClientMessage::Open(opening(session)));
        assert_eq!(refusal(&outputs), None);
    }
    let outputs = say(&mut server, LINK, ClientMessage::Open(opening(u128::MAX)));
    assert_eq!(refusal(&outputs), Some(ErrorCode::Busy));
    let mut last = Vec::new();
    for number in 0..=STEPS_QUEUED_PER_SESSION_MAX as u64 + 1 {
        let position = u32::try_from(number).unwrap();
        last = say(&mut server, LINK, ClientMessage::Step(step(0, number, position, 1)));
    }
    assert_eq!(refusal(&last), Some(ErrorCode::Busy));
}

proptest! {
    /// Whatever clients do, what is reserved is what open sessions have reserved.
    #[test]
    fn the_budget_is_never_overrun_and_always_returned(
        actions in proptest::collection::vec((0u128..6, 0u8..3, 1u32..200, 2u32..6), 0..80),
    ) {
        let mut server = server(200);
        let mut open: BTreeMap<u128, u64> = BTreeMap::new();
        for (session, action, tokens, start) in actions {
            let id = SessionId::new(session);
            if action == 0 && !open.contains_key(&session) {
                let blocks = Span::new(start, 6).unwrap();
                let opening = OpenSession { blocks, tokens_max: tokens, ..opening(session) };
                let outputs = say(&mut server, LINK, ClientMessage::Open(opening));
                if refusal(&outputs).is_none() {
                    let pages = u64::from(tokens.div_ceil(16)) * 16;
                    open.insert(session, pages * u64::from(blocks.block_count()));
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
            prop_assert!(reserved <= 192 * 4);
            prop_assert_eq!(u64::from(server.kv_tokens_free()), (192 * 4 - reserved) / 4);
            prop_assert_eq!(server.session_count(), open.len());
        }
    }
}
