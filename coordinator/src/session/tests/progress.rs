//! What hops say of how far they have come, and of how fast they are.

use super::*;

fn pong(name: u8, received: u32, computed: u32) -> ServerMessage {
    ServerMessage::Pong { session: SessionId::new(name.into()), received, computed }
}

#[test]
fn a_hop_that_is_further_than_there_is_room_loses_its_place_whatever_it_said_of_its_speed() {
    for (received, computed) in [(u32::MAX, 0), (101, 101), (4, 101)] {
        let mut session = stepping_on_word_of(Duration::from_nanos(u64::MAX));
        let input = Input::Received { hop: HopId(1), message: pong(2, received, computed) };
        assert!(session.handle(input, at(3)).is_err(), "{received} {computed}");
        assert_eq!(blamed(&drain(&mut session)), [peer(2)]);
    }
    let mut session = stepping_with(true);
    session.handle(Input::Routed { needed: false, hops: vec![route_hop(4, 0, 2)] }, at(1)).unwrap();
    say(&mut session, 3, opened(4));
    let outputs = say(&mut session, 3, pong(4, u32::MAX, 0));
    let ends = |output: &Output| matches!(output, Output::Disconnect { hop: HopId(3) });
    assert!(outputs.iter().any(ends), "{outputs:?}");
}

#[test]
fn a_hop_is_not_waited_for_longer_because_it_says_that_it_is_slow() {
    let mut session = stepping_on_word_of(Duration::from_nanos(u64::MAX));
    let mut blamed_for = None;
    while let Some(now) = session.poll_timeout().filter(|now| *now < at(60_000)) {
        session.handle_timeout(&mut Contacts::default(), now);
        for (hop, message) in [(0, pong(1, 4, 4)), (1, pong(2, 4, 3)), (2, pong(3, 3, 3))] {
            session.handle(Input::Received { hop: HopId(hop), message }, now).unwrap();
        }
        blamed_for = drain(&mut session).into_iter().find_map(|output| {
            let Output::Blame(failure) = output else { return None };
            Some(failure)
        });
        if blamed_for.is_some() {
            break;
        }
    }
    let failure = blamed_for.expect("it stands still");
    assert_eq!(failure.hop.peer, peer(2));
    assert!(matches!(failure.reason, FailureReason::Slow { .. }), "{failure}");
}

/// [`stepping`], where the second hop has said that its part of the step took so long.
fn stepping_on_word_of(compute: Duration) -> Session {
    let mut session = ready();
    session.handle(begin(0, 3), at(1)).unwrap();
    drain(&mut session);
    let (queue, hop) = (Duration::ZERO, Duration::ZERO);
    let (peer, span) = (peer(2), Span::new(2, 4).unwrap());
    let timing = HopTiming { peer, span, queue, compute, hop, link_round_trip: None };
    let ServerMessage::Output(step) = answer(3, 0, 0, 3) else { panic!("it is an answer") };
    say(&mut session, 2, ServerMessage::Output(Step { trace: vec![timing], ..step }));
    session.handle(begin(3, 1), at(1)).unwrap();
    drain(&mut session);
    session
}

/// Hop 1 is emptied and adopts the same neighbour again; what is sent then.
fn emptied(session: &mut Session) -> Vec<Output> {
    say(session, 1, ServerMessage::Adopted { session: SessionId::new(2), position: 0 })
}

#[test]
fn a_hop_that_lacks_what_it_was_filled_with_again_and_again_loses_its_place() {
    let trouble = || {
        ServerMessage::Trouble(Trouble {
            session: SessionId::new(2),
            neighbour: Neighbour::Previous,
            code: ErrorCode::WrongPosition,
            detail: "a gap".to_owned(),
        })
    };
    let (mirror, complete) = (false, false);
    let lost = || ServerMessage::Redirected { session: SessionId::new(2), mirror, complete };
    for says in [&trouble as &dyn Fn() -> ServerMessage, &lost] {
        let mut session = stepping();
        for time in 0..REFILLS_MAX {
            // It says so of each step that is under way.
            for _ in 0..STEPS_IN_FLIGHT_MAX {
                let outputs = say(&mut session, 1, says());
                assert!(blamed(&outputs).is_empty(), "{time}: {outputs:?}");
            }
            let outputs = emptied(&mut session);
            assert!(matches!(sent(&outputs)[..], [(0, ClientMessage::Redirect(_))]), "{outputs:?}");
        }
        assert_eq!(blamed(&say(&mut session, 1, says())), [peer(2)]);
    }
}

#[test]
fn an_answer_proves_that_a_hop_was_filled_and_its_losses_are_forgotten() {
    let mut session = stepping();
    let lost =
        || ServerMessage::Redirected { session: SessionId::new(2), mirror: false, complete: false };
    for step in 1..u64::from(REFILLS_MAX) + 4 {
        let outputs = say(&mut session, 1, lost());
        assert!(blamed(&outputs).is_empty(), "{step}: {outputs:?}");
        emptied(&mut session);
        // The step that was under way, and one that began behind it, which proves it.
        let position = 1 + 2 * u32::try_from(step).unwrap();
        session.handle(begin(position + 1, 1), at(1)).unwrap();
        say(&mut session, 2, answer(3, 2 * step - 1, position, 1));
        say(&mut session, 2, answer(3, 2 * step, position + 1, 1));
        session.handle(begin(position + 2, 1), at(1)).unwrap();
        drain(&mut session);
    }
}

#[test]
fn a_hop_that_answers_pings_and_never_adopts_its_neighbour_loses_its_place() {
    let mut session = stepping();
    session.handle(Input::LinkLost { hop: HopId(1), detail: String::new() }, at(1)).unwrap();
    let hops = vec![route_hop(4, 2, 4)];
    session.handle(Input::Routed { needed: true, hops }, at(1)).unwrap();
    drain(&mut session);
    say(&mut session, 3, opened(4));
    while let Some(now) = session.poll_timeout().filter(|now| *now < at(60_000)) {
        session.handle_timeout(&mut Contacts::default(), now);
        for (hop, message) in [(0, pong(1, 4, 4)), (3, pong(4, 0, 0)), (2, pong(3, 3, 3))] {
            session.handle(Input::Received { hop: HopId(hop), message }, now).unwrap();
        }
        let outputs = drain(&mut session);
        let blame = |output: &Output| {
            let Output::Blame(failure) = output else { return None };
            Some(failure.clone())
        };
        if let Some(failure) = outputs.iter().find_map(blame) {
            assert_eq!((failure.hop.peer, failure.reason), (peer(3), FailureReason::NotAgreed));
            let waited = now.since(at(1));
            let most = Duration::from_secs(13);
            assert!(waited > Duration::from_secs(10) && waited < most, "{waited:?}");
            return;
        }
    }
    panic!("the session stands still for ever");
}
