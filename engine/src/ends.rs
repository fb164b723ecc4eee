//! The two ends of a model: embedding before the first block, final norm and head after the last. A
//! client keeps them, so that servers see hidden states only, never ids or text; in a thin session
//! the first server has the one and the last server the other.

mod embedding;
mod gpu_head;
mod head;

use umbel_shard::{ModelConfig, Weights};

use crate::checkpoint::LoadTensorError;
use crate::hidden::HiddenStates;
use crate::kernel::Arithmetic;
use crate::operation::linear::Linear;
use crate::operation::rms_norm::RmsNorm;
use crate::span::GpuError;

pub use embedding::Embedding;
pub use gpu_head::{GpuHead, LoadHeadError};
pub use head::Head;

/// Embedding, final norm and head of a model. A clone shares the weights.
#[derive(Debug, Clone)]
pub struct Ends {
    embedding: Embedding,
    head: Head,
}

impl Ends {
    /// Takes the ends out of `weights`: the embedding, of which few rows are read, is shared, and the
    /// head is packed for this machine, or shared where the kernels take it as it is. Where they are
    /// tied they are one matrix in the file.
    ///
    /// # Errors
    /// [`LoadTensorError`] where a tensor is missing or has another shape than `config` asks for.
    pub fn load(config: &ModelConfig, weights: &Weights) -> Result<Self, LoadTensorError> {
        Self::load_with(Arithmetic::default(), config, weights)
    }

    /// As [`Ends::load`], with activations multiplied as `arithmetic` says.
    ///
    /// # Errors
    /// As [`Ends::load`].
    pub fn load_with(
        arithmetic: Arithmetic,
        config: &ModelConfig,
        weights: &Weights,
    ) -> Result<Self, LoadTensorError> {
        Ok(Self {
            embedding: Embedding::load(config, weights)?,
            head: Head::load_with(arithmetic, config, weights)?,
        })
    }

    /// What stands between the last block and the logits.
    pub(crate) const fn norm_and_head(&self) -> (&RmsNorm, &Linear) {
        self.head.norm_and_linear()
    }

    /// What enters the first block for these tokens: `[ids, hidden]`.
    ///
    /// # Errors
    /// [`EndsError`] where there is no id, or one that the vocabulary lacks.
    pub fn embed(&self, ids: &[u32]) -> Result<HiddenStates, EndsError> {
        self.embedding.embed(ids)
    }

    /// As [`Head::normed`].
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn normed(&self, hidden: &HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        self.head.normed(hidden)
    }

    /// As [`Head::logits`].
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn logits(&self, hidden: &HiddenStates) -> Result<Vec<f32>, EndsError> {
        self.head.logits(hidden)
    }

    /// As [`Head::logits_of_all`].
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn logits_of_all(&self, hidden: &HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        self.head.logits_of_all(hidden)
    }

    /// As [`Head::logits_of_each`].
    #[must_use]
    pub fn logits_of_each(&self, hidden: &[HiddenStates]) -> Vec<Result<Vec<Vec<f32>>, EndsError>> {
        self.head.logits_of_each(hidden)
    }

    /// How many tokens the model knows.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.embedding.vocabulary_size()
    }

    /// Values of one token between the blocks.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.embedding.hidden_size()
    }
}

/// Ids or hidden states that the ends of this model cannot take.
#[derive(Debug, thiserror::Error)]
pub enum EndsError {
    /// Nothing to embed.
    #[error("no token to embed: the prompt is empty")]
    NoToken,
    /// An id beyond the vocabulary.
    #[error("token id {id} is not in the vocabulary of {vocabulary_size} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// How many tokens the model knows.
        vocabulary_size: usize,
    },
    /// Hidden states of another model.
    #[error("hidden states have {found} values a token; this model has {expected}")]
    WrongHiddenSize {
        /// Values of one token in this model.
        expected: usize,
        /// Values of one token in the input.
        found: usize,
    },
    /// The tensor library refused; a bug of ours or memory that ran out.
    #[error("the logits could not be computed")]
    Compute(#[from] candle_core::Error),
    /// The GPU is lost.
    #[error("the GPU could not compute the logits")]
    Gpu(#[from] GpuError),
}

/// What `all` makes of the rows of several sessions at once, for each of them. The error of one is none
/// of the others'.
fn of_each(
    hidden: &[HiddenStates],
    hidden_size: usize,
    all: impl Fn(&HiddenStates) -> Result<Vec<Vec<f32>>, EndsError>,
) -> Vec<Result<Vec<Vec<f32>>, EndsError>> {
    let is_sound = |hidden: &HiddenStates| hidden.hidden_size() == hidden_size;
    let sound: Vec<_> = hidden.iter().filter(|hidden| is_sound(hidden)).cloned().collect();
    let together = HiddenStates::concat(&sound).ok().map(|together| all(&together));
    let mut rows = together.and_then(Result::ok).map(Vec::into_iter);
    let results = hidden.iter().map(|hidden| match &mut rows {
        Some(rows) if is_sound(hidden) => Ok(rows.by_ref().take(hidden.token_count()).collect()),
        // With an error of its own.
        Some(_) | None => all(hidden),
    });
    results.collect()
}

/// Whether `hidden` has rows of this size.
fn check(hidden: &HiddenStates, expected: usize) -> Result<(), EndsError> {
    let found = hidden.hidden_size();
    if expected == found {
        return Ok(());
    }
    Err(EndsError::WrongHiddenSize { expected, found })
}
