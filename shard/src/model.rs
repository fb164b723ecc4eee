//! An opened model, and the tensors of its parts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use umbel_protocol::ModelId;

use crate::config::ModelConfig;
use crate::gguf::unpermute_rows;
use crate::manifest::{Manifest, ManifestTensor};
use crate::mapping::Mapping;
use crate::part::Part;
use crate::plan::SpanOutside;
use crate::tokenizer::{SpecialTokens, TextParts, TokenizerSource};
use crate::weight::{Weight, Weights};

mod error;
mod open;

pub use error::OpenModelError;

#[cfg(test)]
pub(crate) mod tests;

/// A model whose configuration and manifest are known, and whose files are here in part or whole.
#[derive(Debug, Clone)]
pub struct Model {
    name: String,
    config: ModelConfig,
    manifest: Manifest,
    /// The path of each file of the manifest; `None` where it is not here.
    paths: Vec<Option<PathBuf>>,
    text: TextParts,
}

impl Model {
    /// How the model is called: the name in the catalogue, the repository, or the file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What decides the arithmetic.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor and its hash.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The hash of the manifest.
    #[must_use]
    pub const fn id(&self) -> ModelId {
        self.manifest.id()
    }

    /// The GGUF file of the model, where it is one and is here; the first, where it is in parts.
    #[must_use]
    pub fn gguf_path(&self) -> Option<&Path> {
        let path = self.paths.first()?.as_deref()?;
        path.extension()?.eq_ignore_ascii_case("gguf").then_some(path)
    }

    /// Where the tokenizer is; `None` where there is none, or it was not asked for.
    #[must_use]
    pub const fn tokenizer(&self) -> Option<&TokenizerSource> {
        self.text.tokenizer.as_ref()
    }

    /// The chat template, in the language of Jinja.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.text.chat_template.as_deref()
    }

    /// The chat template for conversations in which the model may ask for functions, where it has one for
    /// these alone.
    #[must_use]
    pub fn tool_template(&self) -> Option<&str> {
        self.text.tool_template.as_deref()
    }

    /// The texts of the special tokens.
    #[must_use]
    pub const fn special_tokens(&self) -> &SpecialTokens {
        &self.text.special_tokens
    }

    /// Maps the tensors of one part into memory.
    ///
    /// Nothing is read until it is touched, but for the q and k rows of GGUF files of the
    /// architecture `llama`, which are copied into the order that the engine expects.
    ///
    /// # Errors
    /// [`LoadError`] where the part is not in the model, its file was not asked for when the model
    /// was opened, or the file has changed since.
    pub fn weights(&self, part: Part) -> Result<Weights, LoadError> {
        let tensors: Vec<&ManifestTensor> = match part {
            Part::Embedding => self.manifest.embedding().iter().collect(),
            Part::Head => self.manifest.head().iter().collect(),
            Part::Blocks(span) => {
                let block_count = self.config.block_count;
                let outside = SpanOutside { span, block_count };
                let blocks = span.blocks().map(|index| self.manifest.block(index));
                let blocks: Option<Vec<&[ManifestTensor]>> = blocks.collect();
                blocks.ok_or(outside)?.into_iter().flatten().collect()
            }
        };
        let mut mappings = BTreeMap::new();
        tensors.into_iter().map(|tensor| self.load(tensor, &mut mappings)).collect()
    }

    fn load(
        &self,
        tensor: &ManifestTensor,
        mappings: &mut BTreeMap<usize, Arc<Mapping>>,
    ) -> Result<(String, Weight), LoadError> {
        let (Some(place), Some(Some(path))) = (tensor.place, self.paths.get(tensor.file)) else {
            let file = self.manifest.files()[tensor.file].name.clone();
            return Err(LoadError::NotFetched { tensor: tensor.name.clone(), file });
        };
        let mapping = match mappings.get(&tensor.file) {
            Some(mapping) => Arc::clone(mapping),
            None => {
                let mapping = Mapping::open(path)
                    .map_err(|source| LoadError::Io { path: path.clone(), source })?;
                Arc::clone(mappings.entry(tensor.file).or_insert(Arc::new(mapping)))
            }
        };
        let changed = || LoadError::Changed { tensor: tensor.name.clone(), path: path.clone() };
        let shape = tensor.shape.clone();
        let weight =
            Weight::mapped(place.weight_type, shape, &mapping, place.offset).ok_or_else(changed)?;
        let Some(heads) = tensor.permuted_heads else {
            return Ok((tensor.name.clone(), weight));
        };
        // A bias is a vector, of which each value is a row.
        let row_bytes = match weight.shape() {
            [_] => place.weight_type.block_bytes(),
            _ => weight.row_bytes(),
        };
        // Read, not touched in the map: else the rows would be resident twice.
        let stored = read_range(path, place.offset, weight.bytes().len())
            .map_err(|source| LoadError::Io { path: path.clone(), source })?;
        let rows = unpermute_rows(&stored, row_bytes, heads).ok_or_else(changed)?;
        let weight =
            Weight::new(place.weight_type, tensor.shape.clone(), rows).map_err(|_| changed())?;
        Ok((tensor.name.clone(), weight))
    }
}

/// Bytes of a file, by an ordinary read.
fn read_range(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A part whose tensors could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Blocks that the model does not have.
    #[error(transparent)]
    SpanOutside(#[from] SpanOutside),
    /// A file that was not asked for when the model was opened.
    #[error(
        "{file}, which has the tensor {tensor}, was not fetched: open the model with this part"
    )]
    NotFetched {
        /// The tensor's canonical name.
        tensor: String,
        /// The file that carries it.
        file: String,
    },
    /// A file that cannot be mapped or read.
    #[error("cannot load from {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that is no longer what it was when the model was opened.
    #[error("{} has changed since the model was opened: tensor {tensor} is no longer there", .path.display())]
    Changed {
        /// The tensor's canonical name.
        tensor: String,
        /// The file.
        path: PathBuf,
    },
}
