//! One value of each message, with every field set where that can be, and with none.

#[path = "adapter_samples.rs"]
pub(crate) mod adapted;
#[path = "local_samples.rs"]
mod local;
#[path = "member_messages.rs"]
pub(crate) mod members;
#[path = "training_samples.rs"]
pub(crate) mod training;

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use umbel_protocol::announcement::{
    Announcement, NextHopLatency, Proposal, ProposedMove, SignedAnnouncement, Throughput, UnixTime,
};
use umbel_protocol::averaging::MemberMessage;
use umbel_protocol::directory::{DirectoryAnswer, DirectoryRequest};
use umbel_protocol::error::{ErrorCode, ProtocolViolation};
use umbel_protocol::frame::{Frame, Limits, encode_prefix};
use umbel_protocol::inference::{
    Adopt, AnswerRows, ClientMessage, Destination, Draw, HopTiming, KeepPages, Neighbour, NextHop,
    OpenSession, PushMessage, Redirect, Sampling, ServerMessage, SessionError, Step, Trouble,
};
use umbel_protocol::local::{LocalAnswer, LocalRequest};
use umbel_protocol::prefix::PageDigest;
use umbel_protocol::published::{AdapterAnswer, AdapterRequest};
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_protocol::{DType, ModelId, PeerId, SessionId, Span, StepId, Tensor};

/// A message of any kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    Client(ClientMessage),
    Server(ServerMessage),
    Push(PushMessage),
    Request(DirectoryRequest),
    Answer(DirectoryAnswer),
    Trainer(TrainerMessage),
    Training(TrainingAnswer),
    Member(MemberMessage),
    Adapter(AdapterRequest),
    Published(AdapterAnswer),
    LocalRequest(LocalRequest),
    LocalAnswer(LocalAnswer),
}

/// A message and the name of its file.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) message: Message,
}

impl Message {
    pub(crate) fn encode(&self) -> Frame {
        match self.clone() {
            Self::Client(message) => message.encode(),
            Self::Server(message) => message.encode(),
            Self::Push(message) => message.encode(),
            Self::Request(message) => message.encode(),
            Self::Answer(message) => message.encode(),
            Self::Trainer(message) => message.encode(),
            Self::Training(message) => message.encode(),
            Self::Member(message) => message.encode(),
            Self::Adapter(message) => message.encode(),
            Self::Published(message) => message.encode(),
            Self::LocalRequest(message) => message.encode(),
            Self::LocalAnswer(message) => message.encode(),
        }
    }

    /// Reads a message of the same kind as this one.
    #[allow(dead_code, reason = "the example only writes")]
    pub(crate) fn decode_like(&self, frame: Frame) -> Result<Self, ProtocolViolation> {
        Ok(match self {
            Self::Client(_) => Self::Client(ClientMessage::decode(frame)?),
            Self::Server(_) => Self::Server(ServerMessage::decode(frame)?),
            Self::Push(_) => Self::Push(PushMessage::decode(frame)?),
            Self::Request(_) => Self::Request(DirectoryRequest::decode(frame)?),
            Self::Answer(_) => Self::Answer(DirectoryAnswer::decode(frame)?),
            Self::Trainer(_) => Self::Trainer(TrainerMessage::decode(frame)?),
            Self::Training(_) => Self::Training(TrainingAnswer::decode(frame)?),
            Self::Member(_) => Self::Member(MemberMessage::decode(frame)?),
            Self::Adapter(_) => Self::Adapter(AdapterRequest::decode(frame)?),
            Self::Published(_) => Self::Published(AdapterAnswer::decode(frame)?),
            Self::LocalRequest(_) => Self::LocalRequest(LocalRequest::decode(frame)?),
            Self::LocalAnswer(_) => Self::LocalAnswer(LocalAnswer::decode(frame)?),
        })
    }

    pub(crate) fn on_the_link(&self) -> Vec<u8> {
        let any = Limits { header_bytes_max: u32::MAX, payload_bytes_max: u32::MAX };
        let frame = self.encode();
        let prefix = encode_prefix(&frame, any).expect("everything is allowed");
        [prefix.as_slice(), &frame.header, &frame.payload].concat()
    }
}

/// The messages whose frames are kept.
pub(crate) fn samples() -> Vec<Sample> {
    let sample = |name, message| Sample { name, message };
    let client = |name, message| sample(name, Message::Client(message));
    let server = |name, message| sample(name, Message::Server(message));
    let session = SessionId::new(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    let mut all = vec![
        client("client_open", ClientMessage::Open(open(session))),
        client("client_open_alone", ClientMessage::Open(open_alone(session))),
        client("client_open_refill", ClientMessage::Open(open_refill(session))),
        client("client_open_narrow", ClientMessage::Open(open_narrow(session))),
        client("client_open_narrow_cache", ClientMessage::Open(open_narrow_cache(session))),
        client("client_open_prefix", ClientMessage::Open(open_prefix(session))),
        client("client_step", ClientMessage::Step(step(session))),
        client("client_step_last_row", ClientMessage::Step(step_last_row(session))),
        client("client_close", ClientMessage::Close { session }),
        client("client_redirect", ClientMessage::Redirect(redirect(session))),
        client("client_adopt", ClientMessage::Adopt(adopt(session))),
        client("client_ping", ClientMessage::Ping { session }),
        client("client_keep", ClientMessage::Keep(keep(session))),
        client("client_open_thin", ClientMessage::Open(open_thin(session))),
        client("client_adopt_drawer", ClientMessage::Adopt(adopt_drawer(session))),
        client("client_draw", ClientMessage::Draw(draw(session))),
        client("client_draw_greedy", ClientMessage::Draw(draw_greedy(session))),
        client("client_step_ids", ClientMessage::Step(step_ids(session))),
        server(
            "server_opened",
            ServerMessage::Opened { session, tokens_max: 2_048, kept: None, adapter: false },
        ),
        server(
            "server_opened_prefix",
            ServerMessage::Opened { session, tokens_max: 2_048, kept: Some(32), adapter: false },
        ),
        server("server_output", ServerMessage::Output(step(session))),
        server("server_error", ServerMessage::Error(error(session))),
        server("server_closed", ServerMessage::Closed { session }),
        server(
            "server_redirected",
            ServerMessage::Redirected { session, mirror: true, complete: true },
        ),
        server("server_adopted", ServerMessage::Adopted { session, position: 130 }),
        server("server_pong", ServerMessage::Pong { session, received: 133, computed: 130 }),
        server("server_draining", ServerMessage::Draining { session }),
        server("server_trouble", ServerMessage::Trouble(trouble(session))),
        server("server_draw_taken", ServerMessage::DrawTaken { session }),
        server("server_output_token", ServerMessage::Output(output_token(session))),
        sample("push_step", Message::Push(PushMessage::Step(step(session)))),
        sample("push_replay", Message::Push(PushMessage::Step(replay(session)))),
        sample("request_announce", Message::Request(DirectoryRequest::Announce(signed()))),
        sample(
            "request_announce_full",
            Message::Request(DirectoryRequest::Announce(signed_full())),
        ),
        sample(
            "request_announce_proposal",
            Message::Request(DirectoryRequest::Announce(signed_proposal())),
        ),
        sample(
            "request_announce_ends",
            Message::Request(DirectoryRequest::Announce(signed_ends())),
        ),
        sample("request_lookup", Message::Request(DirectoryRequest::Lookup { model: Some(MODEL) })),
        sample("request_lookup_all", Message::Request(DirectoryRequest::Lookup { model: None })),
        sample("answer_announced", Message::Answer(DirectoryAnswer::Announced)),
        sample("answer_found", Message::Answer(DirectoryAnswer::Found(vec![signed(); 2]))),
        sample("answer_found_none", Message::Answer(DirectoryAnswer::Found(Vec::new()))),
    ];
    all.extend(training::samples());
    all.extend(members::samples());
    all.extend(adapted::samples(session));
    all.extend(local::samples());
    all
}

const OTHER: SessionId = SessionId::new(0x1112_1314_1516_1718_191a_1b1c_1d1e_1f20);

const MODEL: ModelId = ModelId::from_bytes([0xab; 32]);

fn peer(seed: u8) -> PeerId {
    PeerId::of(&SigningKey::from_bytes(&[seed; 32]))
}

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).expect("not empty")
}

fn open(session: SessionId) -> OpenSession {
    let addresses = ["/ip4/10.0.0.7/udp/4001/quic-v1", "/ip4/10.0.0.7/tcp/4001"];
    let addresses = addresses.map(str::to_owned).to_vec();
    OpenSession {
        session,
        model: MODEL,
        blocks: span(10, 20),
        tokens_max: 2_048,
        previous: Some(peer(1)),
        next: Destination::Server(NextHop { peer: peer(2), addresses, session }),
        next_position: 0,
        next_step: StepId(0),
        results: DType::F32,
        compress: false,
        cache: DType::F32,
        prefix: Vec::new(),
        thin: false,
        drawer: None,
        adapter: None,
    }
}

fn pages() -> Vec<PageDigest> {
    (1..4).map(|page| PageDigest::from_bytes([page; 16])).collect()
}

fn open_prefix(session: SessionId) -> OpenSession {
    OpenSession { prefix: pages(), ..open(session) }
}

fn keep(session: SessionId) -> KeepPages {
    KeepPages { session, next_step: StepId(9), first: 5, pages: pages() }
}

fn open_refill(session: SessionId) -> OpenSession {
    let next = NextHop { peer: peer(2), addresses: Vec::new(), session: OTHER };
    OpenSession {
        next: Destination::Server(next),
        next_position: 12,
        next_step: StepId(9),
        ..open(session)
    }
}

fn redirect(session: SessionId) -> Redirect {
    let OpenSession { next, next_position, next_step, .. } = open_refill(session);
    Redirect { session, next, next_position, next_step, settled: 130, mirror: true }
}

fn adopt(session: SessionId) -> Adopt {
    Adopt { session, previous: Some(peer(1)), empty: true, drawer: None }
}

fn open_thin(session: SessionId) -> OpenSession {
    OpenSession { thin: true, drawer: Some(peer(2)), previous: None, ..open(session) }
}

fn adopt_drawer(session: SessionId) -> Adopt {
    Adopt { session, previous: None, empty: false, drawer: Some(peer(2)) }
}

/// With every field, and a text.
fn draw(session: SessionId) -> Draw {
    let addresses = vec!["/ip4/10.0.0.7/udp/4001/quic-v1".to_owned()];
    Draw {
        session,
        sampling: Sampling {
            temperature: 0.75,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.05,
            repetition_penalty: 1.25,
            seed: 0x1122_3344_5566_7788,
        },
        from: 130,
        until: 386,
        end_ids: vec![2, 49_152],
        text: vec![1, 70_000, u32::MAX],
        first: Some(NextHop { peer: peer(1), addresses, session: OTHER }),
    }
}

/// The likeliest token, for the client alone.
fn draw_greedy(session: SessionId) -> Draw {
    let sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };
    let (end_ids, text) = (Vec::new(), Vec::new());
    Draw { session, sampling, from: 5, until: 5, end_ids, text, first: None }
}

fn step_ids(session: SessionId) -> Step {
    let hidden = Tensor::of_ids(&[1, 70_000]);
    Step { hidden, trace: Vec::new(), answer_rows: AnswerRows::Last, ..step(session) }
}

fn output_token(session: SessionId) -> Step {
    Step { hidden: Tensor::of_ids(&[311]), goes_on: true, ..step(session) }
}

fn trouble(session: SessionId) -> Trouble {
    Trouble {
        session,
        neighbour: Neighbour::Next,
        code: ErrorCode::NextHopUnreachable,
        detail: "it closed the link".to_owned(),
    }
}

fn open_alone(session: SessionId) -> OpenSession {
    OpenSession { blocks: span(0, 30), previous: None, next: Destination::Client, ..open(session) }
}

fn step(session: SessionId) -> Step {
    let payload = Bytes::from_static(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let first = HopTiming {
        peer: peer(1),
        span: span(0, 10),
        queue: Duration::from_micros(3),
        compute: Duration::from_millis(7),
        hop: Duration::from_nanos(7_012_345),
        link_round_trip: Some(Duration::from_micros(180)),
    };
    let second = HopTiming { peer: peer(2), link_round_trip: None, ..first };
    Step {
        session,
        step: StepId(9),
        position: 130,
        hidden: Tensor::new(DType::BF16, vec![3, 2], payload).expect("12 bytes"),
        trace: vec![first, second],
        replay: false,
        answer_rows: AnswerRows::All,
        goes_on: false,
    }
}

fn replay(session: SessionId) -> Step {
    Step { replay: true, trace: Vec::new(), ..step(session) }
}

fn open_narrow(session: SessionId) -> OpenSession {
    OpenSession { results: DType::Q8, compress: true, ..open(session) }
}

fn open_narrow_cache(session: SessionId) -> OpenSession {
    OpenSession { cache: DType::BF16, ..open(session) }
}

/// Two rows of 35 elements: a block of 32 and one of 3 each.
fn step_last_row(session: SessionId) -> Step {
    let values: Vec<f32> = (0..70u8).map(|value| f32::from(value) - 35.0).collect();
    let hidden = Tensor::from_values(DType::Q8, vec![2, 35], &values).expect("70 values");
    Step { hidden, answer_rows: AnswerRows::Last, ..step(session) }
}

fn error(session: SessionId) -> SessionError {
    SessionError {
        session,
        step: Some(StepId(9)),
        code: ErrorCode::KvFull,
        detail: "room for 512 tokens is left".to_owned(),
    }
}

fn announcement() -> Announcement {
    let issued = UnixTime::after_epoch(Duration::from_secs(1_800_000_000));
    Announcement {
        peer: peer(1),
        model: MODEL,
        model_name: "SmolLM2-135M-Instruct".to_owned(),
        span: span(10, 20),
        block_count: 30,
        addresses: vec!["/ip4/10.0.0.7/udp/4001/quic-v1".to_owned()],
        version: "0.1.0".to_owned(),
        throughput: Throughput {
            decode_tokens_per_second: 900.5,
            prefill_tokens_per_second: 4_000.0,
            ..Throughput::default()
        },
        kv_tokens_free: 8_192,
        queue_depth: 1,
        draining: true,
        issued,
        expires: issued + Duration::from_secs(60),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: false,
    }
}

fn signed_ends() -> SignedAnnouncement {
    let holding = Announcement { holds_ends: true, ..announcement() };
    holding.sign(&SigningKey::from_bytes(&[1; 32]))
}

fn signed() -> SignedAnnouncement {
    announcement().sign(&SigningKey::from_bytes(&[1; 32]))
}

/// With every field that the first release did not have, up to the intention to move.
fn signed_full() -> SignedAnnouncement {
    let mut full = announcement();
    full.throughput.decode_batch_tokens_per_second = 3_600.5;
    full.throughput.network_bytes_per_second = 12_500_000;
    let round_trip = Duration::from_micros(18_250);
    full.next_hops = [2, 3].map(|seed| NextHopLatency { peer: peer(seed), round_trip }).to_vec();
    full.adapters = ["umbel/haiku".to_owned(), "umbel/grüße".to_owned()].to_vec();
    full.moving_to = Some(span(20, 30));
    full.sign(&SigningKey::from_bytes(&[1; 32]))
}

fn signed_proposal() -> SignedAnnouncement {
    let mut proposing = announcement();
    proposing.draining = false;
    proposing.held_blocks_max = 20;
    proposing.joined = Some(peer(1));
    let moves = vec![
        ProposedMove { peer: peer(1), via: Some(span(10, 25)), to: span(15, 25) },
        ProposedMove { peer: peer(2), via: None, to: span(0, 10) },
    ];
    proposing.proposal = Some(Proposal { moves, agreed: true });
    proposing.sign(&SigningKey::from_bytes(&[1; 32]))
}
