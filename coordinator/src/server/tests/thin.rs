//! Sessions in which ids enter the model and leave it.

use umbel_protocol::inference::{Draw, Sampling};

use super::*;

/// The name of the session on its first server.
const AT_FIRST: SessionId = SessionId::new(77);

/// A server of the first blocks, or of the last, or of all.
fn server_of(start: u32, end: u32, vocabulary_size: Option<u32>) -> Server {
    Server::new(ServerConfig {
        peer: PeerId::from_public_key([3; 32]),
        model: MODEL,
        span: Span::new(start, end).unwrap(),
        block_count: 6,
        vocabulary_size,
        hidden_size: HIDDEN,
        head_size: 32,
        context_tokens: 512,
        kv_tokens_max: 4_096,
        cache: None,
        journal_bytes_max: 1 << 20,
        keeps_pages: true,
        adapters: None,
    })
}

fn thin(session: u128, start: u32, end: u32) -> OpenSession {
    let blocks = Span::new(start, end).unwrap();
    OpenSession { blocks, thin: true, ..opening(session) }
}

fn ids(session: u128, number: u64, position: u32, ids: &[u32]) -> Step {
    Step { hidden: Tensor::of_ids(ids), ..step(session, number, position, 1) }
}

fn sampling(repetition_penalty: f32) -> Sampling {
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty, seed: 9 }
}

fn draw(from: u32, until: u32, text: &[u32]) -> Draw {
    Draw {
        session: SessionId::new(1),
        sampling: sampling(if text.is_empty() { 1.0 } else { 2.0 }),
        from,
        until,
        end_ids: vec![50],
        text: text.to_vec(),
        first: Some(NextHop { peer: AFTER, addresses: Vec::new(), session: AT_FIRST }),
    }
}

/// The last server, with an open session of a client that pushes nothing itself.
fn last() -> Server {
    let mut server = server_of(3, 6, Some(VOCABULARY));
    let open = OpenSession { previous: Some(BEFORE), ..thin(1, 3, 6) };
    say(&mut server, LINK, ClientMessage::Open(open));
    server
}

fn first() -> Server {
    let mut server = server_of(0, 3, Some(VOCABULARY));
    let next = next_hop(5);
    let open = OpenSession { next, drawer: Some(AFTER), ..thin(1, 0, 3) };
    say(&mut server, LINK, ClientMessage::Open(open));
    server
}

fn push(server: &mut Server, from: PeerId, step: Step) -> Vec<Output> {
    server.handle(Input::Pushed { from, step }, Time::START).unwrap();
    drain(server)
}

/// What the pass is to draw.
fn drawing(outputs: &[Output]) -> Option<(JobId, Option<DrawJob>)> {
    outputs.iter().find_map(|output| {
        let Output::Compute(batch) = output else { return None };
        Some((batch.id, batch.jobs[0].draw.clone()))
    })
}

fn drawn(server: &mut Server, job: JobId, id: u32) -> Vec<Output> {
    let (results, compute) = (vec![Ok(Tensor::of_ids(&[id]))], Duration::from_millis(5));
    server.handle(Input::Computed { job, results, compute }, Time::START).unwrap();
    drain(server)
}

/// Number, position and ids of a step.
type IdStep = (u64, u32, Vec<u32>);

/// The token of an answer, whether it goes on, and the step that it was sent as.
fn token(outputs: &[Output]) -> (Option<(u32, bool)>, Option<IdStep>) {
    let answer = outputs.iter().find_map(|output| {
        let Output::Send { message: ServerMessage::Output(answer), .. } = output else {
            return None;
        };
        Some((answer.hidden.to_ids()?[0], answer.goes_on))
    });
    let step = outputs.iter().find_map(|output| {
        let Output::Push { to, step, .. } = output else { return None };
        assert_eq!((*to, step.session), (AT_FIRST, AT_FIRST));
        Some((step.step.0, step.position, step.hidden.to_ids()?))
    });
    (answer, step)
}

#[test]
fn only_who_holds_the_ends_takes_a_thin_session_there() {
    for (start, end) in [(0, 3), (3, 6), (0, 6)] {
        let open = || ClientMessage::Open(thin(1, start, end));
        let outputs = say(&mut server_of(start, end, None), LINK, open());
        assert_eq!(refusal(&outputs), Some(ErrorCode::BlocksNotServed));
        let outputs = say(&mut server_of(start, end, Some(VOCABULARY)), LINK, open());
        assert_eq!(refusal(&outputs), None);
    }
    let between = ClientMessage::Open(thin(1, 1, 5));
    assert_eq!(refusal(&say(&mut server_of(0, 6, None), LINK, between)), None);
}

#[test]
fn a_token_that_was_drawn_goes_to_the_client_and_to_the_first_server() {
    let mut server = last();
    let outputs = say(&mut server, LINK, ClientMessage::Draw(draw(3, 6, &[7, 8, 9])));
    assert!(
        matches!(
            outputs.as_slice(),
            [Output::Connect { .. }, Output::Send { message: ServerMessage::DrawTaken { .. }, .. }]
        ),
        "{outputs:?}"
    );
    let outputs = push(&mut server, BEFORE, step(1, 4, 0, 3));
    let (job, wanted) = drawing(&outputs).unwrap();
    let wanted = wanted.unwrap();
    assert_eq!((wanted.position, wanted.text), (3, vec![7, 8, 9]));
    let outputs = drawn(&mut server, job, 20);
    assert_eq!(token(&outputs), (Some((20, true)), Some((5, 3, vec![20]))));
    // What was drawn is part of the text of the next draw.
    let (job, wanted) = drawing(&push(&mut server, BEFORE, step(1, 5, 3, 1))).unwrap();
    assert_eq!(wanted.unwrap().text, [7, 8, 9, 20]);
    assert_eq!(token(&drawn(&mut server, job, 50)), (Some((50, false)), None), "it ends an answer");
    // The client goes on all the same, to where nobody wants more.
    let (job, _) = drawing(&push(&mut server, BEFORE, step(1, 6, 4, 2))).unwrap();
    assert_eq!(token(&drawn(&mut server, job, 21)), (Some((21, false)), None));
    let outputs = say(&mut server, LINK, ClientMessage::Close { session: SessionId::new(1) });
    let left = |output: &Output| matches!(output, Output::Disconnect { to, .. } if *to == AT_FIRST);
    assert!(outputs.iter().any(left), "{outputs:?}");
}

#[test]
fn nothing_is_drawn_before_the_end_of_the_prompt_nor_from_a_replay() {
    let mut server = last();
    say(&mut server, LINK, ClientMessage::Draw(draw(5, 9, &[])));
    let (job, wanted) = drawing(&push(&mut server, BEFORE, step(1, 0, 0, 4))).unwrap();
    assert_eq!(wanted, None);
    let outputs = compute(&mut server, job, 4);
    assert_eq!(token(&outputs), (Some((0, false)), None), "it is answered without a token");
    let replay = Step { replay: true, ..step(1, 0, 0, 6) };
    let (job, wanted) = drawing(&push(&mut server, BEFORE, replay)).unwrap();
    assert_eq!(wanted, None);
    assert_eq!(token(&compute(&mut server, job, 6)), (None, None));
    assert_eq!(server.journal_bytes(), 0, "what is drawn can be drawn again");
}

#[test]
fn what_is_said_of_a_text_does_not_take_back_what_was_drawn_since() {
    let mut server = last();
    say(&mut server, LINK, ClientMessage::Draw(draw(2, 9, &[7, 8])));
    let (job, _) = drawing(&push(&mut server, BEFORE, step(1, 0, 0, 2))).unwrap();
    drawn(&mut server, job, 20);
    // The client does not know of token 20 yet, and names another first server.
    let first = Some(NextHop { peer: CLIENT, addresses: Vec::new(), session: AT_FIRST });
    let again = Draw { first, ..draw(2, 9, &[7, 8]) };
    say(&mut server, LINK, ClientMessage::Draw(again));
    let (_, wanted) = drawing(&push(&mut server, BEFORE, step(1, 5, 2, 1))).unwrap();
    assert_eq!(wanted.unwrap().text, [7, 8, 20]);
}

#[test]
fn a_first_server_that_cannot_be_reached_is_told_and_tokens_go_to_the_client_alone() {
    let mut server = last();
    say(&mut server, LINK, ClientMessage::Draw(draw(2, 9, &[])));
    let (session, detail) = (SessionId::new(1), "no way".to_owned());
    let failed = Input::PushFailed { session, to: AT_FIRST, detail };
    server.handle(failed, Time::START).unwrap();
    let outputs = drain(&mut server);
    let is_trouble = |output: &Output| {
        matches!(output, Output::Send { message: ServerMessage::Trouble(trouble), .. }
            if trouble.neighbour == Neighbour::Next)
    };
    assert!(outputs.iter().any(is_trouble), "{outputs:?}");
    let (job, _) = drawing(&push(&mut server, BEFORE, step(1, 0, 0, 2))).unwrap();
    assert_eq!(token(&drawn(&mut server, job, 20)), (Some((20, false)), None));
}

#[test]
fn only_ids_that_the_model_has_enter() {
    let wrong = [
        ids(1, 0, 0, &[1, VOCABULARY]),
        step(1, 0, 0, 2),
        Step {
            hidden: Tensor::new(DType::Id, vec![1, 2], Bytes::from(vec![0; 8])).unwrap(),
            ..step(1, 0, 0, 1)
        },
    ];
    for step in wrong {
        let outputs = say(&mut first(), LINK, ClientMessage::Step(step));
        assert_eq!(refusal(&outputs), Some(ErrorCode::WrongShape));
    }
    let sound = ClientMessage::Step(ids(1, 0, 0, &[1, VOCABULARY - 1]));
    assert_eq!(refusal(&say(&mut first(), LINK, sound)), None);
    // And none where hidden states are asked for.
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    let hidden = Tensor::new(DType::Id, vec![1, HIDDEN], Bytes::from(vec![0; 8])).unwrap();
    let outputs = say(&mut server, LINK, ClientMessage::Step(Step { hidden, ..step(1, 0, 0, 1) }));
    assert_eq!(refusal(&outputs), Some(ErrorCode::WrongShape));
}

#[test]
fn a_drawn_token_enters_once_and_from_who_draws() {
    let mut server = first();
    let outputs = say(&mut server, LINK, ClientMessage::Step(ids(1, 4, 0, &[1, 2, 3])));
    compute(&mut server, job(&outputs).unwrap(), 3);
    let enters = |server: &mut Server, from, step| job(&push(server, from, step)).is_some();
    assert!(!enters(&mut server, BEFORE, ids(1, 5, 3, &[9])), "nobody else may");
    assert!(!enters(&mut server, AFTER, ids(1, 5, 4, &[9])), "beyond a gap");
    assert!(!enters(&mut server, AFTER, ids(1, 4, 3, &[9])), "an old number");
    assert!(enters(&mut server, AFTER, ids(1, 5, 3, &[9])));
    assert_eq!(server.queue_depth(), 1);
    push(&mut server, AFTER, ids(1, 5, 3, &[9]));
    assert_eq!(server.queue_depth(), 1, "the second one is dropped");
    // The client begins anew: what still goes round is older.
    say(&mut server, LINK, ClientMessage::Step(ids(1, 90, 3, &[9])));
    let depth = server.queue_depth();
    push(&mut server, AFTER, ids(1, 6, 4, &[9]));
    assert_eq!(server.queue_depth(), depth);
    // Another server draws from now on; what comes from the one before is late, and no fault.
    let session = SessionId::new(1);
    let adopt = Adopt { session, previous: None, empty: false, drawer: Some(BEFORE) };
    say(&mut server, LINK, ClientMessage::Adopt(adopt));
    push(&mut server, AFTER, ids(1, 91, 4, &[9]));
    assert_eq!(server.queue_depth(), depth);
    push(&mut server, BEFORE, ids(1, 91, 4, &[9]));
    assert_eq!(server.queue_depth(), depth + 1);
}

#[test]
fn a_drawn_token_that_the_model_lacks_is_who_drew_it_at_fault() {
    let mut server = first();
    let outputs = push(&mut server, AFTER, ids(1, 1, 0, &[VOCABULARY]));
    let [Output::Send { message: ServerMessage::Trouble(trouble), .. }] = outputs.as_slice() else {
        panic!("{outputs:?}");
    };
    assert_eq!((trouble.neighbour, trouble.code), (Neighbour::Previous, ErrorCode::WrongShape));
    assert_eq!(server.session_count(), 1);
}

#[test]
fn on_one_server_a_token_goes_on_without_a_link() {
    let mut server = server_of(0, 6, Some(VOCABULARY));
    let own = PeerId::from_public_key([3; 32]);
    let open = OpenSession { drawer: Some(own), ..thin(1, 0, 6) };
    say(&mut server, LINK, ClientMessage::Open(open));
    let session = SessionId::new(1);
    let first = Some(NextHop { peer: own, addresses: Vec::new(), session });
    let outputs = say(&mut server, LINK, ClientMessage::Draw(Draw { first, ..draw(2, 4, &[]) }));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Connect { .. })));
    let mut outputs = say(&mut server, LINK, ClientMessage::Step(ids(1, 0, 0, &[1, 2])));
    for (id, goes_on) in [(20, true), (21, true), (22, false)] {
        let (job, _) = drawing(&outputs).unwrap();
        outputs = drawn(&mut server, job, id);
        assert_eq!(token(&outputs), (Some((id, goes_on)), None));
    }
    assert!(drawing(&outputs).is_none());
}

#[test]
fn who_may_not_say_how_to_draw_is_told_so() {
    let said = |server: &mut Server, link, draw| {
        let message = ClientMessage::Draw(draw);
        server.handle(Input::Received { link, from: CLIENT, message }, Time::START)
    };
    let not_allowed = Err(ProtocolViolation::NotAllowed { message: "Draw" });
    assert_eq!(said(&mut last(), LinkId(9), draw(1, 2, &[])), not_allowed);
    let unexpected = Err(ProtocolViolation::Unexpected { message: "Draw" });
    assert_eq!(said(&mut first(), LINK, draw(1, 2, &[])), unexpected, "it does not draw");
    let mut plain = server(128);
    say(&mut plain, LINK, ClientMessage::Open(opening(1)));
    assert_eq!(said(&mut plain, LINK, draw(1, 2, &[])), unexpected);
    let outputs = say(&mut last(), LINK, ClientMessage::Draw(draw(1, 2, &[7; 65])));
    assert_eq!(refusal(&outputs), Some(ErrorCode::ContextExceeded), "the room is for 64");
}
