//! Which tensor is where, with its hash; hence the [`ModelId`].
//!
//! **The hash of a tensor** is SHA-256 over its canonical name and the SHA-256 of the file that
//! carries it. It is not taken over the tensor's own bytes, because a volunteer who fetches only the
//! files of its span could then not know the hashes of the other blocks, and so not the model's id;
//! the digest of a whole file it learns from the hub without fetching it. A hub model of which a
//! part is here, the complete one, and a local folder with the same files have the same id; neither
//! the names of files nor that of the folder matter.
//!
//! **The id of a model** is SHA-256 over, in this order, with numbers of 8 bytes little-endian and
//! texts behind their length: the text `umbel manifest 1`; the length and the bytes of
//! [`ModelConfig::canonical_bytes`](crate::ModelConfig::canonical_bytes); the name of the quantization (`safetensors` where values are as
//! they were trained); and for both ends together, then for each block, the number of tensors and in
//! the order of their names the name and the hash of each. Digests of files are computed once and
//! kept in the cache's index.

use std::collections::BTreeMap;

use umbel_protocol::ModelId;

use crate::weight::WeightType;

mod build;

pub use build::ManifestError;
pub(crate) use build::{FoundInFile, FoundTensor, Quantization};

/// SHA-256 of a file or of a tensor's identity.
pub type Sha256Digest = [u8; 32];

/// Every tensor of a model, whether its file is here or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    files: Vec<ManifestFile>,
    embedding: Vec<ManifestTensor>,
    blocks: Vec<Vec<ManifestTensor>>,
    head: Vec<ManifestTensor>,
    quantization: String,
    id: ModelId,
}

/// A file that carries tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its name, without a folder.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: Sha256Digest,
    /// Its length, where it is known.
    pub bytes: Option<u64>,
}

/// A tensor of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestTensor {
    /// Its canonical name.
    pub name: String,
    /// Values along each dimension, the slowest first.
    pub shape: Vec<usize>,
    /// The file that carries it, by its index in [`Manifest::files`].
    pub file: usize,
    /// Its hash, as the module's documentation defines it.
    pub hash: Sha256Digest,
    /// Where it lies in its file; `None` where the file is not here.
    pub place: Option<TensorPlace>,
    /// Bytes of its values: exact where [`Self::place`] is known, else estimated from the length of
    /// its file.
    pub bytes: u64,
    /// The heads whose rows must be put back in order when it is loaded.
    pub(crate) permuted_heads: Option<usize>,
}

/// Where a tensor lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorPlace {
    /// How its values are written.
    pub weight_type: WeightType,
    /// Where it begins, counted from the start of the file.
    pub offset: u64,
}

impl Manifest {
    /// The model's id.
    #[must_use]
    pub const fn id(&self) -> ModelId {
        self.id
    }

    /// How most weights are written, as people name it: `Q4_K_M`, `BF16`.
    #[must_use]
    pub fn quantization(&self) -> &str {
        &self.quantization
    }

    /// The files that carry the tensors.
    #[must_use]
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// The tensors of the embedding.
    #[must_use]
    pub fn embedding(&self) -> &[ManifestTensor] {
        &self.embedding
    }

    /// The final norm and the head; a tied embedding is here as well.
    #[must_use]
    pub fn head(&self) -> &[ManifestTensor] {
        &self.head
    }

    /// The tensors of block `index`; `None` where there is no such block.
    #[must_use]
    pub fn block(&self, index: u32) -> Option<&[ManifestTensor]> {
        self.blocks.get(index as usize).map(Vec::as_slice)
    }

    /// Bytes of the tensors of block `index`; 0 where there is no such block.
    #[must_use]
    pub fn block_bytes(&self, index: u32) -> u64 {
        bytes_of(self.block(index).unwrap_or_default())
    }

    /// Bytes of each block, in order: what [`blocks_that_fit`](crate::blocks_that_fit) asks for.
    #[must_use]
    pub fn blocks_bytes(&self) -> Vec<u64> {
        self.blocks.iter().map(|tensors| bytes_of(tensors)).collect()
    }

    /// Bytes of both ends; a matrix that they share counts once.
    #[must_use]
    pub fn ends_bytes(&self) -> u64 {
        self.ends().values().map(|tensor| tensor.bytes).sum()
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.ends_bytes() + self.blocks_bytes().iter().sum::<u64>()
    }

    fn ends(&self) -> BTreeMap<&str, &ManifestTensor> {
        self.embedding.iter().chain(&self.head).map(|one| (one.name.as_str(), one)).collect()
    }
}

fn bytes_of(tensors: &[ManifestTensor]) -> u64 {
    tensors.iter().map(|tensor| tensor.bytes).sum()
}
