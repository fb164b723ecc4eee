//! Sessions with adapters: how these come, whose they are, and how long they stay.

use umbel_protocol::AdapterId;
use umbel_protocol::inference::{AdapterPart, SessionAdapter};
use umbel_protocol::training::{AdapterSettings, STATE_VALUES_MAX, TargetModule};

use super::*;

const OTHER: PeerId = PeerId::from_public_key([9; 32]);
const ELSEWHERE: LinkId = LinkId(1);

/// Values of an adapter of rank 1 for queries alone: in the four blocks of a session, one part and 8
/// values more.
const VALUES: u64 = STATE_VALUES_MAX as u64 + 8;

/// Rows of the queries' matrix.
const QUERIES: u64 = 100;

/// Room for three such adapters, of which a client may have one and a half.
const BYTES_MAX: u64 = 3 * 4 * VALUES;

fn server() -> Server {
    let other = Some([50; 2]);
    let queries = Some([QUERIES, VALUES / 4 - QUERIES]);
    let module_shapes = [queries, other, other, other, other, None, None];
    let room = AdapterRoom { bytes_max: BYTES_MAX, module_shapes, hidden_size: 10 };
    let config = super::server(4_096).config;
    Server::new(ServerConfig { adapters: Some(room), ..config })
}

fn adapted(session: u128, adapter: u8) -> OpenSession {
    let settings = AdapterSettings {
        rank: 1,
        alpha: 1.0,
        rank_stabilized: false,
        dropout: 0.0,
        target_modules: vec![TargetModule::Query],
        block_prompt_tokens: 0,
        weight_decomposed: false,
    };
    let id = AdapterId::from_bytes([adapter; 32]);
    OpenSession { adapter: Some(SessionAdapter { id, settings }), ..opening(session) }
}

fn tell(
    server: &mut Server,
    (link, from): (LinkId, PeerId),
    message: ClientMessage,
    now: Time,
) -> Result<Vec<Output>, ProtocolViolation> {
    server.handle(Input::Received { link, from, message }, now)?;
    Ok(drain(server))
}

fn part(session: u128, offset: u64, count: u64) -> ClientMessage {
    let count = usize::try_from(count).unwrap();
    let values = Tensor::from_f32(vec![u32::try_from(count).unwrap()], &vec![0.5; count]).unwrap();
    ClientMessage::Adapter(AdapterPart { session: SessionId::new(session), offset, values })
}

fn open(server: &mut Server, who: (LinkId, PeerId), session: u128, adapter: u8) -> Vec<Output> {
    tell(server, who, ClientMessage::Open(adapted(session, adapter)), Time::START).unwrap()
}

/// Sends a whole adapter; what is said at the end.
fn send(server: &mut Server, who: (LinkId, PeerId), session: u128, now: Time) -> Vec<Output> {
    let first = STATE_VALUES_MAX as u64;
    tell(server, who, part(session, 0, first), now).unwrap();
    tell(server, who, part(session, first, VALUES - first), now).unwrap()
}

/// What sessions are told of the adapters for which they wait.
fn wanted(outputs: &[Output]) -> Vec<(u128, Option<u64>)> {
    let wanted = |output: &Output| {
        let Output::Send { message: ServerMessage::AdapterWanted { session, offset }, .. } = output
        else {
            return None;
        };
        Some((session.number(), *offset))
    };
    outputs.iter().filter_map(wanted).collect()
}

/// The sessions that open, and the adapters that they open with.
fn opened(outputs: &[Output]) -> Vec<(u128, Option<AdapterKey>)> {
    let opened = |output: &Output| {
        let Output::OpenCache { session, adapter, .. } = output else { return None };
        Some((session.number(), *adapter))
    };
    outputs.iter().filter_map(opened).collect()
}

fn dropped(outputs: &[Output]) -> Vec<u64> {
    let dropped = |output: &Output| {
        let Output::Adapter(AdapterOrder::Drop { adapter }) = output else { return None };
        Some(adapter.0)
    };
    outputs.iter().filter_map(dropped).collect()
}

fn refused(outputs: &[Output]) -> Option<ErrorCode> {
    outputs.iter().find_map(|output| {
        let Output::Send { message: ServerMessage::Error(error), .. } = output else { return None };
        Some(error.code)
    })
}

fn close(session: u128) -> ClientMessage {
    ClientMessage::Close { session: SessionId::new(session) }
}

const MINE: (LinkId, PeerId) = (LINK, CLIENT);
const THEIRS: (LinkId, PeerId) = (ELSEWHERE, OTHER);

#[test]
fn a_session_opens_when_its_adapter_is_whole_and_the_next_one_at_once() {
    let mut server = server();
    let outputs = open(&mut server, MINE, 1, 7);
    assert_eq!((wanted(&outputs), opened(&outputs)), (vec![(1, Some(0))], vec![]));
    let first = STATE_VALUES_MAX as u64;
    let outputs = tell(&mut server, MINE, part(1, 0, first), Time::START).unwrap();
    assert_eq!(wanted(&outputs), [(1, Some(first))]);
    let outputs = tell(&mut server, MINE, part(1, first, 8), Time::START).unwrap();
    assert_eq!(opened(&outputs), [(1, Some(AdapterKey(0)))]);
    let says_so = |output: &Output| {
        matches!(output, Output::Send { message: ServerMessage::Opened { adapter: true, .. }, .. })
    };
    assert!(outputs.iter().any(says_so));
    assert_eq!(opened(&open(&mut server, MINE, 2, 7)), [(2, Some(AdapterKey(0)))]);
    // One without an adapter has none.
    let outputs = say(&mut server, LINK, ClientMessage::Open(opening(3)));
    assert_eq!(opened(&outputs), [(3, None)]);
    assert!(!outputs.iter().any(says_so));
}

#[test]
fn an_adapter_is_its_clients_and_nobody_elses() {
    let mut server = server();
    open(&mut server, MINE, 1, 7);
    send(&mut server, MINE, 1, Time::START);
    let outputs = open(&mut server, THEIRS, 2, 7);
    assert_eq!((wanted(&outputs), opened(&outputs)), (vec![(2, Some(0))], vec![]));
    // Nor does another's link send for a session.
    let stolen = tell(&mut server, MINE, part(2, 0, STATE_VALUES_MAX as u64), Time::START);
    assert!(matches!(stolen, Err(ProtocolViolation::NotAllowed { .. })), "{stolen:?}");
    assert_eq!(opened(&send(&mut server, THEIRS, 2, Time::START)), [(2, Some(AdapterKey(1)))]);
}

#[test]
fn sessions_that_wait_for_the_same_adapter_send_it_once_whoever_of_them_goes() {
    let mut server = server();
    open(&mut server, MINE, 1, 7);
    let outputs = open(&mut server, (ELSEWHERE, CLIENT), 2, 7);
    assert_eq!(wanted(&outputs), [(2, None)], "the other sends it");
    let first = STATE_VALUES_MAX as u64;
    let outputs = tell(&mut server, MINE, part(1, 0, first), Time::START).unwrap();
    assert_eq!(wanted(&outputs), [(1, Some(first)), (2, None)]);
    server.handle(Input::LinkClosed { link: LINK }, Time::START).unwrap();
    assert_eq!(wanted(&drain(&mut server)), [(2, Some(first))], "it goes on where that one was");
    let outputs = tell(&mut server, (ELSEWHERE, CLIENT), part(2, first, 8), Time::START).unwrap();
    assert_eq!(opened(&outputs), [(2, Some(AdapterKey(0)))]);
    // Where none waits any more, what has come is of no use.
    open(&mut server, THEIRS, 3, 8);
    let outputs = tell(&mut server, THEIRS, close(3), Time::START).unwrap();
    assert_eq!(dropped(&outputs), [1]);
    let late = tell(&mut server, THEIRS, part(3, 0, first), Time::START).unwrap();
    assert_eq!(refused(&late), Some(ErrorCode::UnknownSession), "it was on its way");
}

#[test]
fn values_that_do_not_follow_break_the_protocol() {
    let first = STATE_VALUES_MAX as u64;
    for (offset, count) in [(1, first), (0, 8), (0, first - 1), (first, 8)] {
        let mut server = server();
        open(&mut server, MINE, 1, 7);
        let wrong = tell(&mut server, MINE, part(1, offset, count), Time::START);
        assert!(matches!(wrong, Err(ProtocolViolation::Unexpected { .. })), "{offset} {count}");
    }
    let mut server = server();
    open(&mut server, MINE, 1, 7);
    let again = tell(&mut server, MINE, ClientMessage::Open(adapted(1, 7)), Time::START);
    assert!(matches!(again, Err(ProtocolViolation::Unexpected { .. })), "{again:?}");
}

#[test]
fn a_client_has_its_part_of_the_room_and_idle_adapters_make_way() {
    let mut server = server();
    open(&mut server, MINE, 1, 1);
    send(&mut server, MINE, 1, Time::START);
    assert_eq!(refused(&open(&mut server, MINE, 2, 2)), Some(ErrorCode::KvFull), "half is taken");
    // Others still find room.
    open(&mut server, THEIRS, 3, 3);
    assert_eq!(opened(&send(&mut server, THEIRS, 3, Time::START)).len(), 1);
    tell(&mut server, MINE, close(1), Time::START).unwrap();
    let outputs = open(&mut server, MINE, 2, 2);
    assert_eq!((dropped(&outputs), wanted(&outputs)), (vec![0], vec![(2, Some(0))]));
    // One that is too large for a client's part never comes in.
    let mut large = adapted(5, 5);
    large.adapter.as_mut().unwrap().settings.rank = 2;
    let outputs = tell(&mut server, THEIRS, ClientMessage::Open(large), Time::START).unwrap();
    assert_eq!(refused(&outputs), Some(ErrorCode::KvFull));
    assert_eq!(dropped(&outputs), [], "what is used stays");
}

#[test]
fn an_adapter_that_finds_no_room_takes_none_from_those_that_stay() {
    let mut server = server();
    open(&mut server, MINE, 1, 1);
    send(&mut server, MINE, 1, Time::START);
    tell(&mut server, MINE, close(1), Time::START).unwrap();
    // Not even without the idle one is there room for it in the client's part.
    let mut large = adapted(2, 2);
    large.adapter.as_mut().unwrap().settings.rank = 2;
    let outputs = tell(&mut server, MINE, ClientMessage::Open(large), Time::START).unwrap();
    assert_eq!((refused(&outputs), dropped(&outputs)), (Some(ErrorCode::KvFull), vec![]));
    assert_eq!(opened(&open(&mut server, MINE, 3, 1)), [(3, Some(AdapterKey(0)))]);
}

#[test]
fn a_server_that_adds_none_sends_the_client_elsewhere() {
    let mut server = super::server(4_096);
    let outputs = open(&mut server, MINE, 1, 7);
    assert_eq!(refused(&outputs), Some(ErrorCode::BlocksNotServed));
    assert_eq!(server.session_count(), 0);
}

#[test]
fn an_adapter_of_matrices_in_whose_place_there_are_experts_is_not_held() {
    let mut server = server();
    let mut open = adapted(1, 7);
    let settings = &mut open.adapter.as_mut().expect("it has one").settings;
    settings.target_modules.push(TargetModule::Up);
    let outputs = tell(&mut server, MINE, ClientMessage::Open(open), Time::START).unwrap();
    assert_eq!(refused(&outputs), Some(ErrorCode::BlocksNotServed));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Adapter(_))), "{outputs:?}");
}

#[test]
fn use_renews_the_lease_and_without_use_it_ends() {
    let mut server = server();
    open(&mut server, MINE, 1, 7);
    send(&mut server, MINE, 1, Time::START);
    // The session is used every twenty minutes, and so is its adapter.
    let mut now = Time::START;
    for number in 0..4 {
        now = now + Duration::from_secs(20 * 60);
        server.handle_timeout(now);
        let step = step(1, number, u32::try_from(number).unwrap(), 1);
        let outputs = tell(&mut server, MINE, ClientMessage::Step(step), now).unwrap();
        assert_eq!(dropped(&outputs), []);
        let result = Tensor::from_f32(vec![1, HIDDEN], &[0.0; HIDDEN as usize]).unwrap();
        let computed = Input::Computed {
            job: job(&outputs).unwrap(),
            results: vec![Ok(result)],
            compute: Duration::ZERO,
        };
        server.handle(computed, now).unwrap();
        drain(&mut server);
    }
    // Nobody asks for anything: first the session ends, and a lease later its adapter.
    now = now + SESSION_LEASE;
    server.handle_timeout(now);
    let outputs = drain(&mut server);
    assert_eq!((refused(&outputs), dropped(&outputs)), (Some(ErrorCode::LeaseEnded), vec![]));
    assert_eq!(server.poll_timeout(), Some(now + ADAPTER_LEASE));
    server.handle_timeout(now + ADAPTER_LEASE);
    assert_eq!(dropped(&drain(&mut server)), [0]);
    // Then it is sent anew.
    let outputs =
        tell(&mut server, MINE, ClientMessage::Open(adapted(2, 7)), now + ADAPTER_LEASE).unwrap();
    assert_eq!(wanted(&outputs), [(2, Some(0))]);
}

#[test]
fn a_client_that_sends_nothing_is_given_up() {
    let mut server = server();
    open(&mut server, MINE, 1, 7);
    open(&mut server, (ELSEWHERE, CLIENT), 2, 7);
    assert_eq!(server.poll_timeout(), Some(Time::START + ADAPTER_PART_LEASE));
    server.handle_timeout(Time::START + ADAPTER_PART_LEASE);
    let outputs = drain(&mut server);
    assert_eq!(refused(&outputs), Some(ErrorCode::LeaseEnded));
    assert_eq!(wanted(&outputs), [(2, Some(0))], "who waits with it may send it");
    server.handle_timeout(Time::START + ADAPTER_PART_LEASE * 2);
    let outputs = drain(&mut server);
    assert_eq!((refused(&outputs), dropped(&outputs)), (Some(ErrorCode::LeaseEnded), vec![0]));
    assert_eq!(server.poll_timeout(), None);
}

#[test]
fn a_session_that_waits_when_the_server_leaves_is_told() {
    let mut server = server();
    open(&mut server, MINE, 1, 7);
    server.handle(Input::Drain, Time::START).unwrap();
    drain(&mut server);
    assert_eq!(refused(&send(&mut server, MINE, 1, Time::START)), Some(ErrorCode::Draining));
}

/// Of 4 blocks with 3 tokens of 10 values each.
#[test]
fn a_prompt_for_each_block_is_sent_whole_before_its_session_opens() {
    let mut server = server();
    let mut open = adapted(1, 7);
    let settings = &mut open.adapter.as_mut().unwrap().settings;
    (settings.rank, settings.target_modules) = (0, Vec::new());
    settings.block_prompt_tokens = 3;
    let outputs = tell(&mut server, MINE, ClientMessage::Open(open), Time::START).unwrap();
    assert_eq!((wanted(&outputs), opened(&outputs)), (vec![(1, Some(0))], vec![]));
    let short = tell(&mut server, MINE, part(1, 0, 119), Time::START);
    assert!(matches!(short, Err(ProtocolViolation::Unexpected { .. })));
    let outputs = tell(&mut server, MINE, part(1, 0, 120), Time::START).unwrap();
    assert_eq!(opened(&outputs), [(1, Some(AdapterKey(0)))]);
}

/// For each of a hundred rows a value more, and two scales that are kept beside it.
#[test]
fn magnitudes_are_awaited_and_take_room() {
    let decomposed = |session| {
        let open = adapted(session, 7);
        let mut adapter = open.adapter.clone().unwrap();
        adapter.settings.weight_decomposed = true;
        ClientMessage::Open(OpenSession { adapter: Some(adapter), ..open })
    };
    let magnitudes = 4 * QUERIES;
    let bytes = 4 * (VALUES + 3 * magnitudes);
    let with_room = |bytes_max| {
        let mut config = server().config;
        config.adapters = config.adapters.map(|room| AdapterRoom { bytes_max, ..room });
        Server::new(config)
    };
    // A client may have half of the room.
    let mut narrow = with_room(2 * bytes - 1);
    let outputs = tell(&mut narrow, MINE, decomposed(1), Time::START).unwrap();
    assert_eq!(refused(&outputs), Some(ErrorCode::KvFull));
    let mut wide = with_room(2 * bytes);
    let outputs = tell(&mut wide, MINE, decomposed(1), Time::START).unwrap();
    assert_eq!(wanted(&outputs), [(1, Some(0))]);
    let first = STATE_VALUES_MAX as u64;
    tell(&mut wide, MINE, part(1, 0, first), Time::START).unwrap();
    let without = part(1, first, VALUES - first);
    assert!(tell(&mut wide, MINE, without, Time::START).is_err(), "the magnitudes are lacking");
    let last = part(1, first, VALUES + magnitudes - first);
    let outputs = tell(&mut wide, MINE, last, Time::START).unwrap();
    assert_eq!(opened(&outputs), [(1, Some(AdapterKey(0)))]);
}
