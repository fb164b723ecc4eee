//! The client's machine against hops that do well, badly, and nothing. That whole swarms of them
//! under faults keep every answer is shown by the simulation.

mod adapter;
mod contact;
mod mend;
mod prefix;
mod progress;
mod refusals;
mod thin;

use bytes::Bytes;
use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::{AnswerRows, Neighbour, SessionError, Step, Trouble};
use umbel_protocol::{DType, Span};

use super::*;

fn peer(name: u8) -> PeerId {
    PeerId::from_public_key([name; 32])
}

fn route_hop(name: u8, start: u32, end: u32) -> RouteHop {
    RouteHop {
        hop: Hop { peer: peer(name), blocks: Span::new(start, end).unwrap() },
        addresses: vec![format!("/memory/{name}")],
        session: SessionId::new(name.into()),
        round_trip: Some(Duration::from_millis(10)),
    }
}

fn tensor(tokens: u32) -> Tensor {
    Tensor::new(DType::F32, vec![tokens, 2], Bytes::from(vec![0; 8 * tokens as usize])).unwrap()
}

fn begin(position: u32, tokens: u32) -> Input {
    Input::Step { position, hidden: tensor(tokens), ids: Vec::new(), answer_rows: AnswerRows::All }
}

fn at(milliseconds: u64) -> Time {
    Time::after_start(Duration::from_millis(milliseconds))
}

fn open() -> Session {
    open_with(false)
}

fn open_with(standby: bool) -> Session {
    Session::open(config(standby), Time::START)
}

fn config(standby: bool) -> SessionConfig {
    SessionConfig {
        model: ModelId::from_bytes([3; 32]),
        block_count: 6,
        tokens_max: 100,
        token_bytes: 8,
        results: DType::F32,
        cache: DType::F32,
        journal_bytes_max: 1 << 20,
        standby,
        sharing: None,
        thin_vocabulary: None,
        adapter: None,
    }
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll()).collect()
}

fn sent(outputs: &[Output]) -> Vec<(u32, &ClientMessage)> {
    fn send(output: &Output) -> Option<(u32, &ClientMessage)> {
        let Output::Send { hop, message } = output else { return None };
        Some((hop.0, message))
    }
    outputs.iter().filter_map(send).collect()
}

fn say(session: &mut Session, hop: u32, message: ServerMessage) -> Vec<Output> {
    session.handle(Input::Received { hop: HopId(hop), message }, at(1)).unwrap();
    drain(session)
}

fn opened(name: u8) -> ServerMessage {
    ServerMessage::Opened {
        session: SessionId::new(name.into()),
        tokens_max: 100,
        kept: None,
        adapter: false,
    }
}

fn answer(name: u8, step: u64, position: u32, tokens: u32) -> ServerMessage {
    ServerMessage::Output(Step {
        session: SessionId::new(name.into()),
        step: StepId(step),
        position,
        hidden: tensor(tokens),
        trace: Vec::new(),
        replay: false,
        answer_rows: AnswerRows::All,
        goes_on: false,
    })
}

fn refusal(name: u8, code: ErrorCode) -> ServerMessage {
    let session = SessionId::new(name.into());
    ServerMessage::Error(SessionError { session, step: None, code, detail: "why".to_owned() })
}

fn blamed(outputs: &[Output]) -> Vec<PeerId> {
    let blame = |output: &Output| {
        let Output::Blame(failure) = output else { return None };
        Some(failure.hop.peer)
    };
    outputs.iter().filter_map(blame).collect()
}

fn wanted(outputs: &[Output]) -> Option<&RouteWanted> {
    outputs.iter().find_map(|output| {
        let Output::Route(wanted) = output else { return None };
        Some(wanted)
    })
}

/// A session that hops 0, 1 and 2 (peers 1, 2 and 3) have opened.
fn ready() -> Session {
    ready_with(false)
}

fn ready_with(standby: bool) -> Session {
    let mut session = open_with(standby);
    drain(&mut session);
    let hops = vec![route_hop(1, 0, 2), route_hop(2, 2, 4), route_hop(3, 4, 6)];
    session.handle(Input::Routed { needed: true, hops }, at(0)).unwrap();
    drain(&mut session);
    say(&mut session, 0, opened(1));
    say(&mut session, 1, opened(2));
    let outputs = say(&mut session, 2, opened(3));
    assert!(matches!(outputs.as_slice(), [Output::Ready, ..]), "{outputs:?}");
    session
}

/// The same with one answered step of three tokens, and another of one token under way.
fn stepping() -> Session {
    stepping_with(false)
}

fn stepping_with(standby: bool) -> Session {
    let mut session = ready_with(standby);
    session.handle(begin(0, 3), at(1)).unwrap();
    drain(&mut session);
    let outputs = say(&mut session, 2, answer(3, 0, 0, 3));
    assert!(matches!(outputs.as_slice(), [Output::Stepped { .. }, ..]), "{outputs:?}");
    session.handle(begin(3, 1), at(1)).unwrap();
    drain(&mut session);
    session
}

#[test]
fn every_hop_learns_who_pushes_to_it_and_where_its_results_go() {
    let mut session = open();
    let outputs = drain(&mut session);
    assert_eq!(wanted(&outputs).unwrap().blocks, Span::new(0, 6).unwrap());
    let hops = vec![route_hop(1, 0, 2), route_hop(2, 2, 6)];
    session.handle(Input::Routed { needed: true, hops }, at(0)).unwrap();
    let outputs = drain(&mut session);
    let [(0, ClientMessage::Open(first)), (1, ClientMessage::Open(second))] = sent(&outputs)[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!((first.previous, second.previous), (None, Some(peer(1))));
    let umbel_protocol::inference::Destination::Server(next) = &first.next else {
        panic!("{first:?}");
    };
    assert_eq!((next.peer, next.session), (peer(2), SessionId::new(2)));
    assert_eq!(second.next, umbel_protocol::inference::Destination::Client);
}

#[test]
fn a_step_below_the_end_of_the_cache_is_one_message_like_any_other() {
    let mut session = ready();
    // Of five rows three are kept: the next step begins at the first that is not.
    for (step, position) in (0..).zip([0, 3, 6]) {
        session.handle(begin(position, 5), at(1)).unwrap();
        let outputs = drain(&mut session);
        let [(0, ClientMessage::Step(sent))] = sent(&outputs)[..] else { panic!("{outputs:?}") };
        assert_eq!((sent.position, outputs.len()), (position, 1));
        let outputs = say(&mut session, 2, answer(3, step, position, 5));
        assert!(matches!(outputs.as_slice(), [Output::Stepped { .. }]), "{outputs:?}");
    }
}

#[test]
fn a_middle_hop_is_replaced_and_only_the_one_before_it_replays() {
    let mut session = stepping();
    let detail = "gone".to_owned();
    session.handle(Input::LinkLost { hop: HopId(1), detail }, at(2)).unwrap();
    let outputs = drain(&mut session);
    assert_eq!(blamed(&outputs), [peer(2)]);
    let gap = wanted(&outputs).unwrap();
    assert_eq!(
        (gap.blocks, gap.before.map(|hop| hop.peer), gap.after.map(|hop| hop.peer)),
        (Span::new(2, 4).unwrap(), Some(peer(1)), Some(peer(3)))
    );
    assert!(gap.avoided.contains(&peer(2)) && gap.needed);
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(4, 2, 4)] }, at(2)).unwrap();
    let outputs = drain(&mut session);
    let told: Vec<_> = sent(&outputs).into_iter().map(|(hop, _)| hop).collect();
    assert_eq!(told, [3, 2], "the new hop opens, the last one adopts it");
    say(&mut session, 3, opened(4));
    let adopted = ServerMessage::Adopted { session: SessionId::new(3), position: 3 };
    let outputs = say(&mut session, 2, adopted);
    let [(0, ClientMessage::Redirect(redirect))] = sent(&outputs)[..] else {
        panic!("{outputs:?}");
    };
    assert_eq!((redirect.next_position, redirect.settled, redirect.mirror), (0, 3, false));
    let outputs = say(&mut session, 2, answer(3, 1, 3, 1));
    assert!(matches!(outputs.as_slice(), [Output::Stepped { .. }]), "{outputs:?}");
}

#[test]
fn what_a_hop_says_of_its_former_neighbour_is_not_held_against_the_new_one() {
    let trouble = || {
        let (session, neighbour) = (SessionId::new(1), Neighbour::Next);
        let (code, detail) = (ErrorCode::NextHopUnreachable, "closed".to_owned());
        ServerMessage::Trouble(Trouble { session, neighbour, code, detail })
    };
    let mut session = stepping();
    session.handle(Input::LinkLost { hop: HopId(1), detail: String::new() }, at(1)).unwrap();
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(4, 2, 4)] }, at(1)).unwrap();
    drain(&mut session);
    say(&mut session, 3, opened(4));
    let adopted = ServerMessage::Adopted { session: SessionId::new(3), position: 3 };
    let outputs = say(&mut session, 2, adopted);
    let redirected = |&(hop, message): &(u32, &ClientMessage)| {
        hop == 0 && matches!(message, ClientMessage::Redirect(_))
    };
    assert!(sent(&outputs).iter().any(redirected), "{outputs:?}");
    // It was under way when the redirection came.
    assert!(blamed(&say(&mut session, 0, trouble())).is_empty());
    let (mirror, complete) = (false, true);
    let confirmed = ServerMessage::Redirected { session: SessionId::new(1), mirror, complete };
    say(&mut session, 0, confirmed);
    assert_eq!(blamed(&say(&mut session, 0, trouble())), [peer(4)], "now it is of the new one");
}

#[test]
fn a_neighbour_that_takes_the_gap_as_well_gives_its_old_place_up() {
    let mut session = stepping();
    let detail = "gone".to_owned();
    session.handle(Input::LinkLost { hop: HopId(1), detail }, at(2)).unwrap();
    drain(&mut session);
    let wider = RouteHop { session: SessionId::new(7), ..route_hop(3, 2, 6) };
    session.handle(Input::Routed { needed: true, hops: vec![wider] }, at(2)).unwrap();
    let outputs = drain(&mut session);
    assert!(blamed(&outputs).is_empty() && wanted(&outputs).is_none(), "{outputs:?}");
    let outputs = say(&mut session, 3, opened(7));
    assert!(matches!(sent(&outputs)[..], [(0, ClientMessage::Redirect(_))]), "{outputs:?}");
    assert!(matches!(say(&mut session, 3, answer(7, 1, 3, 1))[..], [Output::Stepped { .. }]));
}

#[test]
fn the_client_itself_replays_for_the_first_hop() {
    let mut session = stepping();
    let detail = "gone".to_owned();
    session.handle(Input::LinkLost { hop: HopId(0), detail }, at(2)).unwrap();
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(4, 0, 2)] }, at(2)).unwrap();
    drain(&mut session);
    let adopted = ServerMessage::Adopted { session: SessionId::new(2), position: 3 };
    say(&mut session, 1, adopted);
    let outputs = say(&mut session, 3, opened(4));
    let steps: Vec<_> = sent(&outputs)
        .into_iter()
        .map(|(hop, message)| {
            let ClientMessage::Step(step) = message else { panic!("{message:?}") };
            (hop, step.position, step.replay)
        })
        .collect();
    assert_eq!(steps, [(3, 0, true), (3, 3, false)]);
}

#[test]
fn the_same_answer_over_two_ways_is_heard_once() {
    let mut session = stepping();
    assert_eq!(say(&mut session, 2, answer(3, 1, 3, 1)).len(), 1);
    assert!(say(&mut session, 2, answer(3, 1, 3, 1)).is_empty());
    assert!(say(&mut session, 2, answer(3, 0, 0, 3)).is_empty());
}

/// Three chunks of three tokens under way, of which the last row each is wanted; none is answered.
fn streaming() -> Session {
    let mut session = ready();
    for position in [0, 3, 6] {
        assert!(session.accepts(position));
        let (hidden, answer_rows) = (tensor(3), AnswerRows::Last);
        session
            .handle(Input::Step { position, hidden, ids: Vec::new(), answer_rows }, at(1))
            .unwrap();
    }
    let outputs = drain(&mut session);
    assert_eq!(sent(&outputs).len(), 3, "none waits for the answer of another");
    session
}

#[test]
fn steps_under_way_at_once_are_answered_in_order() {
    let mut session = streaming();
    assert!(session.accepts(9) && !session.accepts(0), "only the next tokens");
    for (step, position, is_new) in [(0, 2, true), (1, 5, true), (0, 2, false), (2, 8, true)] {
        let outputs = say(&mut session, 2, answer(3, step, position, 1));
        assert_eq!(matches!(outputs[..], [Output::Stepped { .. }]), is_new, "step {step}");
    }
    assert!(session.accepts(9) && session.accepts(0), "a rollback when all are answered");
    let mut session = streaming();
    let message = answer(3, 1, 5, 1);
    let input = Input::Received { hop: HopId(2), message };
    assert!(session.handle(input, at(3)).is_err(), "the second before the first");
}

#[test]
fn no_more_steps_are_under_way_than_may_be() {
    let mut session = ready();
    for position in (0..).take(STEPS_IN_FLIGHT_MAX) {
        assert!(session.accepts(position));
        session.handle(begin(position, 1), at(1)).unwrap();
    }
    assert!(!session.accepts(u32::try_from(STEPS_IN_FLIGHT_MAX).unwrap()));
}

#[test]
fn whoever_takes_the_first_place_gets_all_that_is_under_way_and_the_rest_as_a_replay() {
    let mut session = streaming();
    say(&mut session, 2, answer(3, 0, 2, 1));
    let detail = "gone".to_owned();
    session.handle(Input::LinkLost { hop: HopId(0), detail }, at(2)).unwrap();
    session.handle(begin(9, 1), at(2)).unwrap();
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(4, 0, 2)] }, at(2)).unwrap();
    drain(&mut session);
    say(&mut session, 1, ServerMessage::Adopted { session: SessionId::new(2), position: 9 });
    let outputs = say(&mut session, 3, opened(4));
    let steps: Vec<_> = sent(&outputs)
        .into_iter()
        .map(|(hop, message)| {
            let ClientMessage::Step(step) = message else { panic!("{message:?}") };
            (hop, step.step.0, step.position, step.replay, step.answer_rows)
        })
        .collect();
    let (last, all) = (AnswerRows::Last, AnswerRows::All);
    let expected = [
        (3, 0, 0, true, last),
        (3, 1, 3, false, last),
        (3, 2, 6, false, last),
        (3, 3, 9, false, all),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn an_answer_that_was_not_asked_for_costs_its_hop_the_place() {
    let wrong = [
        (0, answer(1, 1, 3, 1), "not the last hop"),
        (2, answer(3, 2, 4, 1), "a step to come"),
        (2, answer(3, 1, 4, 1), "another position"),
        (2, answer(3, 1, 3, 2), "another shape"),
        (2, opened(3), "opened twice"),
        (2, opened(9), "whose?"),
    ];
    for (hop, message, why) in wrong {
        let mut session = stepping();
        let name = [1, 2, 3][hop as usize];
        let input = Input::Received { hop: HopId(hop), message };
        assert!(session.handle(input, at(3)).is_err(), "{why}");
        let outputs = drain(&mut session);
        assert_eq!(blamed(&outputs), [peer(name)], "{why}");
        assert!(wanted(&outputs).is_some(), "{why}");
    }
}

#[test]
fn no_room_is_nobodys_fault_but_another_server_is_asked() {
    let mut session = open();
    drain(&mut session);
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(1, 0, 6)] }, at(0)).unwrap();
    drain(&mut session);
    let outputs = say(&mut session, 0, refusal(1, ErrorCode::KvFull));
    assert!(blamed(&outputs).is_empty());
    assert!(wanted(&outputs).unwrap().avoided.contains(&peer(1)));
    let no_route = NoRoute { blocks: Span::new(0, 6).unwrap(), missing: Vec::new() };
    session.handle(Input::NoRoute { needed: true, no_route }, at(2)).unwrap();
    let outputs = drain(&mut session);
    let [Output::Failed(failure)] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert!(failure.to_string().contains("why"), "{failure}");
}

#[test]
fn what_every_server_would_refuse_ends_the_session() {
    let mut session = stepping();
    let outputs = say(&mut session, 0, refusal(1, ErrorCode::ContextExceeded));
    let failed = |output: &Output| matches!(output, Output::Failed(SessionFailure::Hop(_)));
    assert!(outputs.iter().any(failed), "{outputs:?}");
    // The one that refused it may still keep something of it.
    for hop in 0..3 {
        let farewell = |&(to, message): &(u32, &ClientMessage)| {
            to == hop && matches!(message, ClientMessage::Close { .. })
        };
        assert!(sent(&outputs).iter().any(farewell), "{hop}: {outputs:?}");
    }
}

/// Lets time pass, while all hops but some answer pings; when the last of these is left, which hops
/// were asked until then, and what happened last.
fn silence(session: &mut Session, silent: &[u32]) -> (Time, Vec<u32>, Vec<Output>) {
    let mut asked = Vec::new();
    for _ in 0..200 {
        let now = session.poll_timeout().unwrap();
        session.handle_timeout(&mut Contacts::default(), now);
        let outputs = drain(session);
        for (hop, message) in sent(&outputs) {
            if let ClientMessage::Ping { .. } = message {
                asked.push(hop);
            } else if let ClientMessage::Close { .. } = message
                && silent.last() == Some(&hop)
            {
                return (now, asked, outputs);
            }
        }
        for hop in (0..4).filter(|hop| !silent.contains(hop)) {
            let name = SessionId::new(u128::from(hop) + 1);
            let pong = ServerMessage::Pong { session: name, received: 4, computed: 4 };
            session.handle(Input::Received { hop: HopId(hop), message: pong }, now).unwrap();
        }
    }
    panic!("{silent:?} are never left: {asked:?}");
}

#[test]
fn a_silent_hop_is_asked_and_then_given_up() {
    let (_, asked, outputs) = silence(&mut stepping(), &[1]);
    assert!(asked.contains(&1), "{asked:?}");
    assert_eq!(blamed(&outputs), [peer(2)]);
}

/// How long the second of two hops that fall silent has, where the first says something late or not.
fn second_patience(first_is_late: bool) -> Duration {
    let mut session = stepping();
    let (left, ..) = silence(&mut session, &[1]);
    let hear = |session: &mut Session, hop, message| {
        session.handle(Input::Received { hop: HopId(hop), message }, left).unwrap();
        drain(session)
    };
    if first_is_late {
        let outputs = hear(&mut session, 1, ServerMessage::Closed { session: SessionId::new(2) });
        let ends = |output: &Output| matches!(output, Output::Disconnect { hop: HopId(1) });
        assert!(outputs.iter().any(ends), "{outputs:?}");
    }
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(4, 2, 4)] }, left).unwrap();
    drain(&mut session);
    hear(&mut session, 3, opened(4));
    let (again, ..) = silence(&mut session, &[1, 3]);
    again.since(left)
}

#[test]
fn patience_grows_where_a_hop_was_late_and_not_where_it_was_dead() {
    let (dead, late) = (second_patience(false), second_patience(true));
    assert!(late > dead * 3 / 2, "{late:?} after one that was late, {dead:?} after a dead one");
}

#[test]
fn a_hop_that_was_given_up_is_not_listened_to_for_ever() {
    let mut session = stepping();
    silence(&mut session, &[1]);
    let mut ended = Vec::new();
    while let Some(now) = session.poll_timeout().filter(|now| *now < at(20_000)) {
        session.handle_timeout(&mut Contacts::default(), now);
        for output in drain(&mut session) {
            if let Output::Disconnect { hop } = output {
                ended.push(hop);
            }
        }
    }
    assert!(ended.contains(&HopId(1)), "{ended:?}");
}

#[test]
fn a_silent_spare_has_longer_and_costs_the_hops_no_patience() {
    let (hop_left, ..) = silence(&mut stepping(), &[1]);
    let mut session = stepping_with(true);
    session.handle(Input::Routed { needed: false, hops: vec![route_hop(4, 0, 2)] }, at(1)).unwrap();
    drain(&mut session);
    say(&mut session, 3, opened(4));
    let (spare_left, asked, outputs) = silence(&mut session, &[3]);
    assert!(asked.contains(&3), "{asked:?}");
    assert!(blamed(&outputs).is_empty(), "{outputs:?}");
    let usual = hop_left.since(at(1));
    assert!(spare_left.since(at(1)) > usual * 3, "{spare_left:?} after {hop_left:?}");
    let (left, ..) = silence(&mut session, &[3, 1]);
    assert!(left.since(spare_left) < usual * 2, "{left:?} after {spare_left:?}");
}

#[test]
fn another_spare_is_sought_at_once_where_the_first_is_not_there() {
    let mut session = stepping_with(true);
    // One for the first hop, and none for the others.
    for hops in [vec![route_hop(4, 0, 2)], Vec::new(), Vec::new()] {
        session.handle(Input::Routed { needed: false, hops }, at(1)).unwrap();
    }
    drain(&mut session);
    let lost = Input::LinkLost { hop: HopId(3), detail: "nobody is there".to_owned() };
    session.handle(lost, at(2)).unwrap();
    session.handle_timeout(&mut Contacts::default(), at(2));
    let outputs = drain(&mut session);
    let wanted = wanted(&outputs).unwrap();
    assert!(wanted.avoided.contains(&peer(4)), "{wanted:?}");
    assert_eq!((wanted.blocks, wanted.needed), (Span::new(0, 2).unwrap(), false));
}

#[test]
fn an_idle_session_waits_for_nothing_and_mends_when_it_is_needed() {
    let mut session = ready();
    assert_eq!(session.poll_timeout(), None);
    let outputs = say(&mut session, 1, refusal(2, ErrorCode::LeaseEnded));
    assert!(wanted(&outputs).is_none() && blamed(&outputs).is_empty(), "{outputs:?}");
    session.handle(begin(0, 1), at(5)).unwrap();
    assert!(wanted(&drain(&mut session)).is_some());
}

#[test]
fn a_hop_that_leaves_keeps_its_place_until_another_has_caught_up() {
    let mut session = ready();
    let draining = ServerMessage::Draining { session: SessionId::new(2) };
    let outputs = say(&mut session, 1, draining);
    assert!(!wanted(&outputs).unwrap().needed);
    session.handle(Input::Routed { needed: false, hops: vec![route_hop(4, 2, 4)] }, at(2)).unwrap();
    drain(&mut session);
    let outputs = say(&mut session, 3, opened(4));
    assert!(session.hops().iter().any(|hop| hop.peer == peer(4)), "nothing to catch up with");
    assert!(blamed(&outputs).is_empty(), "it is no fault");
}

#[test]
fn what_comes_after_the_end_is_not_heard() {
    let mut session = ready();
    session.handle(Input::Close, at(2)).unwrap();
    assert_eq!(sent(&drain(&mut session)).len(), 3, "a farewell for each hop");
    assert!(say(&mut session, 2, answer(3, 0, 0, 3)).is_empty());
    assert_eq!(session.poll_timeout(), None);
}
