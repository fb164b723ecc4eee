//! safetensors, the file format of Hugging Face checkpoints:
//! <https://github.com/huggingface/safetensors#format>.
//!
//! A file is the length of its header (8 bytes), the header (JSON: for each tensor its type, shape
//! and the range of its bytes), and the tensors' bytes without gaps. The header is decoded here and
//! not by the `safetensors` crate because a message should say which tensor is broken, because
//! tensors of a type that nobody asks for should not matter, and because a key that appears twice
//! should not pass.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

mod header;
mod index;

pub use header::{SafetensorsError, SafetensorsHeader, StoredTensor, StoredType, parse_header};
pub use index::{IndexError, WeightIndex};

#[cfg(test)]
mod tests;

/// Reads the header of a file and its length, with ordinary reads: none of its tensors is touched.
pub(crate) fn read_header(path: &Path) -> io::Result<Result<SafetensorsHeader, SafetensorsError>> {
    let mut file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.by_ref().take(header::LENGTH_BYTES).read_to_end(&mut bytes)?;
    match header::header_bytes(&bytes, file_bytes) {
        Ok(length) => file.take(length).read_to_end(&mut bytes)?,
        Err(error) => return Ok(Err(error)),
    };
    Ok(parse_header(&bytes, file_bytes))
}
