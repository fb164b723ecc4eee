//! A session whose hops are given its adapter before they open it.

use umbel_protocol::AdapterId;
use umbel_protocol::inference::SessionAdapter;
use umbel_protocol::training::{AdapterSettings, TargetModule};

use super::*;

pub(super) fn adapter() -> SessionAdapter {
    let settings = AdapterSettings {
        rank: 4,
        alpha: 8.0,
        rank_stabilized: false,
        dropout: 0.0,
        target_modules: vec![TargetModule::Value],
        block_prompt_tokens: 0,
        weight_decomposed: false,
    };
    SessionAdapter { id: AdapterId::from_bytes([5; 32]), settings }
}

/// A session that has asked two hops to open.
fn asked() -> Session {
    let config = SessionConfig { adapter: Some(adapter()), ..config(false) };
    let mut session = Session::open(config, at(0));
    drain(&mut session);
    let hops = vec![route_hop(1, 0, 2), route_hop(2, 2, 6)];
    session.handle(Input::Routed { needed: true, hops }, at(0)).unwrap();
    let outputs = drain(&mut session);
    let named = sent(&outputs).into_iter().all(|(_, message)| {
        matches!(message, ClientMessage::Open(open) if open.adapter == Some(adapter()))
    });
    assert!(named);
    session
}

fn wanted(name: u128, offset: Option<u64>) -> ServerMessage {
    ServerMessage::AdapterWanted { session: SessionId::new(name), offset }
}

fn opened_with(name: u128, adapter: bool) -> ServerMessage {
    ServerMessage::Opened { session: SessionId::new(name), tokens_max: 100, kept: None, adapter }
}

/// What is to be sent of the adapter.
fn parts(outputs: &[Output]) -> Vec<(u32, Span, u64)> {
    let part = |output: &Output| {
        let Output::SendAdapter { hop, blocks, offset, .. } = output else { return None };
        Some((hop.0, *blocks, *offset))
    };
    outputs.iter().filter_map(part).collect()
}

#[test]
fn each_hop_is_sent_what_it_asks_for_and_the_session_is_ready_when_all_have_it() {
    let mut session = asked();
    let span = |start, end| Span::new(start, end).unwrap();
    assert_eq!(parts(&say(&mut session, 0, wanted(1, Some(0)))), [(0, span(0, 2), 0)]);
    assert_eq!(parts(&say(&mut session, 1, wanted(2, None))), [], "another session sends it");
    assert_eq!(parts(&say(&mut session, 1, wanted(2, Some(300)))), [(1, span(2, 6), 300)]);
    let is_ready = |outputs: &[Output]| outputs.iter().any(|o| matches!(o, Output::Ready));
    assert!(!is_ready(&say(&mut session, 0, opened_with(1, true))));
    assert!(is_ready(&say(&mut session, 1, opened_with(2, true))));
    // Once it is open it lacks nothing.
    let message = wanted(1, Some(0));
    let again = session.handle(Input::Received { hop: HopId(0), message }, at(1));
    assert!(matches!(again, Err(ProtocolViolation::Unexpected { .. })), "{again:?}");
}

#[test]
fn a_hop_that_asks_for_more_has_more_time_and_one_that_asks_for_ever_has_not() {
    let mut session = asked();
    let mut seconds = 0;
    let mut given_up = false;
    while !given_up && seconds < 3_600 {
        let message = wanted(1, None);
        let input = Input::Received { hop: HopId(0), message };
        let _gone = session.handle(input, Time::START + Duration::from_secs(seconds));
        seconds += 2;
        session
            .handle_timeout(&mut Contacts::default(), Time::START + Duration::from_secs(seconds));
        given_up = !session.hops().iter().any(|hop| hop.blocks.start() == 0);
    }
    assert!((600..1_200).contains(&seconds), "{seconds}");
}

#[test]
fn a_hop_that_knows_nothing_of_adapters_is_replaced() {
    let mut session = asked();
    let outputs = say(&mut session, 0, opened_with(1, false));
    let wanted = outputs.iter().find_map(|output| {
        let Output::Route(wanted) = output else { return None };
        Some((wanted.blocks, wanted.avoided.len()))
    });
    assert_eq!(wanted, Some((Span::new(0, 2).unwrap(), 2)), "it is avoided, and so is the other");
    let blamed = outputs.iter().any(|output| matches!(output, Output::Blame(_)));
    assert!(!blamed, "an older version is no fault");
}
