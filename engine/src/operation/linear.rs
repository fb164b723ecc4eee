//! Multiplication by a weight matrix: floating point or quantized.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use umbel_shard::Weight;

use super::{computed, rows_of, values};
use crate::kernel::{Arithmetic, PackedMatrix};

/// `input * weight^T + bias`, the `Linear` of PyTorch; its weight is `[rows, columns]`.
///
/// A clone shares the weight. Nothing is dequantized but what a kernel holds in registers.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Arc<PackedMatrix>,
    bias: Option<Arc<[f32]>>,
    arithmetic: Arithmetic,
}

impl Linear {
    /// `bias`, where there is one, has a value for each row of the matrix `weight`.
    pub(crate) fn new(weight: &Weight, bias: Option<Vec<f32>>, arithmetic: Arithmetic) -> Self {
        assert!(bias.as_ref().is_none_or(|bias| bias.len() == weight.rows()), "one bias for a row");
        let weight = Arc::new(PackedMatrix::pack(weight));
        Self { weight, bias: bias.map(Into::into), arithmetic }
    }

    /// From `[tokens, columns]` to `[tokens, rows]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        input.apply_op1(self.clone())
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = (self.weight.rows(), self.weight.columns());
        let tokens = rows_of(self.name(), layout, columns)?;
        let input = values(self.name(), storage, layout)?;
        let mut output = vec![0.0; tokens * rows];
        self.weight.multiply(self.arithmetic, input, &mut output);
        if let Some(bias) = &self.bias {
            for row in output.chunks_exact_mut(rows) {
                row.iter_mut().zip(&**bias).for_each(|(value, bias)| *value += bias);
            }
        }
        Ok(computed(output, tokens, rows))
    }
}
