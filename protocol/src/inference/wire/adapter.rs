//! The adapter of a session, and its values.

use bytes::Bytes;

use super::super::{AdapterPart, SessionAdapter};
use crate::compression::Packing;
use crate::error::ProtocolViolation;
use crate::generated as v1;
use crate::training::{AdapterSettings, STATE_VALUES_MAX};
use crate::{AdapterId, DType, wire};

impl From<SessionAdapter> for v1::SessionAdapter {
    fn from(adapter: SessionAdapter) -> Self {
        Self {
            id: Bytes::copy_from_slice(adapter.id.as_bytes()),
            settings: Some(adapter.settings.into()),
        }
    }
}

impl TryFrom<v1::SessionAdapter> for SessionAdapter {
    type Error = ProtocolViolation;

    fn try_from(adapter: v1::SessionAdapter) -> Result<Self, ProtocolViolation> {
        let settings = wire::required(adapter.settings, "the adapter's settings")?;
        let settings = AdapterSettings::try_from(settings)?;
        if !settings.has_values() {
            // There would be nothing to send, and nothing to wait for.
            return Err(ProtocolViolation::OutOfBounds { field: "the adapter's settings" });
        }
        Ok(Self { id: AdapterId::from_bytes(wire::array(&adapter.id, "the adapter")?), settings })
    }
}

/// The header of the message; the values go to `payload`.
pub(super) fn part_to_wire(part: AdapterPart, payload: &mut Bytes) -> v1::AdapterPart {
    v1::AdapterPart {
        session: wire::session_bytes(part.session),
        offset: part.offset,
        values: Some(wire::tensor_to_wire(&part.values, Packing::Plain, payload)),
    }
}

pub(super) fn part_from_wire(
    part: v1::AdapterPart,
    payload: Bytes,
) -> Result<AdapterPart, ProtocolViolation> {
    const FIELD: &str = "the adapter's values";
    let values = wire::tensor(part.values, payload)?;
    let count = match *values.shape() {
        [count] if values.dtype() == DType::F32 => count as usize,
        _ => 0,
    };
    let fits = (1..=STATE_VALUES_MAX).contains(&count);
    if !fits || values.to_f32().iter().any(|value| !value.is_finite()) {
        return Err(ProtocolViolation::OutOfBounds { field: FIELD });
    }
    Ok(AdapterPart { session: wire::session_id(&part.session)?, offset: part.offset, values })
}
