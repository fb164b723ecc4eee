//! Tensors of a checkpoint, taken by name with their shapes checked.

use umbel_shard::{Family, ModelConfig, Weight, Weights};

use crate::kernel::{self, Arithmetic};
use crate::operation::linear::Linear;
use crate::operation::rms_norm::RmsNorm;

/// Some tensors of a model and the configuration that says what shape they have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoint<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) weights: &'a Weights,
    /// How its matrices multiply.
    pub(crate) arithmetic: Arithmetic,
}

impl Checkpoint<'_> {
    /// The matrix `{name}.weight` of `[rows, columns]` and, where `bias` says so, `{name}.bias`.
    pub(crate) fn linear(
        &self,
        name: &str,
        [rows, columns]: [usize; 2],
        bias: bool,
    ) -> Result<Linear, LoadTensorError> {
        let weight = self.weight(&format!("{name}.weight"), &[rows, columns])?;
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), rows)).transpose()?;
        Ok(Linear::new(&weight, bias, self.arithmetic))
    }

    /// The norm over `size` values whose weight is `{name}.weight`.
    pub(crate) fn rms_norm(&self, name: &str, size: usize) -> Result<RmsNorm, LoadTensorError> {
        let weight = self.vector(&format!("{name}.weight"), size)?;
        Ok(RmsNorm::new(weight, self.config.rms_norm_eps))
    }

    /// The most recent positions that a token of block `index` attends to; `None` for all.
    pub(crate) fn window(&self, index: u32) -> Option<usize> {
        self.config.attention_windows.get(index as usize).copied().flatten()
    }

    /// The tensor `name`, of exactly the shape `expected`.
    pub(crate) fn weight(&self, name: &str, expected: &[usize]) -> Result<Weight, LoadTensorError> {
        let weight = self.weights.get(name)?;
        if weight.shape() != expected || expected.contains(&0) {
            return Err(LoadTensorError::Shape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: weight.shape().to_vec(),
            });
        }
        Ok(weight.clone())
    }

    /// The values of the vector `name`.
    pub(crate) fn vector(&self, name: &str, size: usize) -> Result<Vec<f32>, LoadTensorError> {
        let weight = self.weight(name, &[size])?;
        let mut values = vec![0.0; size];
        kernel::dequantize_row(weight.weight_type(), weight.bytes(), &mut values);
        Ok(values)
    }
}

/// A tensor that the model needs and the checkpoint does not have as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadTensorError {
    /// No tensor of the name.
    #[error(transparent)]
    Missing(#[from] umbel_shard::MissingTensor),
    /// A tensor of another shape.
    #[error(
        "the checkpoint's tensor {name} has the shape {found:?}; \
         its configuration asks for {expected:?}"
    )]
    Shape {
        /// The tensor.
        name: String,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A family whose blocks have experts, without a word on how many.
    #[error("the configuration says nothing of the experts that models of {family} have")]
    NoExperts {
        /// The family.
        family: Family,
    },
}
