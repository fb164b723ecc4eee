//! Any adapter of a session.

use std::ops::RangeInclusive;

use proptest::collection::vec;
use proptest::prelude::*;
use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::frame::Frame;
use umbel_protocol::inference::{AdapterPart, ClientMessage, OpenSession, SessionAdapter};
use umbel_protocol::training::{
    AdapterSettings, PROMPT_TOKENS_MAX, RANK_MAX, STATE_VALUES_MAX, TargetModule, TrainerMessage,
    TrainingAnswer,
};
use umbel_protocol::{AdapterId, SessionId, Tensor};

use crate::samples::adapted::open_adapted;
use crate::samples::training;

/// Adapters of sessions.
pub(crate) fn adapters() -> impl Strategy<Value = SessionAdapter> {
    (any::<[u8; 32]>(), prop_oneof![matrices(), prompts(1..=PROMPT_TOKENS_MAX)])
        .prop_map(|(id, settings)| SessionAdapter { id: AdapterId::from_bytes(id), settings })
}

/// Adapters of trainings, which may have no values at all.
pub(crate) fn trained() -> impl Strategy<Value = AdapterSettings> {
    prop_oneof![matrices(), prompts(0..=PROMPT_TOKENS_MAX)]
}

fn matrices() -> impl Strategy<Value = AdapterSettings> {
    (1..=RANK_MAX, 1e-3f32..1e3, any::<[bool; 2]>(), 0.0f32..1.0, 1usize..=7).prop_map(
        |(rank, alpha, [rank_stabilized, weight_decomposed], dropout, modules)| AdapterSettings {
            rank,
            alpha,
            rank_stabilized,
            dropout,
            target_modules: TargetModule::ALL[..modules].to_vec(),
            block_prompt_tokens: 0,
            weight_decomposed,
        },
    )
}

fn prompts(tokens: RangeInclusive<u16>) -> impl Strategy<Value = AdapterSettings> {
    tokens.prop_map(|block_prompt_tokens| AdapterSettings {
        rank: 0,
        alpha: 0.0,
        rank_stabilized: false,
        dropout: 0.0,
        target_modules: Vec::new(),
        block_prompt_tokens,
        weight_decomposed: false,
    })
}

/// Their values.
pub(crate) fn adapter_parts() -> impl Strategy<Value = AdapterPart> {
    (any::<u128>(), any::<u64>(), vec(-1e30f32..1e30, 1..40)).prop_map(
        |(session, offset, values)| {
            let session = SessionId::new(session);
            let count = u32::try_from(values.len()).unwrap();
            let values = Tensor::from_f32(vec![count], &values).unwrap();
            AdapterPart { session, offset, values }
        },
    )
}

/// Norms of rows, with which magnitudes begin.
pub(crate) fn row_norms() -> impl Strategy<Value = TrainingAnswer> {
    (0..u64::MAX - 40, vec(0.0f32..1e30, 1..40)).prop_map(|(offset, norms)| {
        let count = u32::try_from(norms.len()).unwrap();
        let norms = Tensor::from_f32(vec![count], &norms).unwrap();
        TrainingAnswer::RowNorms { offset, norms }
    })
}

#[test]
fn norms_of_rows_that_are_none_are_violations() {
    let refused = |offset, norms: &[f32]| {
        let count = u32::try_from(norms.len()).unwrap();
        let norms = Tensor::from_f32(vec![count], norms).unwrap();
        let decoded = TrainingAnswer::decode(TrainingAnswer::RowNorms { offset, norms }.encode());
        matches!(decoded, Err(ProtocolViolation::OutOfBounds { .. }))
    };
    assert!(!refused(0, &[0.0, 1.0]));
    for norm in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(refused(0, &[1.0, norm]), "{norm}");
    }
    assert!(refused(u64::MAX, &[1.0]) && refused(0, &[]));
    assert!(refused(0, &vec![1.0; STATE_VALUES_MAX + 1]));
    let asked = |count| {
        let decoded =
            TrainerMessage::decode(TrainerMessage::RowNorms { offset: 0, count }.encode());
        matches!(decoded, Err(ProtocolViolation::OutOfBounds { .. }))
    };
    assert!(!asked(1) && asked(0) && asked(u32::try_from(STATE_VALUES_MAX).unwrap() + 1));
}

/// Its modules stand in a field of their own, beside which there are no others; without that field there
/// is a rank and no matrix.
#[test]
fn who_does_not_know_magnitudes_refuses_them() {
    /// The field, with two modules.
    const MODULES: [u8; 4] = [0x3a, 2, 1, 7];
    let frame = TrainerMessage::Open(training::decomposed()).encode();
    let decoded = |header: Vec<u8>| {
        TrainerMessage::decode(Frame { header: header.into(), ..Frame::default() })
    };
    let header = frame.header.to_vec();
    assert_eq!(decoded(header.clone()), Ok(TrainerMessage::Open(training::decomposed())));
    let place = header.windows(4).position(|bytes| bytes == MODULES).unwrap();
    let mut unknown = header.clone();
    unknown[place] = 0x7a;
    let refused = |field| Err(ProtocolViolation::OutOfBounds { field });
    assert_eq!(decoded(unknown), refused("the rank"));
    // A message that comes twice is merged: here with an adapter of one plain matrix.
    let both = [&header[..], &[0x0a, 5, 0x22, 3, 0x2a, 1, 1]].concat();
    assert_eq!(decoded(both), refused("the target modules"));
}

#[test]
fn a_session_with_an_adapter_without_values_is_a_violation() {
    let open = open_adapted(SessionId::new(1));
    let refused = |open: OpenSession| {
        let decoded = ClientMessage::decode(ClientMessage::Open(open).encode());
        matches!(decoded, Err(ProtocolViolation::OutOfBounds { .. }))
    };
    assert!(!refused(open.clone()));
    let mut empty = open;
    let adapter = empty.adapter.as_mut().unwrap();
    (adapter.settings.rank, adapter.settings.target_modules) = (0, Vec::new());
    assert!(refused(empty));
}
