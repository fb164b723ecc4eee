//! What stands after the last block.

use std::fmt;

use umbel_shard::layout::{EMBEDDING, FINAL_NORM, HEAD};
use umbel_shard::{ModelConfig, Weights};

use super::{EndsError, check, of_each};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::hidden::HiddenStates;
use crate::kernel::Arithmetic;
use crate::operation::linear::Linear;
use crate::operation::rms_norm::RmsNorm;

/// Final norm and head of a model. A clone shares the weights.
#[derive(Clone)]
pub struct Head {
    norm: RmsNorm,
    lm_head: Linear,
    hidden_size: usize,
}

impl Head {
    /// Takes final norm and head out of `weights`; where the head is tied to the embedding, that is
    /// among them.
    ///
    /// # Errors
    /// [`LoadTensorError`] where a tensor is missing or has another shape than `config` asks for.
    pub fn load(config: &ModelConfig, weights: &Weights) -> Result<Self, LoadTensorError> {
        Self::load_with(Arithmetic::default(), config, weights)
    }

    /// As [`Head::load`], with activations multiplied as `arithmetic` says.
    ///
    /// # Errors
    /// As [`Head::load`].
    pub fn load_with(
        arithmetic: Arithmetic,
        config: &ModelConfig,
        weights: &Weights,
    ) -> Result<Self, LoadTensorError> {
        let checkpoint = Checkpoint { config, weights, arithmetic };
        let matrix = [config.vocabulary_size, config.hidden_size];
        let head = if config.tied_embeddings { EMBEDDING } else { HEAD };
        Ok(Self {
            norm: checkpoint.rms_norm(stem(FINAL_NORM), config.hidden_size)?,
            lm_head: checkpoint.linear(stem(head), matrix, false)?,
            hidden_size: config.hidden_size,
        })
    }

    pub(super) const fn norm_and_linear(&self) -> (&RmsNorm, &Linear) {
        (&self.norm, &self.lm_head)
    }

    /// What the head is given for each token of `hidden`, which left the last block.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn normed(&self, hidden: &HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        check(hidden, self.hidden_size)?;
        Ok(self.norm.forward(hidden.tensor())?.to_vec2()?)
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

    /// As [`Head::logits`], for every token of `hidden`.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub fn logits_of_all(&self, hidden: &HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        check(hidden, self.hidden_size)?;
        let normed = self.norm.forward(hidden.tensor())?;
        Ok(self.lm_head.forward(&normed)?.to_vec2()?)
    }

    /// As [`Head::logits_of_all`] for each of several sessions: the head reads its weights once for
    /// the tokens of all. No bit of a result differs from what the session alone would get, and the
    /// error of one is none of the others'.
    #[must_use]
    pub fn logits_of_each(&self, hidden: &[HiddenStates]) -> Vec<Result<Vec<Vec<f32>>, EndsError>> {
        of_each(hidden, self.hidden_size, |hidden| self.logits_of_all(hidden))
    }
}

/// A tensor's name without the `.weight` at its end.
fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").expect("the names of matrices and norms end so")
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head(hidden size {})", self.hidden_size)
    }
}
