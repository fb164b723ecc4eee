//! Any adapter of a session.

use proptest::collection::vec;
use proptest::prelude::*;
use umbel_protocol::inference::{AdapterPart, SessionAdapter};
use umbel_protocol::training::{AdapterSettings, TargetModule};
use umbel_protocol::{AdapterId, SessionId, Tensor};

/// Adapters of sessions.
pub(crate) fn adapters() -> impl Strategy<Value = SessionAdapter> {
    (any::<[u8; 32]>(), 1u32..=1_024, any::<bool>(), 0.0f32..1.0).prop_map(
        |(id, rank, rank_stabilized, dropout)| SessionAdapter {
            id: AdapterId::from_bytes(id),
            settings: AdapterSettings {
                rank,
                alpha: 16.0,
                rank_stabilized,
                dropout,
                target_modules: vec![TargetModule::Down, TargetModule::Query],
            },
        },
    )
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
