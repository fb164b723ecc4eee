//! Smaller payloads that lose nothing: the bytes of the elements by their significance.
//!
//! Signs and exponents of hidden states are much alike, and the low bytes of their mantissas are
//! noise. So the first bytes of all elements are put together, the second ones, and so on, and each
//! such plane is written in a Huffman code of its own where that makes it smaller. Nothing repeats
//! in such data, so dictionary coders find no more (LZ4, which has nothing else, finds nothing).
//!
//! ```text
//! plane: | 0: u8 | bytes                                   |   as it is
//!        | 1: u8 | code: 128 bytes | length: u32 | bits    |   coded
//! ```

mod huffman;

use bytes::Bytes;

use crate::tensor::{DType, InvalidTensor, Tensor};
use crate::version::STEP_PAYLOAD_BYTES_MAX;
use huffman::{CODE_BYTES, Code};

/// How the elements of a tensor are to stand in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// One after the other.
    #[default]
    Plain,
    /// In byte planes, where that makes the payload smaller and it is large.
    WhereSmaller,
}

/// Payloads below this are sent as they are: a step of decode fits a few packets, and its time is
/// that of the way.
pub const PACKED_BYTES_MIN: usize = 48 << 10;

/// A plane is coded where that makes it smaller by one part in so many; a smaller gain does not pay
/// for the reading.
const GAIN_PARTS: usize = 32;

const AS_IT_IS: u8 = 0;
const CODED: u8 = 1;

/// The payload of `tensor` in byte planes; `None` where that would not be smaller.
#[must_use]
pub fn pack(tensor: &Tensor) -> Option<Bytes> {
    let planes = planes_of(tensor.dtype())?;
    let payload = tensor.payload();
    if payload.len() < PACKED_BYTES_MIN {
        return None;
    }
    let mut packed = Vec::with_capacity(payload.len());
    let mut gains = false;
    let mut plane = Vec::with_capacity(payload.len() / planes);
    for number in 0..planes {
        plane.clear();
        plane.extend(payload.iter().skip(number).step_by(planes));
        gains |= write_plane(&plane, &mut packed);
    }
    gains.then(|| packed.into())
}

/// The tensor of this type and shape whose byte planes are `packed`.
///
/// # Errors
/// [`InvalidTensor`] where they are none; nothing has been allocated by then that is not at most
/// eight times as large as `packed`.
pub fn unpack(dtype: DType, shape: Vec<u32>, packed: &[u8]) -> Result<Tensor, InvalidTensor> {
    let planes = planes_of(dtype).ok_or(InvalidTensor::Packed)?;
    let bytes = Tensor::payload_bytes(dtype, &shape).ok_or(InvalidTensor::TooLarge)?;
    let bytes = usize::try_from(bytes).map_err(|_| InvalidTensor::TooLarge)?;
    // A byte takes a bit at least.
    if bytes > STEP_PAYLOAD_BYTES_MAX as usize || bytes / 8 > packed.len() {
        return Err(InvalidTensor::TooLarge);
    }
    let (mut payload, mut rest) = (vec![0; bytes], packed);
    let mut plane = vec![0; bytes / planes];
    for number in 0..planes {
        rest = read_plane(rest, &mut plane).ok_or(InvalidTensor::Packed)?;
        for (place, byte) in payload.iter_mut().skip(number).step_by(planes).zip(&plane) {
            *place = *byte;
        }
    }
    if !rest.is_empty() {
        return Err(InvalidTensor::Packed);
    }
    Tensor::new(dtype, shape, payload.into())
}

/// Planes of a type whose elements have several bytes.
const fn planes_of(dtype: DType) -> Option<usize> {
    match dtype {
        DType::F32 => Some(4),
        DType::F16 | DType::BF16 => Some(2),
        DType::Q8 | DType::Id => None,
    }
}

/// Whether it became smaller.
fn write_plane(plane: &[u8], packed: &mut Vec<u8>) -> bool {
    let code = Code::of(plane);
    let bits_bytes = code.bits(plane).div_ceil(8);
    if CODE_BYTES + 4 + bits_bytes + plane.len() / GAIN_PARTS >= plane.len() {
        packed.push(AS_IT_IS);
        packed.extend_from_slice(plane);
        return false;
    }
    packed.push(CODED);
    packed.extend_from_slice(&code.to_bytes());
    let length = u32::try_from(bits_bytes).expect("a payload is below 4 GiB");
    packed.extend_from_slice(&length.to_le_bytes());
    code.write(plane, packed);
    true
}

/// Fills a plane and gives what stands behind it; `None` where there is no such plane.
fn read_plane<'a>(packed: &'a [u8], plane: &mut [u8]) -> Option<&'a [u8]> {
    let (kind, packed) = packed.split_first()?;
    match *kind {
        AS_IT_IS => {
            let (bytes, rest) = packed.split_at_checked(plane.len())?;
            plane.copy_from_slice(bytes);
            Some(rest)
        }
        CODED => {
            let (code, packed) = packed.split_first_chunk()?;
            let (length, packed) = packed.split_first_chunk()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (bits, rest) = packed.split_at_checked(length)?;
            Code::from_bytes(code)?.read(bits, plane)?;
            Some(rest)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
