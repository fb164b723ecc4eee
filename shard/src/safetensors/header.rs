//! The decoder of safetensors headers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::weight::WeightType;

/// Bytes of the header's length.
pub(super) const LENGTH_BYTES: u64 = size_of::<u64>() as u64;
/// Longest header: a thousand tensors take some 100 kB, so this is for 300,000.
const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Most dimensions of a tensor; those of the supported models have two.
const DIMENSIONS_MAX: usize = 8;

/// The tensors of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsHeader {
    tensors: BTreeMap<String, StoredTensor>,
}

impl SafetensorsHeader {
    /// The tensors by name.
    #[must_use]
    pub const fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }
}

/// One tensor in a safetensors file; its bytes lie wholly in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// How its values are written.
    pub stored_type: StoredType,
    /// Values along each dimension, the slowest first.
    pub shape: Vec<usize>,
    /// Where its bytes begin, counted from the start of the file.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
}

/// How the values of a tensor are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredType {
    /// A type that the engine multiplies.
    Supported(WeightType),
    /// Another type, by its name: harmless in a tensor that the model does not need.
    Other(String),
}

/// A file that is broken, cut off or lying.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// Too short to have a header, or shorter than its header says.
    #[error(
        "the file has {found} bytes where its header asks for {expected}: it is cut off or corrupt"
    )]
    CutOff {
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A header of absurd length.
    #[error(
        "the header claims {found} bytes, at most {max} are read: the file is no safetensors file, \
         or corrupt"
    )]
    HeaderTooLong {
        /// Bytes that it claims.
        found: u64,
        /// Bytes that are allowed.
        max: u64,
    },
    /// A header that is not the JSON it should be.
    #[error("the header is not what a safetensors file has")]
    Json(#[source] serde_json::Error),
    /// More dimensions than any tensor has.
    #[error("tensor {tensor} has {found} dimensions; at most {max} are read")]
    Dimensions {
        /// The tensor's name.
        tensor: String,
        /// How many it has.
        found: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A length that type and shape do not give.
    #[error(
        "tensor {tensor} has {found} bytes, which its type {stored_type} and shape {shape:?} do not give"
    )]
    Length {
        /// The tensor's name.
        tensor: String,
        /// The type's name.
        stored_type: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes of its range.
        found: u64,
    },
    /// A range whose end lies before its start, or that leaves a gap or an overlap.
    #[error("tensor {tensor} has the bytes {start} to {end}, where byte {expected} should follow")]
    Range {
        /// The tensor's name.
        tensor: String,
        /// Where it begins, counted from the end of the header.
        start: u64,
        /// Where it ends.
        end: u64,
        /// Where the tensor before it ends.
        expected: u64,
    },
    /// A file that goes on after its last tensor.
    #[error("the file has {found} bytes, but its last tensor ends at {expected}: it is corrupt")]
    TooLong {
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
}

/// Reads the header of a safetensors file of `file_bytes` bytes, which `bytes` are the beginning of.
///
/// # Errors
/// [`SafetensorsError`] where the header is broken, or lies about any length, range or shape.
pub fn parse_header(bytes: &[u8], file_bytes: u64) -> Result<SafetensorsHeader, SafetensorsError> {
    let length = header_bytes(bytes, file_bytes)?;
    let start = LENGTH_BYTES + length;
    let end = usize::try_from(start).ok();
    let Some(json) = end.and_then(|end| bytes.get(size_of::<u64>()..end)) else {
        return Err(SafetensorsError::CutOff { expected: start, found: bytes.len() as u64 });
    };
    let WireHeader(wire) = serde_json::from_slice(json).map_err(SafetensorsError::Json)?;
    check_ranges(&wire, start, file_bytes)?;
    let mut tensors = BTreeMap::new();
    for (name, wire) in wire {
        let tensor = wire.place(&name, start)?;
        tensors.insert(name, tensor);
    }
    Ok(SafetensorsHeader { tensors })
}

/// The length of the header, from the first eight bytes of the file.
pub(super) fn header_bytes(bytes: &[u8], file_bytes: u64) -> Result<u64, SafetensorsError> {
    let Some(length) = bytes.first_chunk::<{ size_of::<u64>() }>() else {
        return Err(SafetensorsError::CutOff { expected: LENGTH_BYTES, found: file_bytes });
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderTooLong { found: length, max: HEADER_BYTES_MAX });
    }
    let expected = LENGTH_BYTES + length;
    if expected > file_bytes {
        return Err(SafetensorsError::CutOff { expected, found: file_bytes });
    }
    Ok(length)
}

/// The format allows no gap, no overlap, and no byte after the last tensor.
fn check_ranges(
    tensors: &BTreeMap<String, WireTensor>,
    data_start: u64,
    file_bytes: u64,
) -> Result<(), SafetensorsError> {
    let mut in_order: Vec<_> =
        tensors.iter().map(|(name, tensor)| (tensor.data_offsets, name)).collect();
    in_order.sort_unstable();
    let mut expected = 0;
    for ((start, end), name) in in_order {
        if start != expected || end < start {
            return Err(SafetensorsError::Range { tensor: name.clone(), start, end, expected });
        }
        expected = end;
    }
    let expected = data_start.saturating_add(expected);
    match expected.cmp(&file_bytes) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => {
            Err(SafetensorsError::CutOff { expected, found: file_bytes })
        }
        std::cmp::Ordering::Less => Err(SafetensorsError::TooLong { expected, found: file_bytes }),
    }
}

#[derive(Deserialize)]
struct WireTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl WireTensor {
    /// The tensor in a file whose tensors' bytes begin at `data_start`; ranges were checked before.
    fn place(self, name: &str, data_start: u64) -> Result<StoredTensor, SafetensorsError> {
        let Self { dtype, shape: sizes, data_offsets: (start, end) } = self;
        let bytes = end - start;
        if sizes.len() > DIMENSIONS_MAX {
            let (tensor, found) = (name.to_owned(), sizes.len());
            return Err(SafetensorsError::Dimensions { tensor, found, max: DIMENSIONS_MAX });
        }
        let shape: Option<Vec<usize>> =
            sizes.iter().map(|&size| usize::try_from(size).ok()).collect();
        let stored_type = match dtype.as_str() {
            "F32" => StoredType::Supported(WeightType::F32),
            "F16" => StoredType::Supported(WeightType::F16),
            "BF16" => StoredType::Supported(WeightType::BF16),
            _ => StoredType::Other(dtype.clone()),
        };
        let fits = |shape: &Vec<usize>| match &stored_type {
            StoredType::Supported(weight_type) => weight_type.tensor_bytes(shape) == Some(bytes),
            StoredType::Other(_) => true,
        };
        let Some(shape) = shape.filter(fits) else {
            let tensor = name.to_owned();
            return Err(SafetensorsError::Length {
                tensor,
                stored_type: dtype,
                shape: sizes,
                found: bytes,
            });
        };
        Ok(StoredTensor { stored_type, shape, offset: data_start + start, bytes })
    }
}

/// The header's JSON, in which no key may appear twice.
struct WireHeader(BTreeMap<String, WireTensor>);

impl<'de> Deserialize<'de> for WireHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = WireHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WireHeader, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(map.next_value()?),
                Entry::Occupied(entry) => {
                    let message = format!("tensor {} is there twice", entry.key());
                    return Err(serde::de::Error::custom(message));
                }
            };
        }
        Ok(WireHeader(tensors))
    }
}
