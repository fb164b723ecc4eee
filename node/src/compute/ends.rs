//! The ends of a model on a server: what thin sessions need of it besides its blocks.

use umbel_coordinator::server::{ComputeFailure, DrawJob};
use umbel_engine::{
    Embedding, EndsError, GpuError, GpuHead, Head, HiddenStates, InvalidSampling, Sampler, Sampling,
};
use umbel_protocol::Tensor;
use umbel_protocol::error::ErrorCode;

use super::internal;

/// Rows of which logits are computed together: beyond some dozens, arithmetic and not the reading of
/// the weights is what takes time, and 64 rows of the largest vocabularies are 40 MB.
const ROWS_MAX: usize = 64;

/// The ends that a server holds: those that its blocks touch, or none.
#[derive(Debug, Clone, Default)]
pub struct ShardEnds {
    /// Where it has the first block.
    pub embedding: Option<Embedding>,
    /// Where it has the last block.
    pub head: Option<ServedHead>,
}

/// A head, where its matrix is.
#[derive(Debug, Clone)]
pub enum ServedHead {
    /// In the processor's memory.
    Processor(Head),
    /// In a GPU's.
    Gpu(GpuHead),
}

impl ServedHead {
    fn logits_of_each(&self, rows: &[HiddenStates]) -> Vec<Result<Vec<Vec<f32>>, EndsError>> {
        match self {
            Self::Processor(head) => head.logits_of_each(rows),
            Self::Gpu(head) => head.logits_of_each(rows),
        }
    }
}

/// A token that was not drawn.
pub(super) enum DrawError {
    /// The GPU failed.
    Gpu(GpuError),
    /// What the client hears.
    Failed(ComputeFailure),
}

impl From<ComputeFailure> for DrawError {
    fn from(failure: ComputeFailure) -> Self {
        Self::Failed(failure)
    }
}

impl ShardEnds {
    /// What enters the first block for these ids.
    pub(super) fn embed(&self, ids: &[u32]) -> Result<HiddenStates, ComputeFailure> {
        let embedding = self.embedding.as_ref().ok_or_else(|| missing("embedding"))?;
        embedding.embed(ids).map_err(|error| ComputeFailure {
            code: ErrorCode::WrongShape,
            detail: error.to_string(),
        })
    }

    /// The tokens that are drawn from these rows, each `[1, hidden]`: the head reads its weights once
    /// for many.
    pub(super) fn draw(
        &self,
        draws: &[&DrawJob],
        rows: &[HiddenStates],
    ) -> Vec<Result<Tensor, DrawError>> {
        let Some(head) = &self.head else {
            return draws.iter().map(|_| Err(missing("head").into())).collect();
        };
        let logits = rows.chunks(ROWS_MAX).flat_map(|rows| head.logits_of_each(rows));
        let drawn = draws.iter().zip(logits).map(|(draw, logits)| {
            let mut rows = logits.map_err(|error| match error {
                EndsError::Gpu(error) => DrawError::Gpu(error),
                other @ (EndsError::NoToken
                | EndsError::UnknownToken { .. }
                | EndsError::WrongHiddenSize { .. }
                | EndsError::Compute(_)) => internal(other.to_string()).into(),
            })?;
            let mut logits = rows.pop().ok_or_else(|| internal("no row of logits".to_owned()))?;
            let sampler = sampler(draw).map_err(|error| internal(error.to_string()))?;
            let position = u64::from(draw.position);
            let drawn = sampler.sample_at(position, &mut logits, &draw.text);
            Ok(Tensor::of_ids(&[drawn.map_err(|error| internal(error.to_string()))?]))
        });
        drawn.collect()
    }
}

/// Numbers out of their range were refused with the message that brought them.
fn sampler(draw: &DrawJob) -> Result<Sampler, InvalidSampling> {
    let sampling = &draw.sampling;
    Sampler::new(Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k as usize,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        seed: sampling.seed,
    })
}

fn missing(end: &str) -> ComputeFailure {
    internal(format!("the {end} is not held, though a thin session was admitted"))
}
