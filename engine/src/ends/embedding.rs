//! What stands before the first block.

use std::fmt;

use umbel_shard::layout::EMBEDDING;
use umbel_shard::{ModelConfig, Weight, Weights};

use super::EndsError;
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::hidden::HiddenStates;
use crate::kernel::{self, Arithmetic};

/// The embedding of a model. A clone shares the weights, which stay in the file's map: of them few
/// rows are read.
#[derive(Clone)]
pub struct Embedding {
    embed_tokens: Weight,
}

impl Embedding {
    /// Takes the embedding out of `weights`.
    ///
    /// # Errors
    /// [`LoadTensorError`] where it is missing or has another shape than `config` asks for.
    pub fn load(config: &ModelConfig, weights: &Weights) -> Result<Self, LoadTensorError> {
        let checkpoint = Checkpoint { config, weights, arithmetic: Arithmetic::default() };
        let matrix = [config.vocabulary_size, config.hidden_size];
        Ok(Self { embed_tokens: checkpoint.weight(EMBEDDING, &matrix)? })
    }

    /// What enters the first block for these tokens: `[ids, hidden]`.
    ///
    /// # Errors
    /// [`EndsError`] where there is no id, or one that the vocabulary lacks.
    pub fn embed(&self, ids: &[u32]) -> Result<HiddenStates, EndsError> {
        if ids.is_empty() {
            return Err(EndsError::NoToken);
        }
        let vocabulary_size = self.vocabulary_size();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary_size) {
            return Err(EndsError::UnknownToken { id, vocabulary_size });
        }
        let (hidden_size, row_bytes) = (self.hidden_size(), self.embed_tokens.row_bytes());
        let mut values = vec![0.0; ids.len() * hidden_size];
        for (row, &id) in values.chunks_exact_mut(hidden_size).zip(ids) {
            let start = id as usize * row_bytes;
            let bytes = &self.embed_tokens.bytes()[start..start + row_bytes];
            kernel::dequantize_row(self.embed_tokens.weight_type(), bytes, row);
        }
        Ok(HiddenStates::from_values(values, hidden_size).expect("there is a row for each id"))
    }

    /// How many tokens the model knows.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.embed_tokens.rows()
    }

    /// Values of one token between the blocks.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.embed_tokens.columns()
    }
}

impl fmt::Debug for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tokens, hidden) = (self.vocabulary_size(), self.hidden_size());
        write!(f, "Embedding({tokens} tokens, hidden size {hidden})")
    }
}
