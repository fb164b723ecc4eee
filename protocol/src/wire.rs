//! Checks that turn what came into what holds.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::compression::{self, Packing};
use crate::error::ProtocolViolation;
use crate::frame::Frame;
use crate::generated as v1;
use crate::text::printable;
use crate::{DType, ModelId, PeerId, SessionId, Span, Tensor};

/// Most addresses of one peer: QUIC and TCP on a handful of interfaces.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// Most bytes of an address: a relayed one, with two peers and two certificate hashes, has 230.
pub(crate) const ADDRESS_BYTES_MAX: usize = 256;

/// The message of a header.
pub(crate) fn decode_header<M: Message + Default>(
    header: Bytes,
    message: &'static str,
) -> Result<M, ProtocolViolation> {
    M::decode(header).map_err(|source| ProtocolViolation::Malformed { message, source })
}

/// A frame without payload.
pub(crate) fn header_only(message: &impl Message) -> Frame {
    Frame { header: message.encode_to_vec().into(), payload: Bytes::new() }
}

/// Refuses a payload behind a message that has none.
pub(crate) fn no_payload(payload: &Bytes, message: &'static str) -> Result<(), ProtocolViolation> {
    match payload.len() {
        0 => Ok(()),
        bytes => Err(ProtocolViolation::UnexpectedPayload { message, bytes }),
    }
}

pub(crate) fn required<T>(value: Option<T>, field: &'static str) -> Result<T, ProtocolViolation> {
    value.ok_or(ProtocolViolation::Missing { field })
}

pub(crate) fn array<const N: usize>(
    bytes: &[u8],
    field: &'static str,
) -> Result<[u8; N], ProtocolViolation> {
    bytes.try_into().map_err(|_| match bytes.len() {
        0 => ProtocolViolation::Missing { field },
        found => ProtocolViolation::WrongLength { field, expected: N, found },
    })
}

pub(crate) fn session_id(bytes: &[u8]) -> Result<SessionId, ProtocolViolation> {
    Ok(SessionId::new(u128::from_le_bytes(array(bytes, "the session")?)))
}

pub(crate) fn session_bytes(session: SessionId) -> Bytes {
    Bytes::copy_from_slice(&session.number().to_le_bytes())
}

pub(crate) fn peer_id(bytes: &[u8]) -> Result<PeerId, ProtocolViolation> {
    Ok(PeerId::from_public_key(array(bytes, "the peer")?))
}

pub(crate) fn peer_bytes(peer: PeerId) -> Bytes {
    Bytes::copy_from_slice(peer.public_key())
}

pub(crate) fn model_id(bytes: &[u8]) -> Result<ModelId, ProtocolViolation> {
    Ok(ModelId::from_bytes(array(bytes, "the model")?))
}

pub(crate) fn model_bytes(model: ModelId) -> Bytes {
    Bytes::copy_from_slice(model.as_bytes())
}

pub(crate) fn span(span: Option<v1::Span>) -> Result<Span, ProtocolViolation> {
    let v1::Span { start, end } = required(span, "the span")?;
    Ok(Span::new(start, end)?)
}

pub(crate) const fn span_to_wire(span: Span) -> v1::Span {
    v1::Span { start: span.start(), end: span.end() }
}

pub(crate) fn addresses(addresses: Vec<String>) -> Result<Vec<String>, ProtocolViolation> {
    at_most("addresses", ADDRESSES_MAX, addresses.len())?;
    for address in &addresses {
        not_longer("an address", ADDRESS_BYTES_MAX, address)?;
    }
    Ok(addresses)
}

/// As many addresses as a message may hold; longer ones than it may hold are left out.
pub(crate) fn addresses_to_wire(mut addresses: Vec<String>) -> Vec<String> {
    addresses.retain(|address| address.len() <= ADDRESS_BYTES_MAX);
    addresses.truncate(ADDRESSES_MAX);
    addresses
}

pub(crate) const fn at_most(
    field: &'static str,
    max: usize,
    found: usize,
) -> Result<(), ProtocolViolation> {
    if found > max { Err(ProtocolViolation::TooMany { field, max, found }) } else { Ok(()) }
}

pub(crate) const fn not_longer(
    field: &'static str,
    max: usize,
    text: &str,
) -> Result<(), ProtocolViolation> {
    let found = text.len();
    if found > max { Err(ProtocolViolation::TooLong { field, max, found }) } else { Ok(()) }
}

/// What a peer says in words of its own, if they are not too many; what does not print is left out.
pub(crate) fn own_words(
    field: &'static str,
    max: usize,
    text: &str,
) -> Result<String, ProtocolViolation> {
    not_longer(field, max, text)?;
    Ok(printable(text))
}

/// The longest beginning of `text` that has at most `max` bytes and whole characters.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// Nanoseconds, which reach 584 years.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn tensor(
    tensor: Option<v1::Tensor>,
    payload: Bytes,
) -> Result<Tensor, ProtocolViolation> {
    let v1::Tensor { dtype: code, shape, packing } = required(tensor, "the tensor")?;
    let dtype = dtype(code)?.ok_or(ProtocolViolation::UnknownDType { code })?;
    match v1::Packing::try_from(packing) {
        Ok(v1::Packing::Unspecified) => Ok(Tensor::new(dtype, shape, payload)?),
        Ok(v1::Packing::BytePlanes) => Ok(compression::unpack(dtype, shape, &payload)?),
        Err(_) => Err(ProtocolViolation::UnknownPacking { code: packing }),
    }
}

/// The header of a tensor; its elements go to `payload`, packed where that is asked for and helps.
pub(crate) fn tensor_to_wire(tensor: &Tensor, packing: Packing, payload: &mut Bytes) -> v1::Tensor {
    let packed = match packing {
        Packing::Plain => None,
        Packing::WhereSmaller => compression::pack(tensor),
    };
    let packing = if packed.is_some() { v1::Packing::BytePlanes } else { v1::Packing::Unspecified };
    *payload = packed.unwrap_or_else(|| tensor.payload().clone());
    v1::Tensor {
        dtype: dtype_to_wire(tensor.dtype()).into(),
        shape: tensor.shape().to_vec(),
        packing: packing.into(),
    }
}

/// The element type of this number; `None` for the number that says nothing.
pub(crate) fn dtype(code: i32) -> Result<Option<DType>, ProtocolViolation> {
    match v1::DType::try_from(code) {
        Ok(v1::DType::Unspecified) => Ok(None),
        Ok(v1::DType::F32) => Ok(Some(DType::F32)),
        Ok(v1::DType::F16) => Ok(Some(DType::F16)),
        Ok(v1::DType::Bf16) => Ok(Some(DType::BF16)),
        Ok(v1::DType::Q8) => Ok(Some(DType::Q8)),
        Ok(v1::DType::Id) => Ok(Some(DType::Id)),
        Err(_) => Err(ProtocolViolation::UnknownDType { code }),
    }
}

/// The type of numbers that are computed with; binary32 where nothing is said.
pub(crate) fn number_dtype(code: i32) -> Result<DType, ProtocolViolation> {
    match dtype(code)? {
        Some(DType::Id) => Err(ProtocolViolation::UnknownDType { code }),
        Some(number) => Ok(number),
        None => Ok(DType::F32),
    }
}

pub(crate) const fn dtype_to_wire(dtype: DType) -> v1::DType {
    match dtype {
        DType::F32 => v1::DType::F32,
        DType::F16 => v1::DType::F16,
        DType::BF16 => v1::DType::Bf16,
        DType::Q8 => v1::DType::Q8,
        DType::Id => v1::DType::Id,
    }
}

/// Refuses what is out of its bounds.
pub(crate) fn within(holds: bool, field: &'static str) -> Result<(), ProtocolViolation> {
    if holds { Ok(()) } else { Err(ProtocolViolation::OutOfBounds { field }) }
}
