//! What stands after the last block, in a GPU's memory.

use std::fmt;

use umbel_shard::layout::{EMBEDDING, FINAL_NORM, HEAD};
use umbel_shard::{ModelConfig, Weights};

use super::{EndsError, check, of_each};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::cuda::{CudaError, Gpu, HEAD_ROWS_TOGETHER, HeadOnGpu};
use crate::hidden::HiddenStates;
use crate::kernel::Arithmetic;
use crate::operation;
use crate::span::GpuError;

/// As [`Head`](super::Head), on a GPU: where the head is in binary32 it is computed in it, else what it
/// multiplies is rounded to bfloat16, and quantized weights are where they are unpacked. A clone shares
/// the weights.
#[derive(Clone)]
pub struct GpuHead {
    head: HeadOnGpu,
}

impl GpuHead {
    /// Takes final norm and head out of `weights`, as [`Head::load`](super::Head::load), into the memory
    /// of `gpu`, with all that computing logits will need.
    ///
    /// # Errors
    /// [`LoadHeadError`] where a tensor is missing or has another shape than `config` asks for, or the
    /// device has no room.
    pub fn load(gpu: &Gpu, config: &ModelConfig, weights: &Weights) -> Result<Self, LoadHeadError> {
        let checkpoint = Checkpoint { config, weights, arithmetic: Arithmetic::default() };
        let matrix = [config.vocabulary_size, config.hidden_size];
        let name = if config.tied_embeddings { EMBEDDING } else { HEAD };
        let norm = checkpoint.vector(FINAL_NORM, config.hidden_size)?;
        let weight = checkpoint.weight(name, &matrix)?;
        let head = HeadOnGpu::load(gpu, (&norm, config.rms_norm_eps), &weight)?;
        // Of an embedding rows are read as before.
        if !config.tied_embeddings {
            weight.release();
        }
        Ok(Self { head })
    }

    /// Bytes of a device's memory that the head of a model takes beside its weights: rows that are
    /// computed together.
    #[must_use]
    pub const fn room_bytes(config: &ModelConfig) -> usize {
        let values = 2 * config.hidden_size + config.vocabulary_size;
        values * HEAD_ROWS_TOGETHER * size_of::<f32>()
    }

    /// As [`Head::logits_of_all`](super::Head::logits_of_all).
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model, or the device is lost.
    pub fn logits_of_all(&self, hidden: &HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        check(hidden, self.head.hidden_size())?;
        let logits = operation::with_values(hidden.tensor(), |rows| self.head.logits(rows))?;
        Ok(logits.map_err(GpuError::from)?)
    }

    /// As [`Head::logits_of_each`](super::Head::logits_of_each).
    #[must_use]
    pub fn logits_of_each(&self, hidden: &[HiddenStates]) -> Vec<Result<Vec<Vec<f32>>, EndsError>> {
        of_each(hidden, self.head.hidden_size(), |hidden| self.logits_of_all(hidden))
    }
}

impl fmt::Debug for GpuHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuHead({:?})", self.head)
    }
}

/// A head that is not on the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadHeadError {
    /// A tensor is missing or has another shape.
    #[error(transparent)]
    Tensor(#[from] LoadTensorError),
    /// The GPU has no memory for it, or is lost.
    #[error("the head cannot be put on the GPU")]
    Gpu(#[from] CudaError),
}
