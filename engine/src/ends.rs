//! The two ends of a model, which a client keeps: embedding before the first block, final norm and
//! head after the last. Servers see hidden states only, never ids or text.

use std::fmt;

use umbel_shard::layout::{EMBEDDING, FINAL_NORM, HEAD};
use umbel_shard::{ModelConfig, Weight, Weights};

use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::device::Device;
use crate::hidden::HiddenStates;
use crate::kernel::{self, Arithmetic};
use crate::operation::linear::Linear;
use crate::operation::rms_norm::RmsNorm;

/// Embedding, final norm and head of a model. A clone shares the weights.
#[derive(Clone)]
pub struct Ends {
    embed_tokens: Weight,
    norm: RmsNorm,
    lm_head: Linear,
    device: Device,
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
        let checkpoint = Checkpoint { config, weights, arithmetic };
        let matrix = [config.vocabulary_size, config.hidden_size];
        let head = if config.tied_embeddings { EMBEDDING } else { HEAD };
        Ok(Self {
            embed_tokens: checkpoint.weight(EMBEDDING, &matrix)?,
            norm: checkpoint.rms_norm(stem(FINAL_NORM), config.hidden_size)?,
            lm_head: checkpoint.linear(stem(head), matrix, false)?,
            device: Device::shared(),
        })
    }

    /// The same ends, computed by `device` instead of the process's shared threads.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Where the ends are computed.
    pub(crate) const fn device(&self) -> &Device {
        &self.device
    }

    /// What stands between the last block and the logits.
    pub(crate) const fn norm_and_head(&self) -> (&RmsNorm, &Linear) {
        (&self.norm, &self.lm_head)
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

    /// What the head is given for each token of `hidden`, which left the last block.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn normed(&self, hidden: &HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        self.check(hidden)?;
        let rows = self.device.run(|| self.norm.forward(hidden.tensor())?.to_vec2())?;
        Ok(rows)
    }

    fn check(&self, hidden: &HiddenStates) -> Result<(), EndsError> {
        let (expected, found) = (self.hidden_size(), hidden.hidden_size());
        if expected == found {
            return Ok(());
        }
        Err(EndsError::WrongHiddenSize { expected, found })
    }

    /// What the model says of the token after the last one of `hidden`, which left the last block:
    /// a logit for each token of the vocabulary.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn logits(&self, hidden: &HiddenStates) -> Result<Vec<f32>, EndsError> {
        let mut rows = self.logits_of_all(&hidden.last_row())?;
        Ok(rows.pop().expect("hidden states have a token"))
    }

    /// As [`Ends::logits`], for every token of `hidden`.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn logits_of_all(&self, hidden: &HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        self.check(hidden)?;
        let logits = self.device.run(|| {
            let normed = self.norm.forward(hidden.tensor())?;
            self.lm_head.forward(&normed)?.to_vec2()
        })?;
        Ok(logits)
    }

    /// As [`Ends::logits_of_all`] for each of several sessions: the head reads its weights once for
    /// the tokens of all. No bit of a result differs from what the session alone would get, and the
    /// error of one is none of the others'.
    #[must_use]
    pub fn logits_of_each(&self, hidden: &[HiddenStates]) -> Vec<Result<Vec<Vec<f32>>, EndsError>> {
        let is_sound = |hidden: &HiddenStates| hidden.hidden_size() == self.hidden_size();
        let sound: Vec<_> = hidden.iter().filter(|hidden| is_sound(hidden)).cloned().collect();
        let together = HiddenStates::concat(&sound).ok().map(|all| self.logits_of_all(&all));
        let mut rows = together.and_then(Result::ok).map(Vec::into_iter);
        let results = hidden.iter().map(|hidden| match &mut rows {
            Some(rows) if is_sound(hidden) => {
                Ok(rows.by_ref().take(hidden.token_count()).collect())
            }
            // With an error of its own.
            Some(_) | None => self.logits_of_all(hidden),
        });
        results.collect()
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

/// A tensor's name without the `.weight` at its end.
fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").expect("the names of matrices and norms end so")
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ends({} tokens, hidden size {})", self.vocabulary_size(), self.hidden_size())
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
}
