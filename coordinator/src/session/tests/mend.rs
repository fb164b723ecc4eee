//! Several things that go wrong at once.

use umbel_protocol::inference::{Adopt, Destination, Redirect};

use super::*;

fn lose(session: &mut Session, hop: u32) -> Vec<Output> {
    let detail = "gone".to_owned();
    session.handle(Input::LinkLost { hop: HopId(hop), detail }, at(2)).unwrap();
    drain(session)
}

fn route(session: &mut Session, needed: bool, hop: RouteHop) -> Vec<Output> {
    session.handle(Input::Routed { needed, hops: vec![hop] }, at(2)).unwrap();
    drain(session)
}

fn adopted(name: u8, position: u32) -> ServerMessage {
    ServerMessage::Adopted { session: SessionId::new(name.into()), position }
}

fn redirected(name: u8, complete: bool) -> ServerMessage {
    ServerMessage::Redirected { session: SessionId::new(name.into()), mirror: false, complete }
}

fn adopts(outputs: &[Output]) -> Vec<(u32, &Adopt)> {
    fn adopt((hop, message): (u32, &ClientMessage)) -> Option<(u32, &Adopt)> {
        let ClientMessage::Adopt(adopt) = message else { return None };
        Some((hop, adopt))
    }
    sent(outputs).into_iter().filter_map(adopt).collect()
}

fn redirects(outputs: &[Output]) -> Vec<(u32, &Redirect)> {
    fn redirect((hop, message): (u32, &ClientMessage)) -> Option<(u32, &Redirect)> {
        let ClientMessage::Redirect(redirect) = message else { return None };
        Some((hop, redirect))
    }
    sent(outputs).into_iter().filter_map(redirect).collect()
}

#[test]
fn a_new_hop_is_told_that_the_one_behind_it_has_lost_everything_since() {
    let mut session = stepping();
    lose(&mut session, 2);
    route(&mut session, true, route_hop(4, 4, 6));
    say(&mut session, 3, opened(4));
    // The first hop is replaced before the second has said how far its journal reaches back.
    lose(&mut session, 0);
    let outputs = route(&mut session, true, route_hop(5, 0, 2));
    let opened_for = |&(hop, message): &(u32, &ClientMessage)| {
        let ClientMessage::Open(open) = message else { return None };
        Some((hop, open.next_position))
    };
    assert_eq!(sent(&outputs).iter().find_map(opened_for), Some((4, 3)), "what was answered");
    say(&mut session, 1, adopted(2, 3));
    let outputs = say(&mut session, 1, redirected(2, false));
    assert!(matches!(adopts(&outputs)[..], [(1, Adopt { empty: true, .. })]), "{outputs:?}");
    say(&mut session, 4, opened(5));
    let outputs = say(&mut session, 1, adopted(2, 0));
    let [(4, redirect)] = redirects(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!((redirect.next_position, redirect.mirror), (0, false));
}

#[test]
fn nobody_adopts_a_neighbour_across_a_gap() {
    let mut session = stepping();
    let outputs = lose(&mut session, 1);
    assert!(adopts(&outputs).is_empty(), "{outputs:?}");
    let outputs = route(&mut session, true, route_hop(4, 2, 4));
    let [(2, adopt)] = adopts(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(adopt.previous, Some(peer(4)));
    // Nor does the hop behind a first one that is gone take steps of the client.
    let mut session = stepping();
    let outputs = lose(&mut session, 0);
    assert!(adopts(&outputs).is_empty(), "{outputs:?}");
    let outputs = route(&mut session, true, route_hop(4, 0, 2));
    let [(1, adopt)] = adopts(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(adopt.previous, Some(peer(4)));
}

#[test]
fn nothing_flows_before_the_last_neighbour_of_which_a_hop_was_told_is_adopted() {
    let mut session = stepping();
    lose(&mut session, 1);
    route(&mut session, true, route_hop(4, 2, 4));
    say(&mut session, 3, opened(4));
    lose(&mut session, 3);
    route(&mut session, true, route_hop(5, 2, 4));
    say(&mut session, 4, opened(5));
    // This is of the one that is gone.
    let outputs = say(&mut session, 2, adopted(3, 3));
    assert!(sent(&outputs).is_empty(), "{outputs:?}");
    let outputs = say(&mut session, 2, adopted(3, 3));
    assert!(matches!(redirects(&outputs)[..], [(0, _)]), "{outputs:?}");
}

/// Where a spare of the second hop, named 5, is fed by the first.
fn with_spare() -> Session {
    let mut session = stepping_with(true);
    route(&mut session, false, route_hop(4, 0, 2));
    route(&mut session, false, route_hop(5, 2, 4));
    say(&mut session, 3, opened(4));
    let outputs = say(&mut session, 4, opened(5));
    let [(0, redirect)] = redirects(&outputs)[..] else { panic!("{outputs:?}") };
    assert!(redirect.mirror && matches!(redirect.next, Destination::Server(_)));
    session
}

#[test]
fn a_spare_that_is_gone_is_fed_no_more() {
    let mut session = with_spare();
    let outputs = lose(&mut session, 4);
    let [(0, redirect)] = redirects(&outputs)[..] else { panic!("{outputs:?}") };
    assert!(redirect.mirror && redirect.next == Destination::Held, "{redirect:?}");
    // Of one that this side feeds nobody else need hear.
    let outputs = lose(&mut session, 3);
    assert!(redirects(&outputs).is_empty(), "{outputs:?}");
    // Who fed it is gone too.
    let mut session = with_spare();
    lose(&mut session, 0);
    let outputs = lose(&mut session, 4);
    assert!(redirects(&outputs).is_empty(), "{outputs:?}");
}

#[test]
fn a_gap_waits_for_no_search_for_a_spare() {
    let mut session = stepping_with(true);
    let outputs = lose(&mut session, 1);
    let asked = wanted(&outputs).expect("a spare is still looked for");
    assert_eq!((asked.blocks, asked.needed), (Span::new(2, 4).unwrap(), true));
    // Either answer is taken for what it is.
    let none = NoRoute { blocks: Span::new(0, 2).unwrap(), missing: Vec::new() };
    session.handle(Input::NoRoute { needed: false, no_route: none }, at(2)).unwrap();
    let outputs = drain(&mut session);
    assert!(outputs.is_empty(), "{outputs:?}");
    route(&mut session, true, route_hop(4, 2, 4));
    assert_eq!(session.hops().len(), 3);
}

#[test]
fn a_hop_that_takes_the_gap_does_not_stand_by_too() {
    let mut session = stepping_with(true);
    lose(&mut session, 1);
    route(&mut session, true, route_hop(4, 2, 4));
    let outputs = route(&mut session, false, route_hop(4, 0, 2));
    assert!(outputs.is_empty(), "{outputs:?}");
}
