//! Root mean square normalization (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{computed, values};
use crate::kernel;

/// Divides each group of `weight.len()` values by its root mean square and multiplies by `weight`.
///
/// A row of a tensor may be several groups: the norms of queries and keys have one for each head.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    weight: Arc<[f32]>,
    epsilon: f32,
}

impl RmsNorm {
    pub(crate) fn new(weight: Vec<f32>, epsilon: f32) -> Self {
        assert!(!weight.is_empty(), "a norm is over some values");
        Self { weight: weight.into(), epsilon }
    }

    /// Keeps the shape of `input`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        input.apply_op1(self.clone())
    }

    /// What [`RmsNorm::forward`] gives, from values to values.
    pub(crate) fn apply(&self, input: &[f32]) -> Vec<f32> {
        let mut output = vec![0.0; input.len()];
        kernel::rms_norm(input, &self.weight, self.epsilon, &mut output);
        output
    }

    /// What the normed values are multiplied by.
    pub(crate) fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// What is added to the mean square.
    pub(crate) const fn epsilon(&self) -> f32 {
        self.epsilon
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, columns) = layout.shape().dims2()?;
        let groups = columns / self.weight.len();
        super::rows_of(self.name(), layout, groups * self.weight.len())?;
        let output = self.apply(values(self.name(), storage, layout)?);
        Ok(computed(output, tokens, columns))
    }
}
