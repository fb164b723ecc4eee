//! Any adapter of a session.

use std::ops::RangeInclusive;

use proptest::collection::vec;
use proptest::prelude::*;
use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::inference::{AdapterPart, ClientMessage, OpenSession, SessionAdapter};
use umbel_protocol::training::{AdapterSettings, PROMPT_TOKENS_MAX, RANK_MAX, TargetModule};
use umbel_protocol::{AdapterId, SessionId, Tensor};

use crate::samples::adapted::open_adapted;

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
    (1..=RANK_MAX, 1e-3f32..1e3, any::<bool>(), 0.0f32..1.0, 1usize..=7).prop_map(
        |(rank, alpha, rank_stabilized, dropout, modules)| AdapterSettings {
            rank,
            alpha,
            rank_stabilized,
            dropout,
            target_modules: TargetModule::ALL[..modules].to_vec(),
            block_prompt_tokens: 0,
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
