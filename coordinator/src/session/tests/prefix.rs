//! Sessions whose hops hold what they begin with.

use umbel_protocol::inference::{KeepPages, OpenSession};
use umbel_protocol::prefix::{PrefixChain, PrefixSeed};

use super::*;

const SECRET: [u8; 32] = [5; 32];

fn text(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|token| token * 3).collect()
}

fn config(tokens: u32, wire: DType, standby: bool) -> SessionConfig {
    SessionConfig {
        model: ModelId::from_bytes([3; 32]),
        block_count: 6,
        tokens_max: 400,
        token_bytes: 8,
        results: wire,
        cache: DType::F32,
        journal_bytes_max: 1 << 20,
        standby,
        sharing: Some(Sharing { secret: SECRET, tokens: text(tokens) }),
        thin_vocabulary: None,
        adapter: None,
    }
}

fn opened_with(name: u8, kept: Option<u32>) -> ServerMessage {
    ServerMessage::Opened {
        session: SessionId::new(name.into()),
        tokens_max: 400,
        kept,
        adapter: false,
    }
}

fn opens(outputs: &[Output]) -> Vec<&OpenSession> {
    fn open((_, message): (u32, &ClientMessage)) -> Option<&OpenSession> {
        let ClientMessage::Open(open) = message else { return None };
        Some(open)
    }
    sent(outputs).into_iter().filter_map(open).collect()
}

fn keeps(outputs: &[Output]) -> Vec<(u32, &KeepPages)> {
    fn keep((hop, message): (u32, &ClientMessage)) -> Option<(u32, &KeepPages)> {
        let ClientMessage::Keep(keep) = message else { return None };
        Some((hop, keep))
    }
    sent(outputs).into_iter().filter_map(keep).collect()
}

/// The steps that are sent: to whom, from where on, how many tokens, and whether it is a replay.
fn steps(outputs: &[Output]) -> Vec<(u32, u32, u32, bool)> {
    fn step((hop, message): (u32, &ClientMessage)) -> Option<(u32, u32, u32, bool)> {
        let ClientMessage::Step(step) = message else { return None };
        Some((hop, step.position, step.token_count(), step.replay))
    }
    sent(outputs).into_iter().filter_map(step).collect()
}

/// A session of 100 tokens whose three hops hold so many of them.
fn begun(kept: [Option<u32>; 3]) -> Session {
    begun_as(config(100, DType::F32, false), kept)
}

fn begun_as(config: SessionConfig, kept: [Option<u32>; 3]) -> Session {
    let mut session = Session::open(config, Time::START);
    drain(&mut session);
    let hops = vec![route_hop(1, 0, 2), route_hop(2, 2, 4), route_hop(3, 4, 6)];
    session.handle(Input::Routed { needed: true, hops }, at(0)).unwrap();
    drain(&mut session);
    for (hop, kept) in (0..).zip(kept) {
        say(&mut session, hop, opened_with(u8::try_from(hop).unwrap() + 1, kept));
    }
    session
}

fn step_of(position: u32, ids: &[u32]) -> Input {
    let hidden = tensor(u32::try_from(ids.len()).unwrap());
    Input::Step { position, hidden, ids: ids.to_vec(), answer_rows: AnswerRows::All }
}

/// The session reads the rest of its 100 tokens.
fn read(session: &mut Session) -> Vec<Output> {
    let held = session.taken_over();
    if held > 0 {
        session.handle(Input::Remember { hidden: tensor(held) }, at(1)).unwrap();
    }
    session.handle(step_of(held, &text(100)[held as usize..]), at(1)).unwrap();
    let mut outputs = drain(session);
    outputs.extend(say(session, 2, answer(3, 0, held, 100 - held)));
    outputs
}

#[test]
fn hops_are_asked_for_all_pages_but_that_of_the_last_token() {
    for (tokens, pages) in [(0, 0), (1, 0), (16, 0), (17, 1), (96, 5), (97, 6), (100, 6)] {
        let mut session = Session::open(config(tokens, DType::F32, false), Time::START);
        drain(&mut session);
        session
            .handle(Input::Routed { needed: true, hops: vec![route_hop(1, 0, 6)] }, at(0))
            .unwrap();
        assert_eq!(opens(&drain(&mut session))[0].prefix.len(), pages, "{tokens}");
    }
    // Whoever pays for spares wants journals that reach back.
    let mut session = Session::open(config(100, DType::F32, true), Time::START);
    drain(&mut session);
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(1, 0, 6)] }, at(0)).unwrap();
    assert!(opens(&drain(&mut session))[0].prefix.is_empty());
}

#[test]
fn names_differ_from_hop_to_hop_where_links_round_and_only_there() {
    for (wire, alike) in [(DType::F32, true), (DType::BF16, false)] {
        let mut session = Session::open(config(100, wire, false), Time::START);
        drain(&mut session);
        let hops = vec![route_hop(1, 0, 2), route_hop(2, 2, 6)];
        session.handle(Input::Routed { needed: true, hops }, at(0)).unwrap();
        let outputs = drain(&mut session);
        let [first, second] = opens(&outputs)[..] else { panic!("{outputs:?}") };
        assert_eq!(first.prefix == second.prefix, alike, "{wire}");
        let seed = PrefixSeed::new(&SECRET, first.model, DType::F32, wire, [2]);
        assert_eq!(second.prefix, PrefixChain::new(seed).digests(&text(99)));
    }
}

#[test]
fn a_session_begins_at_the_least_that_its_hops_hold() {
    for (kept, begins) in [
        ([Some(96), Some(48), Some(64)], 48),
        ([Some(96), Some(0), Some(64)], 0),
        ([Some(96), Some(96), None], 0),
        ([Some(96), Some(96), Some(96)], 96),
    ] {
        let mut session = begun(kept);
        assert_eq!(session.taken_over(), begins);
        let outputs = read(&mut session);
        let steps = steps(&outputs);
        assert_eq!(steps, [(0, begins, 100 - begins, false)], "what was taken over is not sent");
    }
}

#[test]
fn a_hop_that_holds_what_it_was_not_asked_for_loses_its_place() {
    for kept in [112, 8] {
        let mut session = Session::open(config(100, DType::F32, false), Time::START);
        drain(&mut session);
        session
            .handle(Input::Routed { needed: true, hops: vec![route_hop(1, 0, 6)] }, at(0))
            .unwrap();
        drain(&mut session);
        let message = opened_with(1, Some(kept));
        let result = session.handle(Input::Received { hop: HopId(0), message }, at(1));
        assert!(result.is_err(), "{kept}");
        assert_eq!(blamed(&drain(&mut session)), [peer(1)]);
    }
}

#[test]
fn hops_are_told_what_was_answered_and_which_of_it_they_do_not_keep_yet() {
    let mut session = begun([Some(96), Some(48), None]);
    read(&mut session);
    // Nothing was taken over, since the last keeps nothing, so that all is told to the others anew
    // but for the pages that have their names already.
    session.handle(step_of(100, &[9]), at(1)).unwrap();
    let outputs = drain(&mut session);
    let told: Vec<_> =
        keeps(&outputs).iter().map(|(hop, keep)| (*hop, keep.first, keep.pages.len())).collect();
    assert_eq!(told, [(0, 0, 6), (1, 0, 6)]);
    assert!(keeps(&outputs).iter().all(|(_, keep)| keep.next_step == StepId(1)));
    let first = outputs
        .iter()
        .position(|output| matches!(output, Output::Send { message: ClientMessage::Step(_), .. }));
    assert_eq!(first, Some(2), "before the step that may take tokens back");
    say(&mut session, 2, answer(3, 1, 100, 1));
    // Not for each page, and at the end what is left.
    session.handle(step_of(101, &[9; 40]), at(1)).unwrap();
    assert!(keeps(&drain(&mut session)).is_empty());
    say(&mut session, 2, answer(3, 2, 101, 40));
    session.handle(Input::Close, at(2)).unwrap();
    let outputs = drain(&mut session);
    let told: Vec<_> =
        keeps(&outputs).iter().map(|(hop, keep)| (*hop, keep.first, keep.pages.len())).collect();
    assert_eq!(told, [(0, 6, 2), (1, 6, 2)]);
}

#[test]
fn tokens_that_were_taken_back_are_named_anew() {
    let mut session = begun([Some(0), Some(0), Some(0)]);
    read(&mut session);
    session.handle(step_of(40, &[7; 60]), at(1)).unwrap();
    let outputs = drain(&mut session);
    assert_eq!(keeps(&outputs).len(), 0, "two pages are left");
    say(&mut session, 2, answer(3, 1, 40, 60));
    session.handle(Input::Close, at(2)).unwrap();
    let outputs = drain(&mut session);
    let seed = PrefixSeed::new(&SECRET, session.config.model, DType::F32, DType::F32, None);
    let now = [&text(40)[..], &[7; 60]].concat();
    assert_eq!(keeps(&outputs)[0].1.pages, PrefixChain::new(seed).digests(&now));
}

#[test]
fn tokens_that_are_not_known_are_not_named() {
    let mut session = begun([Some(0), Some(0), Some(0)]);
    session.handle(begin(0, 100), at(1)).unwrap();
    say(&mut session, 2, answer(3, 0, 0, 100));
    session.handle(step_of(100, &[1; 64]), at(1)).unwrap();
    say(&mut session, 2, answer(3, 1, 100, 64));
    session.handle(Input::Close, at(2)).unwrap();
    assert!(keeps(&drain(&mut session)).is_empty());
}

#[test]
fn a_replacement_is_filled_from_where_it_holds_the_text() {
    // It holds as much as the one before it has in its journal, or less.
    for kept in [96, 16] {
        let mut session = begun([Some(48), Some(96), Some(64)]);
        read(&mut session);
        session.handle(step_of(100, &[9]), at(1)).unwrap();
        let detail = "gone".to_owned();
        session.handle(Input::LinkLost { hop: HopId(1), detail }, at(2)).unwrap();
        drain(&mut session);
        session
            .handle(Input::Routed { needed: true, hops: vec![route_hop(4, 2, 4)] }, at(2))
            .unwrap();
        let outputs = drain(&mut session);
        assert_eq!(opens(&outputs)[0].prefix.len(), 6, "all that was answered");
        say(&mut session, 3, opened_with(4, Some(kept)));
        let adopted = ServerMessage::Adopted { session: SessionId::new(3), position: 100 };
        let outputs = say(&mut session, 2, adopted);
        let [(0, ClientMessage::Redirect(redirect))] = sent(&outputs)[..] else {
            panic!("{outputs:?}");
        };
        assert_eq!(redirect.next_position, kept);
        let complete = kept >= 48;
        let redirected =
            ServerMessage::Redirected { session: SessionId::new(1), mirror: false, complete };
        let outputs = say(&mut session, 0, redirected);
        if complete {
            assert!(sent(&outputs).is_empty(), "{outputs:?}");
            continue;
        }
        // What the first hop took over it has sent to nobody: it computes that once more, from what
        // this side remembers.
        let [(0, ClientMessage::Adopt(adopt))] = sent(&outputs)[..] else { panic!("{outputs:?}") };
        assert!(adopt.empty);
        let adopted = ServerMessage::Adopted { session: SessionId::new(1), position: 0 };
        let outputs = say(&mut session, 0, adopted);
        assert_eq!(steps(&outputs), [(0, 0, 100, true), (0, 100, 1, false)]);
    }
}

#[test]
fn a_hop_that_leaves_is_relieved_though_its_prefix_is_in_no_journal() {
    let mut session = begun([Some(48), Some(96), Some(64)]);
    read(&mut session);
    let draining = ServerMessage::Draining { session: SessionId::new(2) };
    say(&mut session, 1, draining);
    session.handle(Input::Routed { needed: false, hops: vec![route_hop(4, 2, 4)] }, at(2)).unwrap();
    drain(&mut session);
    let outputs = say(&mut session, 3, opened_with(4, Some(16)));
    let [(0, ClientMessage::Redirect(redirect))] = sent(&outputs)[..] else {
        panic!("{outputs:?}")
    };
    assert!(redirect.mirror && redirect.next_position == 16);
    let lost =
        |mirror| ServerMessage::Redirected { session: SessionId::new(1), mirror, complete: false };
    say(&mut session, 0, lost(true));
    assert!(session.hops().iter().any(|hop| hop.peer == peer(4)), "it is there at once");
    // The rest is done when it is needed.
    session.handle(step_of(100, &[9]), at(3)).unwrap();
    let adopted = ServerMessage::Adopted { session: SessionId::new(3), position: 100 };
    say(&mut session, 2, adopted);
    let outputs = say(&mut session, 0, lost(false));
    let emptied = |(hop, message): &(u32, &ClientMessage)| {
        *hop == 0 && matches!(message, ClientMessage::Adopt(adopt) if adopt.empty)
    };
    assert!(sent(&outputs).iter().any(emptied), "{outputs:?}");
}

#[test]
fn over_links_that_round_nothing_is_shared_once_the_route_has_changed() {
    let mut session = begun_as(config(100, DType::BF16, false), [Some(48), Some(48), Some(48)]);
    assert_eq!(session.taken_over(), 48);
    read(&mut session);
    session.handle(step_of(100, &[9]), at(1)).unwrap();
    let detail = "gone".to_owned();
    session.handle(Input::LinkLost { hop: HopId(1), detail }, at(2)).unwrap();
    drain(&mut session);
    session.handle(Input::Routed { needed: true, hops: vec![route_hop(4, 2, 4)] }, at(2)).unwrap();
    assert!(opens(&drain(&mut session))[0].prefix.is_empty());
}
