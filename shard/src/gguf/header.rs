//! The decoder of GGUF headers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::cursor::Cursor;
use super::ggml_type::{type_name, weight_type};
use super::value::{Value, Values};
use super::{GgufError, GgufHeader, GgufTensor};

const MAGIC: [u8; 4] = *b"GGUF";
/// Most keys; files have some thirty.
const KEYS_MAX: u64 = 1 << 14;
/// Most tensors: fifty times those of a model of 126 blocks.
const TENSORS_MAX: u64 = 1 << 16;
/// Longest name of a key, by the specification; ggml allows tensors 64 bytes.
const NAME_BYTES_MAX: u64 = (1 << 16) - 1;
/// Most dimensions of a tensor, by the specification.
const DIMENSIONS_MAX: u64 = 4;
/// The alignment of the tensors where the file names none, by the specification.
const ALIGNMENT_DEFAULT: u64 = 32;
/// Largest alignment: a large page, beyond which no alignment has a use.
const ALIGNMENT_MAX: u64 = 1 << 21;
/// The key that names another alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// Reads the header of a GGUF file; `bytes` is the whole file, of which only the header is touched.
///
/// # Errors
/// [`GgufError`] where the bytes are no GGUF file, are cut off or lie about any length, count,
/// offset or shape, or hold a tensor of an unsupported type.
pub fn parse_header(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
    let mut cursor = Cursor::new(bytes);
    let version = read_version(&mut cursor)?;
    // A tensor's entry has at least a name's length, one dimension, a type and an offset; a key has
    // at least its length, a type and one byte.
    let tensor_count = cursor.u64("the number of tensors")?;
    let key_count = cursor.count("metadata keys", 13, KEYS_MAX)?;
    let metadata = read_metadata(&mut cursor, key_count)?;
    cursor.check_count(tensor_count, "tensors", 32, TENSORS_MAX, cursor.offset())?;
    let alignment = read_alignment(&metadata)?;
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(read_info(&mut cursor)?);
    }
    let file_bytes = bytes.len() as u64;
    // No overflow: the offset is that of a slice, and the alignment is bounded.
    let data_offset = cursor.offset().next_multiple_of(alignment);
    let tensors = place_tensors(infos, alignment, data_offset, file_bytes)?;
    Ok(GgufHeader { version, metadata, tensors })
}

fn read_version(cursor: &mut Cursor) -> Result<u32, GgufError> {
    if cursor.take(4, "the magic").ok() != Some(MAGIC.as_slice()) {
        return Err(GgufError::NotGguf);
    }
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufError::BigEndian),
        version => Err(GgufError::UnsupportedVersion { version }),
    }
}

fn read_metadata(cursor: &mut Cursor, count: u64) -> Result<BTreeMap<String, Value>, GgufError> {
    let mut values = Values::new();
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.text(NAME_BYTES_MAX, "a metadata key")?.to_owned();
        let value = values.read(cursor, &key)?;
        match metadata.entry(key) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(entry) => {
                return Err(GgufError::Duplicate { name: entry.key().clone() });
            }
        };
    }
    Ok(metadata)
}

fn read_alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    match value.as_unsigned() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX => {
            Ok(alignment)
        }
        Some(_) | None => Err(GgufError::Alignment { found: value.describe(), max: ALIGNMENT_MAX }),
    }
}

/// A tensor as its entry in the header has it.
struct Info {
    name: String,
    dimensions: Vec<u64>,
    type_number: u32,
    offset: u64,
}

fn read_info(cursor: &mut Cursor) -> Result<Info, GgufError> {
    let name = cursor.text(NAME_BYTES_MAX, "a tensor's name")?.to_owned();
    let count = cursor.u32("a tensor's dimensions")?.into();
    if count > DIMENSIONS_MAX {
        let what = "dimensions of a tensor";
        return Err(GgufError::TooMany { what, found: count, max: DIMENSIONS_MAX });
    }
    let mut dimensions = Vec::new();
    for _ in 0..count {
        dimensions.push(cursor.u64("a tensor's dimensions")?);
    }
    let type_number = cursor.u32("a tensor's type")?;
    let offset = cursor.u64("a tensor's offset")?;
    Ok(Info { name, dimensions, type_number, offset })
}

/// Holds every tensor against its type, the alignment, the end of the file and its neighbours.
fn place_tensors(
    infos: Vec<Info>,
    alignment: u64,
    data_offset: u64,
    file_bytes: u64,
) -> Result<BTreeMap<String, GgufTensor>, GgufError> {
    let mut tensors = BTreeMap::new();
    for info in infos {
        let (name, tensor) = place(info, alignment, data_offset, file_bytes)?;
        match tensors.entry(name) {
            Entry::Vacant(entry) => entry.insert(tensor),
            Entry::Occupied(entry) => {
                return Err(GgufError::Duplicate { name: entry.key().clone() });
            }
        };
    }
    let mut in_order: Vec<(&String, &GgufTensor)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, tensor)| tensor.offset);
    for ((first, before), (second, after)) in in_order.iter().zip(in_order.iter().skip(1)) {
        // No overflow: both lie in the file.
        if before.offset + before.bytes > after.offset {
            let (first, second) = ((*first).clone(), (*second).clone());
            return Err(GgufError::Overlap { first, second });
        }
    }
    Ok(tensors)
}

fn place(
    info: Info,
    alignment: u64,
    data_offset: u64,
    file_bytes: u64,
) -> Result<(String, GgufTensor), GgufError> {
    let Info { name, dimensions, type_number, offset } = info;
    let Some(weight_type) = weight_type(type_number) else {
        return Err(GgufError::UnsupportedType { tensor: name, found: type_name(type_number) });
    };
    let shape: Option<Vec<usize>> =
        dimensions.iter().rev().map(|&size| usize::try_from(size).ok()).collect();
    let shape = shape.filter(|shape| !shape.is_empty() && !shape.contains(&0));
    let sized = shape.and_then(|shape| Some((weight_type.tensor_bytes(&shape)?, shape)));
    let Some((bytes, shape)) = sized else {
        let weight_type = weight_type.name();
        return Err(GgufError::Shape { tensor: name, dimensions, weight_type });
    };
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Misaligned { tensor: name, offset, alignment });
    }
    let start = data_offset.checked_add(offset);
    let end = start.and_then(|start| start.checked_add(bytes));
    let (Some(offset), Some(end)) = (start, end) else {
        return Err(GgufError::OutOfFile { tensor: name, file_bytes });
    };
    if end > file_bytes {
        return Err(GgufError::OutOfFile { tensor: name, file_bytes });
    }
    Ok((name, GgufTensor { weight_type, shape, offset, bytes, part: 0 }))
}
