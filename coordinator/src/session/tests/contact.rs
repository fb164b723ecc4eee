//! Sessions of one process hear together whether servers are there.

use super::*;

/// What another session of the process hears from the server of the second hop.
fn heard_by_another(contacts: &mut Contacts, now: Time) {
    let pong = ServerMessage::Pong { session: SessionId::new(99), received: 0, computed: 0 };
    contacts.hears(peer(2), &pong, now);
}

/// Lets time pass, in which the hops but the second answer pings at once, and that one as long as
/// `hear` says so answers another session; when it was given up, and how often it was pinged.
fn given_up(contacts: &mut Contacts, hear: impl Fn(Time) -> bool) -> (Time, usize) {
    let mut session = stepping();
    let (mut now, mut pings) = (at(1), 0);
    while now < at(60_000) {
        if hear(now) {
            heard_by_another(contacts, now);
        }
        if session.poll_timeout().is_some_and(|due| due <= now) {
            session.handle_timeout(contacts, now);
            let outputs = drain(&mut session);
            if blamed(&outputs) == [peer(2)] {
                return (now, pings);
            }
            for (hop, message) in sent(&outputs) {
                let ClientMessage::Ping { session: name } = message else { continue };
                if hop == 1 {
                    pings += 1;
                    continue;
                }
                let pong = ServerMessage::Pong { session: *name, received: 4, computed: 4 };
                contacts.hears(peer(u8::try_from(hop).unwrap() + 1), &pong, now);
                session.handle(Input::Received { hop: HopId(hop), message: pong }, now).unwrap();
            }
        }
        now = now + Duration::from_millis(1);
    }
    panic!("it is never given up, after {pings} pings");
}

#[test]
fn a_hop_that_answers_other_sessions_is_there_though_its_own_link_may_be_lost() {
    let (alone, _) = given_up(&mut Contacts::default(), |_| false);
    assert!(alone < at(400), "{alone:?}");
    let (heard, pings) = given_up(&mut Contacts::default(), |_| true);
    let waited = heard.since(at(1));
    assert!(waited > Duration::from_secs(10), "{waited:?}");
    assert!(waited < Duration::from_secs(12), "{waited:?}");
    assert_eq!(pings, 1, "it need not be asked whether it is there");
}

#[test]
fn a_hop_that_stops_is_given_up_as_soon_after_its_last_word_to_anybody_as_after_one_to_this_session()
 {
    let (alone, _) = given_up(&mut Contacts::default(), |_| false);
    let (stopped, _) = given_up(&mut Contacts::default(), |now| now <= at(500));
    assert!(stopped.since(at(500)) <= alone.since(at(1)), "{stopped:?}, alone {alone:?}");
}

#[test]
fn the_question_of_one_session_is_enough_for_the_others() {
    let mut contacts = Contacts::default();
    let mut first = stepping();
    let now = first.poll_timeout().unwrap();
    first.handle_timeout(&mut contacts, now);
    let asks = |outputs: &[Output]| {
        sent(outputs).iter().filter(|(_, said)| matches!(said, ClientMessage::Ping { .. })).count()
    };
    assert_eq!(asks(&drain(&mut first)), 3);
    let mut second = stepping();
    second.handle_timeout(&mut contacts, now);
    assert_eq!(asks(&drain(&mut second)), 0);
    // The servers say nothing to either, so both give them up at the same moment.
    let left = |session: &mut Session, contacts: &mut Contacts| {
        let now = session.poll_timeout().unwrap();
        session.handle_timeout(contacts, now);
        (now, blamed(&drain(session)))
    };
    let (first_left, given_up) = left(&mut first, &mut contacts);
    assert!(given_up.contains(&peer(2)), "{given_up:?}");
    assert_eq!(left(&mut second, &mut contacts), (first_left, given_up));
}

#[test]
fn a_server_of_many_sessions_has_longer() {
    let crowd = |count: u32| {
        let mut contacts = Contacts::default();
        for name in 0..count {
            let mut other = open();
            let named = RouteHop {
                session: SessionId::new(1_000 + u128::from(name)),
                ..route_hop(2, 0, 6)
            };
            other.handle(Input::Routed { needed: true, hops: vec![named] }, Time::START).unwrap();
            for (_, message) in sent(&drain(&mut other)) {
                contacts.says(Some(peer(2)), message);
            }
        }
        given_up(&mut contacts, |_| false).0.since(at(1))
    };
    let (few, many) = (crowd(3), crowd(100));
    assert!(many > few * 2, "{many:?} with many, {few:?} with few");
    assert!(many < Duration::from_millis(700), "{many:?}");
}

#[test]
fn a_busy_server_may_take_its_time_to_open_a_session() {
    let opens_until = |hear: bool| {
        let (mut contacts, mut session) = (Contacts::default(), open());
        let hops = vec![route_hop(1, 0, 2), route_hop(2, 2, 4), route_hop(3, 4, 6)];
        session.handle(Input::Routed { needed: true, hops }, at(1)).unwrap();
        say(&mut session, 0, opened(1));
        say(&mut session, 2, opened(3));
        let mut now = at(1);
        loop {
            if hear {
                heard_by_another(&mut contacts, now);
            }
            for name in [1u8, 3] {
                let (hop, session_name) = (u32::from(name) - 1, SessionId::new(name.into()));
                let pong = ServerMessage::Pong { session: session_name, received: 0, computed: 0 };
                session.handle(Input::Received { hop: HopId(hop), message: pong }, now).unwrap();
            }
            session.handle_timeout(&mut contacts, now);
            if blamed(&drain(&mut session)).contains(&peer(2)) {
                return now.since(at(1));
            }
            now = now + Duration::from_millis(10);
        }
    };
    assert_eq!(opens_until(false), OPEN_TIMEOUT_MIN);
    assert_eq!(opens_until(true), Duration::from_secs(10));
}
