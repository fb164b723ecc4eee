//! What holds of every message: it survives its frame, and no bytes in its place panic.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use umbel_protocol::announcement::{SignedAnnouncement, UnixTime};
use umbel_protocol::directory::{DirectoryAnswer, DirectoryRequest};
use umbel_protocol::error::{ErrorCode, ProtocolViolation};
use umbel_protocol::frame::{Frame, FrameDecoder};
use umbel_protocol::inference::{
    Adopt, AnswerRows, ClientMessage, Destination, Draw, END_IDS_MAX, HopTiming, KeepPages,
    Neighbour, NextHop, OpenSession, PushMessage, Redirect, Sampling, ServerMessage, SessionError,
    Step, Trouble,
};
use umbel_protocol::prefix::{PREFIX_PAGES_MAX, PageDigest};
use umbel_protocol::training::{
    AdamWSettings, ForwardMicrobatch, OpenTraining, OptimizerStep, STATE_VALUES_MAX, StateKind,
    StateValues, TargetModule, TrainerMessage, TrainingAnswer, TrainingSequence,
};
use umbel_protocol::{DType, ModelId, PeerId, SessionId, Span, StepId, Tensor};

use crate::ANY;

use crate::adapters::{adapter_parts, adapters, row_norms, trained};
use crate::samples::{Message, Sample, samples, training};

fn peers() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(PeerId::from_public_key)
}

fn models() -> impl Strategy<Value = ModelId> {
    any::<[u8; 32]>().prop_map(ModelId::from_bytes)
}

fn sessions() -> impl Strategy<Value = SessionId> {
    any::<u128>().prop_map(SessionId::new)
}

fn spans() -> impl Strategy<Value = Span> {
    (any::<u32>(), any::<u32>())
        .prop_filter_map("empty", |(a, b)| Span::new(a.min(b), a.max(b)).ok())
}

fn durations() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn destinations() -> impl Strategy<Value = Destination> {
    prop_oneof![
        Just(Destination::Client),
        Just(Destination::Held),
        hops().prop_map(Destination::Server)
    ]
}

fn opens() -> impl Strategy<Value = OpenSession> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u64>());
    let places = (option::of(peers()), destinations());
    let writing = (dtypes(), any::<bool>(), dtypes());
    let thin = (any::<bool>(), option::of(peers()), pages(), option::of(adapters()));
    (sessions(), models(), spans(), numbers, places, writing, thin).prop_map(
        |(session, model, blocks, numbers, (previous, next), writing, thin)| {
            let (thin, drawer, prefix, adapter) = thin;
            let (results, compress, cache) = writing;
            let (tokens_max, next_position, next_step) = numbers;
            OpenSession {
                session,
                model,
                blocks,
                tokens_max,
                previous,
                next,
                next_position,
                next_step: StepId(next_step),
                results,
                compress,
                cache,
                prefix,
                thin,
                drawer,
                adapter,
            }
        },
    )
}

fn pages() -> impl Strategy<Value = Vec<PageDigest>> {
    vec(any::<[u8; 16]>().prop_map(PageDigest::from_bytes), 0..9)
}

fn keeps() -> impl Strategy<Value = KeepPages> {
    (sessions(), any::<u64>(), any::<u32>(), pages()).prop_map(
        |(session, next_step, first, pages)| KeepPages {
            session,
            next_step: StepId(next_step),
            first,
            pages,
        },
    )
}

fn hops() -> impl Strategy<Value = NextHop> {
    (peers(), vec("[ -~]{0,256}", 0..=16), sessions())
        .prop_map(|(peer, addresses, session)| NextHop { peer, addresses, session })
}

fn samplings() -> impl Strategy<Value = Sampling> {
    let part = || 0.0f32..=1.0;
    let above = || (0.0f32..=1.0).prop_map(|part| part.max(f32::MIN_POSITIVE));
    (0.0f32..1e30, any::<u32>(), above(), part(), above(), any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, repetition_penalty, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
        },
    )
}

fn draws() -> impl Strategy<Value = Draw> {
    let numbers = any::<(u32, u32)>();
    let ids = || vec(any::<u32>(), 0..=64);
    (sessions(), samplings(), numbers, ids(), ids(), option::of(hops())).prop_map(
        |(session, sampling, (from, until), end_ids, text, first)| Draw {
            session,
            sampling,
            from,
            until,
            end_ids,
            text,
            first,
        },
    )
}

fn redirects() -> impl Strategy<Value = Redirect> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u64>());
    (sessions(), destinations(), numbers, any::<bool>()).prop_map(
        |(session, next, (next_position, settled, next_step), mirror)| Redirect {
            session,
            next,
            next_position,
            next_step: StepId(next_step),
            settled,
            mirror,
        },
    )
}

fn troubles() -> impl Strategy<Value = Trouble> {
    let neighbour = prop_oneof![Just(Neighbour::Previous), Just(Neighbour::Next)];
    (sessions(), neighbour, codes(), "\\PC{0,100}")
        .prop_map(|(session, neighbour, code, detail)| Trouble { session, neighbour, code, detail })
}

fn timings() -> impl Strategy<Value = HopTiming> {
    (peers(), spans(), durations(), durations(), durations(), option::of(durations())).prop_map(
        |(peer, span, queue, compute, hop, link_round_trip)| HopTiming {
            peer,
            span,
            queue,
            compute,
            hop,
            link_round_trip,
        },
    )
}

fn tensors() -> impl Strategy<Value = Tensor> {
    let of_any_type = prop_oneof![8 => dtypes(), 1 => Just(DType::Id)];
    (of_any_type, 1u32..9, 1u32..70, any::<u8>()).prop_map(|(dtype, tokens, hidden, byte)| {
        let bytes = tokens as usize * usize::try_from(dtype.row_bytes(hidden)).unwrap();
        Tensor::new(dtype, vec![tokens, hidden], Bytes::from(vec![byte; bytes])).unwrap()
    })
}

fn dtypes() -> impl Strategy<Value = DType> {
    proptest::sample::select(DType::ALL.to_vec())
}

fn steps() -> impl Strategy<Value = Step> {
    let marks = any::<(bool, bool, bool)>();
    (sessions(), any::<u64>(), 0..u32::MAX - 9, tensors(), vec(timings(), 0..=64), marks).prop_map(
        |(session, step, position, hidden, trace, (replay, last, goes_on))| Step {
            session,
            step: StepId(step),
            position,
            hidden,
            trace,
            replay,
            answer_rows: if last { AnswerRows::Last } else { AnswerRows::All },
            goes_on,
        },
    )
}

fn codes() -> impl Strategy<Value = ErrorCode> {
    let known = [ErrorCode::Busy, ErrorCode::ContextExceeded, ErrorCode::Internal];
    let unknown = any::<i32>().prop_filter("known", |code| !(1..100).contains(code));
    prop_oneof![proptest::sample::select(known.to_vec()), unknown.prop_map(ErrorCode::Unknown)]
}

fn announcements() -> impl Strategy<Value = SignedAnnouncement> {
    (vec(any::<u8>(), 0..600), any::<[u8; 32]>(), any::<[u8; 32]>())
        .prop_map(|(bytes, r, s)| SignedAnnouncement::new(bytes.into(), both(r, s)))
}

fn both(r: [u8; 32], s: [u8; 32]) -> [u8; 64] {
    std::array::from_fn(|i| if i < 32 { r[i] } else { s[i - 32] })
}

fn trainings() -> impl Strategy<Value = OpenTraining> {
    let optimizer = (0.0..1.0, 0.0..1.0, 1e-12..1.0, 0.0..10.0).prop_map(
        |(beta1, beta2, epsilon, weight_decay)| AdamWSettings {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        },
    );
    let numbers = any::<(u64, u64, u32)>();
    (sessions(), models(), spans(), trained(), optimizer, numbers).prop_map(
        |(session, model, blocks, adapter, optimizer, (seed, steps, tokens_max))| OpenTraining {
            session,
            model,
            blocks,
            adapter,
            optimizer,
            seed,
            steps,
            tokens_max,
        },
    )
}

fn forwards((evaluate, microbatch, lengths): (bool, u64, Vec<(u32, u64)>)) -> TrainerMessage {
    let tokens = lengths.iter().map(|(tokens, _)| tokens).sum();
    let sequence = |(tokens, dropout_seed)| TrainingSequence { tokens, dropout_seed };
    let bytes = vec![7; tokens as usize * 8];
    let hidden = Tensor::new(DType::F32, vec![tokens, 2], bytes.into()).unwrap();
    let sequences = lengths.into_iter().map(sequence).collect();
    TrainerMessage::Forward(ForwardMicrobatch { microbatch, sequences, evaluate, hidden })
}

fn training_messages() -> impl Strategy<Value = Message> {
    let trainer = prop_oneof![
        trainings().prop_map(TrainerMessage::Open),
        (any::<bool>(), any::<u64>(), vec((1u32..5, any::<u64>()), 1..5)).prop_map(forwards),
        (any::<u64>(), tensors()).prop_map(|(microbatch, gradient)| TrainerMessage::Backward {
            microbatch,
            gradient,
            apart: microbatch.is_multiple_of(2),
        }),
        (any::<u64>(), 0.0..1e9, 0.0..1.0).prop_map(|(number, learning_rate, factor)| {
            TrainerMessage::Step(OptimizerStep { number, learning_rate, factor })
        }),
        (any::<u64>(), 1u32..1_000)
            .prop_map(|(offset, count)| TrainerMessage::RowNorms { offset, count }),
        Just(TrainerMessage::Close),
    ];
    let training = prop_oneof![
        (any::<u64>(), any::<bool>(), any::<u64>()).prop_map(|(steps, resumed, value_count)| {
            TrainingAnswer::Opened { steps, resumed, value_count }
        }),
        (any::<u64>(), tensors())
            .prop_map(|(microbatch, hidden)| TrainingAnswer::Forwarded { microbatch, hidden }),
        row_norms(),
        (any::<u64>(), any::<[u8; 32]>())
            .prop_map(|(number, digest)| TrainingAnswer::Stepped { number, digest }),
        (codes(), "\\PC{0,100}").prop_map(|(code, detail)| TrainingAnswer::Error { code, detail }),
    ];
    prop_oneof![trainer.prop_map(Message::Trainer), training.prop_map(Message::Training)]
}

fn messages() -> impl Strategy<Value = Message> {
    let error = (sessions(), option::of(any::<u64>()), codes(), "\\PC{0,100}").prop_map(
        |(session, step, code, detail)| SessionError {
            session,
            step: step.map(StepId),
            code,
            detail,
        },
    );
    let opened = (sessions(), any::<u32>(), option::of(any::<u32>()), any::<bool>()).prop_map(
        |(session, tokens_max, kept, adapter)| ServerMessage::Opened {
            session,
            tokens_max,
            kept,
            adapter,
        },
    );
    let wanted = (sessions(), option::of(any::<u64>()))
        .prop_map(|(session, offset)| ServerMessage::AdapterWanted { session, offset });
    let client = prop_oneof![
        opens().prop_map(ClientMessage::Open),
        steps().prop_map(ClientMessage::Step),
        sessions().prop_map(|session| ClientMessage::Close { session }),
        redirects().prop_map(ClientMessage::Redirect),
        (sessions(), option::of(peers()), any::<bool>(), option::of(peers())).prop_map(
            |(session, previous, empty, drawer)| {
                ClientMessage::Adopt(Adopt { session, previous, empty, drawer })
            },
        ),
        draws().prop_map(ClientMessage::Draw),
        adapter_parts().prop_map(ClientMessage::Adapter),
        sessions().prop_map(|session| ClientMessage::Ping { session }),
        keeps().prop_map(ClientMessage::Keep),
    ];
    let server = prop_oneof![
        opened,
        wanted,
        steps().prop_map(ServerMessage::Output),
        error.prop_map(ServerMessage::Error),
        sessions().prop_map(|session| ServerMessage::Closed { session }),
        (sessions(), any::<bool>(), any::<bool>()).prop_map(|(session, mirror, complete)| {
            ServerMessage::Redirected { session, mirror, complete }
        }),
        (sessions(), any::<u32>())
            .prop_map(|(session, position)| ServerMessage::Adopted { session, position }),
        (sessions(), any::<u32>(), any::<u32>()).prop_map(|(session, received, computed)| {
            ServerMessage::Pong { session, received, computed }
        }),
        sessions().prop_map(|session| ServerMessage::Draining { session }),
        troubles().prop_map(ServerMessage::Trouble),
        sessions().prop_map(|session| ServerMessage::DrawTaken { session }),
    ];
    let request = prop_oneof![
        announcements().prop_map(DirectoryRequest::Announce),
        option::of(models()).prop_map(|model| DirectoryRequest::Lookup { model }),
    ];
    let answer = prop_oneof![
        Just(DirectoryAnswer::Announced),
        vec(announcements(), 0..5).prop_map(DirectoryAnswer::Found),
    ];
    prop_oneof![
        training_messages(),
        client.prop_map(Message::Client),
        server.prop_map(Message::Server),
        steps().prop_map(|step| Message::Push(PushMessage::Step(step))),
        request.prop_map(Message::Request),
        answer.prop_map(Message::Answer),
    ]
}

/// Hands the frame to every decoder there is.
fn decode_as_everything(frame: &Frame) {
    let now = UnixTime::after_epoch(Duration::from_secs(1_800_000_000));
    for Sample { message, .. } in samples() {
        let _refused = message.decode_like(frame.clone());
    }
    let _refused = SignedAnnouncement::new(frame.header.clone(), [0; 64]).verify(now);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_message_survives_its_frame(message in messages()) {
        let frame = message.encode();
        prop_assert_eq!(frame.wire_bytes(), message.on_the_link().len());
        prop_assert_eq!(message.decode_like(frame), Ok(message));
    }

    #[test]
    fn perturbed_bytes_never_panic(
        message in messages(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = message.on_the_link();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(cut.index(2 * bytes.len()));
        if let Ok(frames) = FrameDecoder::new(ANY).push(&bytes) {
            frames.iter().for_each(decode_as_everything);
        }
        let (header, payload) = bytes.split_at((bytes.len() * 2 / 3).max(8).min(bytes.len()));
        let header = Bytes::copy_from_slice(header.get(8..).unwrap_or_default());
        decode_as_everything(&Frame { header, payload: Bytes::copy_from_slice(payload) });
    }

    #[test]
    fn any_bytes_never_panic(header in vec(any::<u8>(), 0..200), payload in vec(any::<u8>(), 0..64)) {
        decode_as_everything(&Frame { header: header.into(), payload: payload.into() });
    }
}

fn step_of(position: u32, shape: Vec<u32>, bytes: usize) -> ClientMessage {
    ClientMessage::Step(Step {
        session: SessionId::new(1),
        step: StepId(0),
        position,
        hidden: Tensor::new(DType::F32, shape, vec![0; bytes].into()).unwrap(),
        trace: Vec::new(),
        replay: false,
        answer_rows: AnswerRows::All,
        goes_on: false,
    })
}

#[test]
fn a_step_without_tokens_is_a_violation() {
    let decoded = ClientMessage::decode(step_of(0, vec![0, 4], 0).encode());
    assert_eq!(decoded, Err(ProtocolViolation::NoTokens));
}

#[test]
fn a_step_at_the_end_of_all_positions_does_not_overflow() {
    let last = step_of(u32::MAX - 2, vec![2, 1], 8);
    assert_eq!(ClientMessage::decode(last.clone().encode()), Ok(last));
    let decoded = ClientMessage::decode(step_of(u32::MAX - 1, vec![2, 1], 8).encode());
    let position = u32::MAX - 1;
    assert_eq!(decoded, Err(ProtocolViolation::PositionOverflow { position, tokens: 2 }));
}

#[test]
fn a_payload_that_the_header_does_not_ask_for_is_a_violation() {
    let mut frame = step_of(0, vec![1, 4], 16).encode();
    frame.payload = Bytes::from_static(&[0; 12]);
    let decoded = ClientMessage::decode(frame);
    assert!(matches!(decoded, Err(ProtocolViolation::InvalidTensor(_))), "{decoded:?}");
    let mut frame = ClientMessage::Close { session: SessionId::new(1) }.encode();
    frame.payload = Bytes::from_static(&[0]);
    let violation = ProtocolViolation::UnexpectedPayload { message: "client's message", bytes: 1 };
    assert_eq!(ClientMessage::decode(frame), Err(violation));
}

/// A message that asks to keep pages, with so many bytes of digests.
fn keep_of(digest_bytes: usize) -> Frame {
    let field = |tag: u8, bytes: &[u8]| {
        let mut field = vec![tag];
        let mut length = bytes.len();
        while length >= 128 {
            field.push(u8::try_from(length % 128).unwrap() | 128);
            length /= 128;
        }
        field.push(u8::try_from(length).unwrap());
        [&field, bytes].concat()
    };
    // Fields 1 and 4 of field 7.
    let keep = [field(0x0a, &[1; 16]), field(0x22, &vec![7; digest_bytes])].concat();
    Frame { header: field(0x3a, &keep).into(), ..Frame::default() }
}

#[test]
fn more_pages_than_a_message_may_name_and_half_digests_are_violations() {
    let decoded = ClientMessage::decode(keep_of(16 * PREFIX_PAGES_MAX));
    assert!(
        matches!(decoded, Ok(ClientMessage::Keep(keep)) if keep.pages.len() == PREFIX_PAGES_MAX)
    );
    let decoded = ClientMessage::decode(keep_of(16 * PREFIX_PAGES_MAX + 16));
    assert!(matches!(decoded, Err(ProtocolViolation::TooMany { .. })), "{decoded:?}");
    let decoded = ClientMessage::decode(keep_of(16 * 3 + 15));
    assert!(matches!(decoded, Err(ProtocolViolation::WrongLength { .. })), "{decoded:?}");
}

#[test]
fn more_pages_than_a_message_may_name_are_left_out_by_who_sends_them() {
    let pages = vec![PageDigest::from_bytes([7; 16]); PREFIX_PAGES_MAX + 1];
    let keep = KeepPages { session: SessionId::new(1), next_step: StepId(0), first: 0, pages };
    let read = ClientMessage::decode(ClientMessage::Keep(keep).encode());
    assert!(matches!(read, Ok(ClientMessage::Keep(keep)) if keep.pages.len() == PREFIX_PAGES_MAX));
}

#[test]
fn what_is_too_long_to_be_read_is_cut_when_it_is_sent() {
    let error = SessionError {
        session: SessionId::new(1),
        step: None,
        code: ErrorCode::Internal,
        detail: "é".repeat(400),
    };
    let read = ServerMessage::decode(ServerMessage::Error(error).encode()).unwrap();
    let ServerMessage::Error(error) = read else { panic!("{read:?}") };
    assert_eq!(error.detail, "é".repeat(256));
}

#[test]
fn a_message_of_a_newer_kind_is_refused_as_such() {
    // Field 100, an empty message: a kind that this version does not know.
    let frame = Frame { header: Bytes::from_static(&[0xa2, 0x06, 0x00]), ..Frame::default() };
    let violation = ProtocolViolation::UnknownKind { message: "client's message" };
    assert_eq!(ClientMessage::decode(frame), Err(violation));
}

#[test]
fn settings_that_no_training_has_are_violations() {
    let refused = |change: &dyn Fn(&mut OpenTraining)| {
        let mut open = training::open();
        change(&mut open);
        let decoded = TrainerMessage::decode(TrainerMessage::Open(open).encode());
        matches!(decoded, Err(ProtocolViolation::OutOfBounds { .. }))
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|open| open.adapter.rank = 0));
    assert!(refused(&|open| open.adapter.rank = 1_025));
    assert!(refused(&|open| open.adapter.alpha = f32::NAN));
    assert!(refused(&|open| open.adapter.dropout = 1.0));
    assert!(refused(&|open| open.adapter.target_modules = Vec::new()));
    assert!(refused(&|open| open.adapter.target_modules = vec![TargetModule::Key; 2]));
    let prompt = |open: &mut OpenTraining, tokens| {
        (open.adapter.rank, open.adapter.target_modules) = (0, Vec::new());
        open.adapter.block_prompt_tokens = tokens;
    };
    assert!(!refused(&|open| prompt(open, 256)) && !refused(&|open| prompt(open, 0)));
    assert!(refused(&|open| prompt(open, 257)));
    assert!(refused(&|open| open.adapter.block_prompt_tokens = 1), "matrices or a prompt");
    assert!(refused(&|open| open.optimizer.beta2 = 1.0));
    assert!(refused(&|open| open.optimizer.epsilon = 0.0));
    assert!(refused(&|open| open.optimizer.weight_decay = f64::INFINITY));
}

#[test]
fn numbers_of_a_training_that_do_not_fit_are_violations() {
    let refused = |message: TrainerMessage| {
        let decoded = TrainerMessage::decode(message.encode());
        matches!(decoded, Err(ProtocolViolation::OutOfBounds { .. }))
    };
    let step = |learning_rate, factor| {
        refused(TrainerMessage::Step(OptimizerStep { number: 1, learning_rate, factor }))
    };
    assert!(!step(0.0, 0.0) && step(f64::NAN, 1.0) && step(1.0, -1.0));
    let read =
        |count| refused(TrainerMessage::Read { kind: StateKind::Values, offset: u64::MAX, count });
    assert!(!read(1) && read(0) && read(u32::try_from(STATE_VALUES_MAX).unwrap() + 1));
    let values = Tensor::from_f32(vec![1], &[1.0]).unwrap();
    let write = |offset, values| {
        refused(TrainerMessage::Write(StateValues { kind: StateKind::Values, offset, values }))
    };
    assert!(!write(u64::MAX - 1, values.clone()) && write(u64::MAX, values));
    assert!(write(0, training::rows()), "a matrix is no row of values");
    let mut forward = training::forward(false);
    assert!(!refused(TrainerMessage::Forward(forward.clone())));
    forward.sequences[0].tokens = 2;
    assert!(refused(TrainerMessage::Forward(forward.clone())), "more tokens than rows");
    forward.sequences[0].tokens = 0;
    forward.sequences[1].tokens = 3;
    assert!(refused(TrainerMessage::Forward(forward)), "a sequence without a token");
}

fn draw_of(sampling: Sampling) -> ClientMessage {
    let (session, end_ids, text) = (SessionId::new(1), Vec::new(), Vec::new());
    ClientMessage::Draw(Draw { session, sampling, from: 1, until: 9, end_ids, text, first: None })
}

#[test]
fn numbers_by_which_no_token_can_be_chosen_are_a_violation() {
    let sound = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };
    assert!(ClientMessage::decode(draw_of(sound).encode()).is_ok());
    for wrong in [
        Sampling { temperature: -1.0, ..sound },
        Sampling { temperature: f32::NAN, ..sound },
        Sampling { top_p: 0.0, ..sound },
        Sampling { top_p: 1.5, ..sound },
        Sampling { min_p: f32::INFINITY, ..sound },
        Sampling { repetition_penalty: 0.0, ..sound },
    ] {
        let decoded = ClientMessage::decode(draw_of(wrong).encode());
        assert!(matches!(decoded, Err(ProtocolViolation::OutOfRange { .. })), "{wrong:?}");
    }
}

#[test]
fn half_an_id_is_a_violation_and_only_so_many_tokens_end_an_answer() {
    let ClientMessage::Draw(draw) = draw_of(Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 2.0,
        seed: 1,
    }) else {
        panic!("it is one");
    };
    let mut frame = ClientMessage::Draw(Draw { text: vec![1, 2], ..draw.clone() }).encode();
    frame.payload.truncate(7);
    let decoded = ClientMessage::decode(frame);
    assert!(matches!(decoded, Err(ProtocolViolation::UnexpectedPayload { .. })), "{decoded:?}");
    let many = Draw { end_ids: vec![0; END_IDS_MAX + 1], ..draw };
    let read = ClientMessage::decode(ClientMessage::Draw(many).encode()).unwrap();
    let ClientMessage::Draw(read) = read else { panic!("{read:?}") };
    assert_eq!(read.end_ids.len(), END_IDS_MAX, "more are not sent");
}
