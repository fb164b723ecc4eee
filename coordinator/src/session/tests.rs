//! The client's machine against hops that do well, badly, and nothing.

use bytes::Bytes;
use umbel_protocol::{DType, Span};

use super::*;

const SESSION: SessionId = SessionId::new(7);

fn hops() -> Vec<RouteHop> {
    let hop = |name, start, end| RouteHop {
        hop: Hop {
            peer: PeerId::from_public_key([name; 32]),
            blocks: Span::new(start, end).unwrap(),
        },
        addresses: vec![format!("/memory/{name}")],
    };
    vec![hop(1, 0, 2), hop(2, 2, 6)]
}

fn tensor(tokens: u32) -> Tensor {
    Tensor::new(DType::F32, vec![tokens, 2], Bytes::from(vec![0; 8 * tokens as usize])).unwrap()
}

fn open() -> Session {
    let config = SessionConfig {
        session: SESSION,
        model: ModelId::from_bytes([3; 32]),
        tokens_max: 100,
        hops: hops(),
    };
    Session::open(config, PeerId::from_public_key([9; 32]), Time::START)
}

fn at(seconds: u64) -> Time {
    Time::after_start(Duration::from_secs(seconds))
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll()).collect()
}

fn opened(session: &mut Session, hop: usize) {
    let message = ServerMessage::Opened { session: SESSION, tokens_max: 100 };
    session.handle(Input::Received { hop, message }, at(1)).unwrap();
}

/// A session that both hops have opened.
fn ready() -> Session {
    let mut session = open();
    drain(&mut session);
    opened(&mut session, 0);
    opened(&mut session, 1);
    assert!(matches!(drain(&mut session).as_slice(), [Output::Ready]));
    session
}

fn answer(step: u64, position: u32, tokens: u32) -> ServerMessage {
    ServerMessage::Output(Step {
        session: SESSION,
        step: StepId(step),
        position,
        hidden: tensor(tokens),
        trace: Vec::new(),
    })
}

fn failure(session: &mut Session) -> SessionFailure {
    let outputs = drain(session);
    let failed = outputs.into_iter().find_map(|output| match output {
        Output::Failed(failure) => Some(failure),
        Output::Send { .. } | Output::Ready | Output::Stepped { .. } => None,
    });
    failed.expect("the session failed")
}

#[test]
fn every_hop_learns_who_pushes_to_it_and_to_whom_it_pushes() {
    let mut session = open();
    let opens: Vec<_> = drain(&mut session)
        .into_iter()
        .map(|output| {
            let Output::Send { message: ClientMessage::Open(open), .. } = output else {
                panic!("{output:?}");
            };
            open
        })
        .collect();
    let hops = hops();
    assert_eq!(opens[0].previous, None);
    assert_eq!(opens[0].next.as_ref().unwrap().peer, hops[1].hop.peer);
    assert_eq!(opens[0].next.as_ref().unwrap().addresses, hops[1].addresses);
    assert_eq!(opens[1].previous, Some(hops[0].hop.peer));
    assert_eq!(opens[1].next, None);
}

#[test]
fn a_step_goes_to_the_first_hop_and_comes_back_from_the_last() {
    let mut session = ready();
    session.handle(Input::Step { position: 0, hidden: tensor(3) }, at(2)).unwrap();
    let outputs = drain(&mut session);
    let [Output::Send { hop: 0, message: ClientMessage::Step(step) }] = outputs.as_slice() else {
        panic!("{outputs:?}");
    };
    assert_eq!((step.step, step.position), (StepId(0), 0));
    let message = answer(0, 0, 3);
    session.handle(Input::Received { hop: 1, message }, at(5)).unwrap();
    let outputs = drain(&mut session);
    let [Output::Stepped { total, .. }] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert_eq!(*total, Duration::from_secs(3));
}

#[test]
fn an_answer_that_was_not_asked_for_fails_the_session() {
    let wrong = [
        (0, answer(0, 0, 3), "not the last hop"),
        (1, answer(1, 0, 3), "another step"),
        (1, answer(0, 1, 3), "another position"),
        (1, answer(0, 0, 2), "another shape"),
        (1, ServerMessage::Opened { session: SESSION, tokens_max: 1 }, "opened twice"),
        (1, ServerMessage::Opened { session: SessionId::new(8), tokens_max: 1 }, "whose?"),
    ];
    for (hop, message, why) in wrong {
        let mut session = ready();
        session.handle(Input::Step { position: 0, hidden: tensor(3) }, at(2)).unwrap();
        drain(&mut session);
        assert!(session.handle(Input::Received { hop, message }, at(3)).is_err(), "{why}");
        let failure = failure(&mut session);
        assert!(matches!(failure.reason, FailureReason::Violation(_)), "{why}");
        assert_eq!(failure.hop, hops()[hop].hop, "{why}");
        assert!(session.poll_timeout().is_none(), "{why}");
    }
}

#[test]
fn an_answer_before_any_step_fails_the_session() {
    let mut session = ready();
    let message = answer(0, 0, 3);
    assert!(session.handle(Input::Received { hop: 1, message }, at(3)).is_err());
    failure(&mut session);
}

#[test]
fn a_refusal_names_the_hop_and_closes_the_others() {
    let mut session = open();
    drain(&mut session);
    let error = SessionError {
        session: SESSION,
        step: None,
        code: ErrorCode::KvFull,
        detail: "room for 3 tokens is left".to_owned(),
    };
    let message = ServerMessage::Error(error);
    session.handle(Input::Received { hop: 1, message }, at(1)).unwrap();
    let outputs = drain(&mut session);
    let [Output::Send { hop: 0, message: ClientMessage::Close { .. } }, Output::Failed(failure)] =
        outputs.as_slice()
    else {
        panic!("{outputs:?}");
    };
    assert_eq!(failure.hop, hops()[1].hop);
    assert!(failure.to_string().contains("room for 3 tokens is left"), "{failure}");
}

#[test]
fn a_hop_that_cannot_reach_the_next_one_is_not_the_one_at_fault() {
    let mut session = ready();
    let error = SessionError {
        session: SESSION,
        step: None,
        code: ErrorCode::NextHopUnreachable,
        detail: "its link closed".to_owned(),
    };
    let message = ServerMessage::Error(error);
    session.handle(Input::Received { hop: 0, message }, at(2)).unwrap();
    assert_eq!(failure(&mut session).hop, hops()[1].hop);
}

#[test]
fn a_lost_link_fails_the_session_at_any_time() {
    let mut session = open();
    session.handle(Input::LinkLost { hop: 1 }, at(1)).unwrap();
    assert_eq!(failure(&mut session).reason, FailureReason::LinkLost);
    let mut session = ready();
    session.handle(Input::Step { position: 0, hidden: tensor(1) }, at(2)).unwrap();
    session.handle(Input::LinkLost { hop: 0 }, at(3)).unwrap();
    assert_eq!(failure(&mut session).hop, hops()[0].hop);
}

#[test]
fn a_hop_that_does_not_open_in_time_is_named() {
    let mut session = open();
    drain(&mut session);
    opened(&mut session, 0);
    let deadline = session.poll_timeout().unwrap();
    assert_eq!(deadline, Time::START + OPEN_TIMEOUT);
    session.handle_timeout(at(1));
    assert_eq!(session.poll_timeout(), Some(deadline), "it was too early");
    session.handle_timeout(deadline);
    let failure = failure(&mut session);
    assert_eq!(failure.hop, hops()[1].hop);
    assert_eq!(failure.reason, FailureReason::TimedOut { after: OPEN_TIMEOUT });
}

#[test]
fn a_step_without_an_answer_times_out() {
    let mut session = ready();
    assert_eq!(session.poll_timeout(), None, "an idle session waits for nothing");
    session.handle(Input::Step { position: 0, hidden: tensor(1) }, at(2)).unwrap();
    session.handle_timeout(at(2) + STEP_TIMEOUT);
    assert_eq!(failure(&mut session).reason, FailureReason::TimedOut { after: STEP_TIMEOUT });
}

#[test]
fn what_comes_after_the_end_is_not_heard() {
    let mut session = ready();
    session.handle(Input::Close, at(2)).unwrap();
    assert_eq!(drain(&mut session).len(), 2, "a farewell for each hop");
    session.handle(Input::Received { hop: 1, message: answer(0, 0, 3) }, at(3)).unwrap();
    session.handle(Input::LinkLost { hop: 0 }, at(3)).unwrap();
    assert!(drain(&mut session).is_empty());
}
