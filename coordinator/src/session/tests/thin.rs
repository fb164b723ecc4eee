//! Sessions whose last hop draws tokens and sends them to the first.

use umbel_protocol::inference::Sampling;

use super::*;

const VOCABULARY: u32 = 100;

fn ids(position: u32, ids: &[u32]) -> Input {
    let hidden = Tensor::of_ids(ids);
    Input::Step { position, hidden, ids: Vec::new(), answer_rows: AnswerRows::Last }
}

fn draw(from: u32, until: u32, text: &[u32]) -> Input {
    Input::Draw(DrawWanted {
        sampling: Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 2.0,
            seed: 0,
        },
        from,
        until,
        end_ids: Vec::new(),
        text: text.to_vec(),
    })
}

fn token(name: u8, step: u64, position: u32, id: u32, goes_on: bool) -> ServerMessage {
    let ServerMessage::Output(answer) = answer(name, step, position, 1) else {
        panic!("it is one");
    };
    ServerMessage::Output(Step { hidden: Tensor::of_ids(&[id]), goes_on, ..answer })
}

fn draw_taken(name: u8) -> ServerMessage {
    ServerMessage::DrawTaken { session: SessionId::new(name.into()) }
}

/// Hops 0, 1 and 2 that know how to draw, and the prompt of three tokens under way; the outputs.
fn asked() -> (Session, Vec<Output>) {
    asked_with(None)
}

fn asked_with(adapter: Option<SessionAdapter>) -> (Session, Vec<Output>) {
    let config = SessionConfig { thin_vocabulary: Some(VOCABULARY), adapter, ..config(false) };
    let mut session = Session::open(config, Time::START);
    drain(&mut session);
    let hops = vec![route_hop(1, 0, 2), route_hop(2, 2, 4), route_hop(3, 4, 6)];
    session.handle(Input::Routed { needed: true, hops }, at(0)).unwrap();
    let outputs = drain(&mut session);
    let drawers: Vec<_> = sent(&outputs)
        .into_iter()
        .map(|(_, message)| {
            let ClientMessage::Open(open) = message else { panic!("{message:?}") };
            assert!(open.thin);
            open.drawer
        })
        .collect();
    assert_eq!(drawers, [Some(peer(3)), None, None]);
    for (hop, name) in [(0, 1), (1, 2), (2, 3)] {
        let opened = opened_by(&session, name);
        say(&mut session, hop, opened);
    }
    session.handle(draw(3, 40, &[7, 8, 9]), at(1)).unwrap();
    let outputs = drain(&mut session);
    let [(2, ClientMessage::Draw(told))] = sent(&outputs)[..] else { panic!("{outputs:?}") };
    let first = told.first.as_ref().map(|first| first.session);
    assert_eq!((told.text.as_slice(), first), (&[7, 8, 9][..], Some(SessionId::new(1))));
    session.handle(ids(0, &[7, 8, 9]), at(1)).unwrap();
    assert!(sent(&drain(&mut session)).is_empty(), "the hop that draws has not agreed yet");
    let outputs = say(&mut session, 2, draw_taken(3));
    (session, outputs)
}

/// A hop's word that the session is open, with its adapter where there is one.
fn opened_by(session: &Session, name: u8) -> ServerMessage {
    ServerMessage::Opened {
        session: SessionId::new(name.into()),
        tokens_max: 100,
        kept: None,
        adapter: session.config.adapter.is_some(),
    }
}

/// The steps that are sent to a hop: number, position, ids, and whether they are a replay.
fn steps(outputs: &[Output], of: u32) -> Vec<(u64, u32, Vec<u32>, bool)> {
    let to_hop = sent(outputs).into_iter().filter(|(hop, _)| *hop == of);
    let step = |(_, message): (u32, &ClientMessage)| {
        let ClientMessage::Step(step) = message else { return None };
        Some((step.step.0, step.position, step.hidden.to_ids().unwrap(), step.replay))
    };
    to_hop.filter_map(step).collect()
}

fn drawn(outputs: &[Output]) -> Vec<(u32, bool)> {
    let token = |output: &Output| {
        let Output::Drawn { id, goes_on, .. } = output else { return None };
        Some((*id, *goes_on))
    };
    outputs.iter().filter_map(token).collect()
}

/// The prompt was answered as step `number`, and so was the token that followed: two tokens are
/// known, and the second goes round.
fn going() -> (Session, u64) {
    let (mut session, outputs) = asked();
    let [(number, 0, ref ids, false)] = steps(&outputs, 0)[..] else { panic!("{outputs:?}") };
    assert_eq!(ids, &[7, 8, 9]);
    assert_eq!(drawn(&say(&mut session, 2, token(3, number, 2, 20, true))), [(20, true)]);
    let outputs = say(&mut session, 2, token(3, number + 1, 3, 21, true));
    assert_eq!(drawn(&outputs), [(21, true)]);
    assert!(sent(&outputs).is_empty(), "nothing has to be sent for it");
    assert!(!session.accepts(5), "the hops are at it");
    (session, number + 2)
}

#[test]
fn a_token_that_goes_round_is_watched_as_a_step_is() {
    let (mut session, _) = going();
    let at = session.poll_timeout().expect("an answer is awaited");
    session.handle_timeout(&mut Contacts::default(), at);
    let outputs = drain(&mut session);
    let pinged =
        |(_, message): &(u32, &ClientMessage)| matches!(message, ClientMessage::Ping { .. });
    assert_eq!(sent(&outputs).iter().filter(|sent| pinged(sent)).count(), 3);
}

#[test]
fn a_last_hop_that_lacks_the_adapter_is_told_how_to_draw_once_it_has_it() {
    let (mut session, outputs) = asked_with(Some(adapter::adapter()));
    assert_eq!(steps(&outputs, 0).len(), 1, "the prompt is under way");
    session.handle(Input::LinkLost { hop: HopId(2), detail: "gone".into() }, at(10)).unwrap();
    drain(&mut session);
    let hops = vec![route_hop(4, 4, 6)];
    session.handle(Input::Routed { needed: true, hops }, at(11)).unwrap();
    let draws = |outputs: &[Output]| {
        let is_draw = |(hop, message): &(u32, &ClientMessage)| {
            *hop == 3 && matches!(message, ClientMessage::Draw(_))
        };
        sent(outputs).iter().filter(|sent| is_draw(sent)).count()
    };
    assert_eq!(draws(&drain(&mut session)), 0, "it has no session to draw in yet");
    let opened = opened_by(&session, 4);
    assert_eq!(draws(&say(&mut session, 3, opened)), 1);
}

#[test]
fn after_a_failure_the_last_token_begins_anew_under_a_number_of_its_own() {
    for (lost, name, first) in [(0, 1, 0), (1, 2, 2), (2, 3, 4)] {
        let (mut session, number) = going();
        let detail = "gone".to_owned();
        session.handle(Input::LinkLost { hop: HopId(lost), detail }, at(2)).unwrap();
        drain(&mut session);
        let hops = vec![route_hop(name + 10, first, first + 2)];
        session.handle(Input::Routed { needed: true, hops }, at(2)).unwrap();
        let outputs = drain(&mut session);
        // Whoever draws is told where tokens go, and the first hop who draws, where that is new.
        let told: Vec<_> = sent(&outputs)
            .into_iter()
            .filter_map(|(hop, message)| match message {
                ClientMessage::Draw(draw) => Some((hop, draw.text.len())),
                ClientMessage::Adopt(adopt) => adopt.drawer.map(|_| (hop, 0)),
                ClientMessage::Open(_)
                | ClientMessage::Step(_)
                | ClientMessage::Close { .. }
                | ClientMessage::Redirect(_)
                | ClientMessage::Ping { .. }
                | ClientMessage::Keep(_)
                | ClientMessage::Adapter(_) => None,
            })
            .collect();
        let expected = match lost {
            0 => vec![(2, 5)],
            1 => vec![],
            _ => vec![(0, 0), (3, 5)],
        };
        assert_eq!(told, expected, "{lost}");
        let adopted = |name| ServerMessage::Adopted { session: SessionId::new(name), position: 4 };
        let mut outputs = say(&mut session, 3, opened(name + 10));
        for hop in (0..3).filter(|hop| *hop != lost) {
            outputs.extend(say(&mut session, hop, adopted(u128::from(hop) + 1)));
        }
        for (hop, _) in told {
            let name = if hop == 3 { name + 10 } else { 3 };
            if hop >= 2 {
                outputs.extend(say(&mut session, hop, draw_taken(name)));
            }
        }
        let to = if lost == 0 { 3 } else { 0 };
        let sent_on = steps(&outputs, to);
        let (new, position, ids, replay) = sent_on.last().unwrap().clone();
        assert_eq!((position, ids.as_slice(), replay), (4, &[21][..], false), "{lost}");
        assert!(new >= number + 36, "old steps end at 36 more: {new}");
        if lost == 0 {
            assert_eq!(sent_on[0], (number - 1, 0, vec![7, 8, 9, 20], true));
        }
        // What was still going round is answered, and ignored; what began anew counts.
        let last = if lost == 2 { (3, name + 10) } else { (2, 3) };
        assert!(drawn(&say(&mut session, last.0, token(last.1, number, 4, 99, true))).is_empty());
        let outputs = say(&mut session, last.0, token(last.1, new, 4, 22, true));
        assert_eq!(drawn(&outputs), [(22, true)], "{lost}");
    }
}

#[test]
fn a_ring_that_does_not_close_costs_nobody_the_place() {
    let (mut session, number) = going();
    let trouble = ServerMessage::Trouble(Trouble {
        session: SessionId::new(3),
        neighbour: Neighbour::Next,
        code: ErrorCode::NextHopUnreachable,
        detail: "no way".to_owned(),
    });
    let outputs = say(&mut session, 2, trouble);
    let [(2, ClientMessage::Draw(told))] = sent(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(told.first, None);
    let outputs = say(&mut session, 2, draw_taken(3));
    let [(new, 4, ref ids, false)] = steps(&outputs, 0)[..] else { panic!("{outputs:?}") };
    assert!(new > number && ids == &[21]);
    assert_eq!(drawn(&say(&mut session, 2, token(3, new, 4, 22, false))), [(22, false)]);
    // The caller hands tokens in by itself.
    session.handle(self::ids(5, &[22]), at(3)).unwrap();
    assert_eq!(steps(&drain(&mut session), 0), [(new + 1, 5, vec![22], false)]);
    assert_eq!(session.hops().len(), 3);
}

#[test]
fn answers_that_no_honest_hop_gives_cost_the_place() {
    let wrong: [fn(u64) -> ServerMessage; 4] = [
        |number| token(3, number, 4, VOCABULARY, true),
        |number| answer(3, number, 4, 1),
        |number| token(3, number, 5, 22, true),
        |number| token(3, number + 1, 5, 22, true),
    ];
    for (case, wrong) in wrong.into_iter().enumerate() {
        let (mut session, number) = going();
        let message = wrong(number);
        let received = Input::Received { hop: HopId(2), message };
        assert!(session.handle(received, at(2)).is_err(), "case {case}");
        assert_eq!(blamed(&drain(&mut session)), [peer(3)], "case {case}");
    }
    // Nor does one go on before the prompt has ended.
    let (mut session, outputs) = asked();
    let number = steps(&outputs, 0)[0].0;
    session.handle(draw(9, 40, &[7; 9]), at(2)).unwrap();
    session.handle(ids(0, &[7; 4]), at(2)).unwrap();
    drain(&mut session);
    let outputs = say(&mut session, 2, draw_taken(3));
    let new = steps(&outputs, 0)[0].0;
    assert!(new > number);
    let received = Input::Received { hop: HopId(2), message: token(3, new, 3, 1, true) };
    assert!(session.handle(received, at(3)).is_err());
}

#[test]
fn a_hop_that_leaves_is_replaced_by_one_that_is_filled() {
    let (mut session, _) = going();
    let draining = ServerMessage::Draining { session: SessionId::new(2) };
    let outputs = say(&mut session, 1, draining);
    let asked = wanted(&outputs).expect("another is looked for");
    assert_eq!((asked.blocks, asked.needed), (Span::new(2, 4).unwrap(), false));
    session
        .handle(Input::Routed { needed: false, hops: vec![route_hop(12, 2, 4)] }, at(2))
        .unwrap();
    let outputs = drain(&mut session);
    assert!(blamed(&outputs).is_empty());
    assert!(
        sent(&outputs)
            .iter()
            .any(|(hop, message)| *hop == 1 && matches!(message, ClientMessage::Close { .. }))
    );
    let opens = sent(&outputs).iter().any(|(hop, message)| {
        *hop == 3 && matches!(message, ClientMessage::Open(open) if open.thin)
    });
    assert!(opens, "{outputs:?}");
}
