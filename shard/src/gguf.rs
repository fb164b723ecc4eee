//! GGUF, the file format of llama.cpp: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! A file is a header (metadata, then the list of tensors) and the tensors' bytes. Versions 2 and 3
//! are read, little-endian. Every count and length in the header is held against what the file can
//! hold and against a limit before anything is allocated.
//!
//! Files of the architecture `llama` keep the rows of `q` and `k` in the order in which the rotary
//! embedding of llama.cpp turns neighbours; [`unpermute_rows`] puts them back, so that the engine
//! sees one layout.

use std::collections::BTreeMap;

use crate::weight::WeightType;

mod convert;
mod cursor;
mod error;
mod ggml_type;
mod header;
mod random;
mod rows;
mod value;
pub mod write;

pub use convert::ConvertError;
pub use error::GgufError;
pub use ggml_type::{file_type_name, type_name};
pub use header::parse_header;
pub use rows::{permute_rows, unpermute_rows};
pub use value::{Array, Texts, Value};

#[cfg(test)]
mod tests;

/// What stands before the tensors' bytes in a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufHeader {
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl GgufHeader {
    /// The version of the format: 2 or 3.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// What the file says of the model, by key.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The tensors by their names in the file.
    #[must_use]
    pub const fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// Takes in the tensors of another part of the model, which is in its file number `part`; whether none
    /// of them was there already.
    pub(crate) fn join(&mut self, other: Self, part: usize) -> bool {
        let before = self.tensors.len();
        let count = other.tensors.len();
        let others = other.tensors.into_iter();
        self.tensors.extend(others.map(|(name, tensor)| (name, GgufTensor { part, ..tensor })));
        self.tensors.len() == before + count
    }
}

/// One tensor in a GGUF file; its bytes lie wholly in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// How its values are written.
    pub weight_type: WeightType,
    /// Values along each dimension, the slowest first (the file has the fastest first).
    pub shape: Vec<usize>,
    /// Where its bytes begin, counted from the start of the file.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
    /// The file that it is in, of a model in several; 0 in a header that is read alone.
    pub part: usize,
}
