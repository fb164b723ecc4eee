//! The session's adapter on its way to a hop that lacks it.

use std::time::Duration;

use umbel_protocol::error::{ErrorCode, ProtocolViolation};
use umbel_protocol::training::STATE_VALUES_MAX;

use super::patience::LINK_BYTES_PER_SECOND_MIN;
use super::place::{Opening, Place};
use super::{FailureReason, Output};
use crate::time::Time;

/// How long an adapter may be on its way to a hop in all: one of 100 MB takes a quarter of an hour at
/// 1 Mbit/s.
const ADAPTER_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// How long a part, in binary32, takes over the slowest link.
const PART_TRANSFER: Duration =
    Duration::from_secs((4 * STATE_VALUES_MAX as u64).div_ceil(LINK_BYTES_PER_SECOND_MIN as u64));

impl Place {
    /// The hop lacks values of the adapter, and has some of them already where it has said so before:
    /// what to send it, if it is this session that sends them.
    pub(super) fn adapter_wanted(
        &mut self,
        offset: Option<u64>,
        now: Time,
    ) -> Result<Option<Output>, ProtocolViolation> {
        let Opening::Asked { .. } = self.opening else {
            return Err(ProtocolViolation::Unexpected { message: "AdapterWanted" });
        };
        let until = *self.adapter_until.get_or_insert(now + ADAPTER_PATIENCE);
        if now < until {
            self.opening = Opening::Asked { at: now + PART_TRANSFER };
        }
        let (hop, session, blocks) = (self.id, self.session, self.hop.blocks);
        Ok(offset.map(|offset| Output::SendAdapter { hop, session, blocks, offset }))
    }
}

/// Why a hop is given up that has opened the session without its adapter: its version is an older one.
pub(super) fn not_added() -> FailureReason {
    let detail = "with an adapter, of which its version knows nothing".to_owned();
    FailureReason::Refused { code: ErrorCode::BlocksNotServed, detail }
}
