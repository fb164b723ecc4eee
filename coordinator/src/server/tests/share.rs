//! Sessions that begin with what others of their client have left.

use umbel_protocol::inference::KeepPages;
use umbel_protocol::prefix::PageDigest;

use super::*;
use crate::server::prefix::IDLE_KEPT;

const OTHER: PeerId = PeerId::from_public_key([9; 32]);

fn pages(text: u8, count: u8) -> Vec<PageDigest> {
    (0..count).map(|page| PageDigest::from_bytes([text ^ (page << 3); 16])).collect()
}

fn keep(session: u128, next_step: u64, first: u32, pages: Vec<PageDigest>) -> ClientMessage {
    let (session, next_step) = (SessionId::new(session), StepId(next_step));
    ClientMessage::Keep(KeepPages { session, next_step, first, pages })
}

fn say_as(server: &mut Server, from: PeerId, message: ClientMessage) -> Vec<Output> {
    server.handle(Input::Received { link: LINK, from, message }, Time::START).unwrap();
    drain(server)
}

fn close(server: &mut Server, session: u128) -> Vec<Output> {
    say(server, LINK, ClientMessage::Close { session: SessionId::new(session) })
}

/// A step that is computed at once.
fn read(server: &mut Server, session: u128, number: u64, position: u32, tokens: u32) {
    let outputs = say(server, LINK, ClientMessage::Step(step(session, number, position, tokens)));
    compute(server, job(&outputs).unwrap(), tokens);
}

/// A session that has read four pages of a text, keeps them, and is closed.
fn left_by(client: PeerId, server: &mut Server) {
    say_as(server, client, ClientMessage::Open(opening(1)));
    read(server, 1, 0, 0, 64);
    say(server, LINK, keep(1, 1, 0, pages(1, 4)));
    close(server, 1);
}

/// The pages with which a session is opened.
fn prefix(outputs: &[Output]) -> Vec<PageId> {
    let open = |output: &Output| {
        let Output::OpenCache { prefix, .. } = output else { return None };
        Some(prefix.clone())
    };
    outputs.iter().find_map(open).unwrap()
}

fn kept(outputs: &[Output]) -> Option<u32> {
    let opened = |output: &Output| {
        let Output::Send { message: ServerMessage::Opened { kept, .. }, .. } = output else {
            return None;
        };
        Some(*kept)
    };
    outputs.iter().find_map(opened).unwrap()
}

fn orders(outputs: &[Output]) -> Vec<PageOrder> {
    let orders = |output: &Output| {
        let Output::Pages(orders) = output else { return None };
        Some(orders.clone())
    };
    outputs.iter().filter_map(orders).flatten().collect()
}

#[test]
fn a_session_begins_with_what_its_client_has_left_and_its_results_go_on_from_there() {
    let mut server = server(256);
    left_by(CLIENT, &mut server);
    assert_eq!((server.pages_kept(), server.kv_tokens_free()), (4, 256), "idle pages are free");
    let open = OpenSession { prefix: pages(1, 3), next: next_hop(77), ..opening(2) };
    let outputs = say(&mut server, LINK, ClientMessage::Open(open));
    assert_eq!((kept(&outputs), prefix(&outputs).len()), (Some(48), 3));
    // The next hop holds as much as comes before the first step.
    let outputs = say(&mut server, LINK, ClientMessage::Step(step(2, 0, 40, 3)));
    let outputs = compute(&mut server, job(&outputs).unwrap(), 3);
    assert_eq!(pushes(&outputs), [(77, 40, 3, false)]);
    // What is before it is in no journal.
    let redirect = Redirect {
        session: SessionId::new(2),
        next: next_hop(78),
        next_position: 0,
        next_step: StepId(0),
        settled: 43,
        mirror: false,
    };
    let outputs = say(&mut server, LINK, ClientMessage::Redirect(redirect));
    assert_eq!((redirected(&outputs), pushes(&outputs).len()), (Some(false), 0));
}

#[test]
fn nobody_else_is_told_of_them_nor_sessions_of_other_blocks_or_types() {
    let mut server = server(1_024);
    left_by(CLIENT, &mut server);
    let with = |session, change: fn(&mut OpenSession)| {
        let mut open = OpenSession { prefix: pages(1, 4), ..opening(session) };
        change(&mut open);
        ClientMessage::Open(open)
    };
    let outputs = say_as(&mut server, OTHER, with(2, |_| {}));
    assert_eq!((kept(&outputs), prefix(&outputs)), (Some(0), Vec::new()));
    let outputs = say(&mut server, LINK, with(3, |open| open.blocks = Span::new(3, 6).unwrap()));
    assert_eq!(kept(&outputs), Some(0));
    let outputs = say(&mut server, LINK, with(4, |open| open.cache = DType::BF16));
    assert_eq!(kept(&outputs), Some(0));
    let outputs = say(&mut server, LINK, with(5, |open| open.tokens_max = 47));
    assert_eq!(kept(&outputs), Some(32), "no more than the session has room for");
    let outputs = say(&mut server, LINK, with(6, |_| {}));
    assert_eq!(kept(&outputs), Some(64));
}

#[test]
fn only_what_is_certainly_there_is_kept() {
    let unfit: [(&str, ClientMessage); 4] = [
        ("not computed yet", keep(1, 2, 0, pages(1, 4))),
        ("out of all bounds", keep(1, 2, u32::MAX, pages(1, 4))),
        ("out of all bounds", keep(1, 2, u32::MAX / 16, pages(1, 4))),
        ("before a step that may have taken tokens back", keep(1, 0, 0, pages(1, 2))),
    ];
    for (why, message) in unfit {
        let mut server = server(256);
        say(&mut server, LINK, ClientMessage::Open(opening(1)));
        read(&mut server, 1, 0, 0, 40);
        read(&mut server, 1, 1, 30, 4);
        let outputs = say(&mut server, LINK, message);
        assert_eq!((outputs.len(), server.pages_kept()), (0, 0), "{why}");
    }
    let mut server = server(256);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    read(&mut server, 1, 0, 0, 40);
    // A step is on its way that writes into the second page.
    say(&mut server, LINK, ClientMessage::Step(step(1, 1, 30, 1)));
    assert!(say(&mut server, LINK, keep(1, 1, 0, pages(1, 2))).is_empty());
    assert_eq!(server.pages_kept(), 0);
    say(&mut server, LINK, keep(1, 1, 0, pages(1, 1)));
    assert_eq!(server.pages_kept(), 1);
    let stranger =
        Input::Received { link: LinkId(1), from: OTHER, message: keep(1, 1, 0, pages(1, 1)) };
    assert!(server.handle(stranger, Time::START).is_err());
}

#[test]
fn pages_that_a_session_writes_into_are_no_longer_its_own() {
    let mut server = server(256);
    left_by(CLIENT, &mut server);
    let open = OpenSession { prefix: pages(1, 4), ..opening(2) };
    let used = prefix(&say(&mut server, LINK, ClientMessage::Open(open)));
    let outputs = say(&mut server, LINK, ClientMessage::Step(step(2, 0, 20, 1)));
    // The pass copies the second page and lets go of those behind it; only then do they count.
    assert_eq!(orders(&outputs), []);
    let outputs = compute(&mut server, job(&outputs).unwrap(), 1);
    let idle: Vec<_> = used[1..].iter().map(|page| PageOrder::Idle(*page)).collect();
    assert_eq!(orders(&outputs), idle);
    let outputs = close(&mut server, 2);
    assert_eq!(orders(&outputs), [PageOrder::Idle(used[0])]);
    let (forget, idle) = (
        outputs.iter().position(|output| matches!(output, Output::Forget { .. })).unwrap(),
        outputs.iter().position(|output| matches!(output, Output::Pages(_))).unwrap(),
    );
    assert!(forget < idle, "their room is that of the session until it is gone");
}

#[test]
fn idle_pages_make_room_for_whoever_comes() {
    let mut server = server(128);
    left_by(CLIENT, &mut server);
    let outputs = say_as(&mut server, OTHER, ClientMessage::Open(opening(2)));
    assert_eq!((refusal(&outputs), orders(&outputs).len()), (None, 0), "there was room");
    let outputs = say_as(&mut server, OTHER, ClientMessage::Open(opening(3)));
    assert_eq!(refusal(&outputs), None);
    let dropped = orders(&outputs);
    assert!(dropped.iter().all(|order| matches!(order, PageOrder::Drop(_))), "{dropped:?}");
    assert_eq!((dropped.len(), server.pages_kept()), (4, 0));
    let is = |wanted: fn(&Output) -> bool| outputs.iter().position(wanted).unwrap();
    let dropped = is(|output| matches!(output, Output::Pages(_)));
    assert!(dropped < is(|output| matches!(output, Output::OpenCache { .. })), "first they go");
    // A session may take over what it would push out.
    close(&mut server, 2);
    close(&mut server, 3);
    left_by(CLIENT, &mut server);
    let open = OpenSession { prefix: pages(1, 4), tokens_max: 128, ..opening(4) };
    let outputs = say(&mut server, LINK, ClientMessage::Open(open));
    assert_eq!((kept(&outputs), orders(&outputs)), (Some(64), Vec::new()));
}

#[test]
fn what_a_session_lets_go_of_is_gone_before_the_pass_where_there_is_no_room_beside_it() {
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    read(&mut server, 1, 0, 0, 64);
    say(&mut server, LINK, keep(1, 1, 0, pages(1, 4)));
    let outputs = say_as(&mut server, OTHER, ClientMessage::Open(opening(2)));
    assert_eq!((refusal(&outputs), server.kv_tokens_free()), (None, 0));
    let outputs = say(&mut server, LINK, ClientMessage::Step(step(1, 1, 0, 1)));
    let dropped = orders(&outputs);
    assert!(dropped.iter().all(|order| matches!(order, PageOrder::Drop(_))), "{dropped:?}");
    assert_eq!((dropped.len(), server.pages_kept()), (4, 0));
    let is = |wanted: fn(&Output) -> bool| outputs.iter().position(wanted).unwrap();
    let dropped = is(|output| matches!(output, Output::Pages(_)));
    assert!(dropped < is(|output| matches!(output, Output::Compute(_))), "first they go");
}

#[test]
fn pages_go_with_the_blocks_and_after_a_while() {
    let mut moving = server(256);
    left_by(CLIENT, &mut moving);
    let (shard, span) = (ShardId(1), Span::new(2, 6).unwrap());
    moving.handle(Input::Serve { shard, span }, Time::START).unwrap();
    assert_eq!((orders(&drain(&mut moving)).len(), moving.pages_kept()), (4, 0));
    let mut leaving = server(256);
    say(&mut leaving, LINK, ClientMessage::Open(opening(1)));
    read(&mut leaving, 1, 0, 0, 64);
    say(&mut leaving, LINK, keep(1, 1, 0, pages(1, 2)));
    leaving.handle(Input::Drain, Time::START).unwrap();
    assert_eq!((orders(&drain(&mut leaving)).len(), leaving.pages_kept()), (2, 0));
    say(&mut leaving, LINK, keep(1, 1, 0, pages(1, 4)));
    assert_eq!(leaving.pages_kept(), 0, "and no more are kept");
    assert_eq!(orders(&close(&mut leaving, 1)), []);
    let mut old = server(256);
    left_by(CLIENT, &mut old);
    let due = old.poll_timeout().unwrap();
    assert_eq!(due, Time::START + IDLE_KEPT);
    old.handle_timeout(due);
    assert_eq!((orders(&drain(&mut old)).len(), old.poll_timeout()), (4, None));
}

#[test]
fn a_server_that_keeps_nothing_says_so() {
    let mut server = server(256);
    server.config.keeps_pages = false;
    left_by(CLIENT, &mut server);
    assert_eq!(server.pages_kept(), 0);
    let open = OpenSession { prefix: pages(1, 4), ..opening(2) };
    assert_eq!(kept(&say(&mut server, LINK, ClientMessage::Open(open))), None);
}
