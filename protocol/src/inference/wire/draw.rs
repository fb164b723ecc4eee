//! The message that says how tokens are drawn.

use bytes::Bytes;

use super::super::{Draw, END_IDS_MAX, NextHop, Sampling};
use crate::error::ProtocolViolation;
use crate::generated as v1;
use crate::wire;

/// What a payload behind another message than these is refused as.
const TEXT: &str = "text";

/// The header of the message; the ids of the text go to `payload`.
pub(super) fn draw_to_wire(draw: Draw, payload: &mut Bytes) -> v1::Draw {
    let ids: Vec<u8> = draw.text.iter().flat_map(|id| id.to_le_bytes()).collect();
    *payload = ids.into();
    let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed } = draw.sampling;
    let unless_1 = |number: f32| (number != 1.0).then_some(number);
    v1::Draw {
        session: wire::session_bytes(draw.session),
        from: draw.from,
        until: draw.until,
        end_ids: draw.end_ids.into_iter().take(END_IDS_MAX).collect(),
        first: draw.first.map(|first| super::repair::hop_to_wire(first, draw.session)),
        temperature,
        top_k,
        top_p: unless_1(top_p),
        min_p,
        repetition_penalty: unless_1(repetition_penalty),
        seed,
    }
}

pub(super) fn draw_from_wire(draw: v1::Draw, payload: &Bytes) -> Result<Draw, ProtocolViolation> {
    let session = wire::session_id(&draw.session)?;
    wire::at_most("tokens that end an answer", END_IDS_MAX, draw.end_ids.len())?;
    let sampling = Sampling {
        temperature: draw.temperature,
        top_k: draw.top_k,
        top_p: draw.top_p.unwrap_or(1.0),
        min_p: draw.min_p,
        repetition_penalty: draw.repetition_penalty.unwrap_or(1.0),
        seed: draw.seed,
    };
    if let Some((field, value)) = sampling.out_of_range() {
        return Err(ProtocolViolation::OutOfRange { field, value: value.to_string() });
    }
    let (ids, rest) = payload.as_chunks();
    if !rest.is_empty() {
        let bytes = payload.len();
        return Err(ProtocolViolation::UnexpectedPayload { message: TEXT, bytes });
    }
    let first = |first: v1::NextHop| -> Result<NextHop, ProtocolViolation> {
        super::repair::hop_from_wire(first, session)
    };
    Ok(Draw {
        session,
        sampling,
        from: draw.from,
        until: draw.until,
        end_ids: draw.end_ids,
        text: ids.iter().map(|id| u32::from_le_bytes(*id)).collect(),
        first: draw.first.map(first).transpose()?,
    })
}
