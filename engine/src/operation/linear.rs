//! Multiplication by a weight matrix: floating point or quantized.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use umbel_shard::Weight;

use super::{computed, rows_of, values};
use crate::kernel::packed::Group;
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

    /// What [`Linear::forward`] gives, from values to values.
    pub(crate) fn multiply(&self, input: &[f32]) -> Vec<f32> {
        let [product] = Self::products([self], input);
        product
    }

    /// What each of a group's layers, which have as many columns, makes of its input: for all groups at once,
    /// so that the threads wait for each other once. All have the same arithmetic, and none has a bias.
    pub(crate) fn multiply_groups<const N: usize>(
        groups: &[([&Self; N], &[f32])],
    ) -> Vec<[Vec<f32>; N]> {
        let first = groups.first().and_then(|(layers, _)| layers.first());
        let Some(first) = first else { return Vec::new() };
        let groups = groups.iter().map(|(layers, input)| {
            let alike =
                |layer: &&Self| layer.bias.is_none() && layer.arithmetic == first.arithmetic;
            assert!(layers.iter().all(alike), "no bias is added, and all are multiplied alike");
            Group { matrices: layers.map(|layer| &*layer.weight), input }
        });
        PackedMatrix::group_products(&groups.collect::<Vec<_>>(), first.arithmetic)
    }

    /// The matrix alone.
    pub(crate) fn weight(&self) -> &PackedMatrix {
        &self.weight
    }

    /// The same as it is shared by all clones.
    pub(crate) const fn shared_weight(&self) -> &Arc<PackedMatrix> {
        &self.weight
    }

    /// What is added to each row of the product.
    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Values of an output row.
    pub(crate) fn rows(&self) -> usize {
        self.weight.rows()
    }

    /// Values of an input row.
    pub(crate) fn columns(&self) -> usize {
        self.weight.columns()
    }

    /// What [`Linear::forward`] gives for each of `layers`, which have as many columns and the same
    /// arithmetic: the input is prepared once, and the threads wait for each other once.
    ///
    /// It has no backward pass.
    pub(crate) fn forward_all<const N: usize>(
        layers: [&Self; N],
        input: &Tensor,
    ) -> Result<[Tensor; N]> {
        let (storage, layout) = input.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            return Err(candle_core::Error::Msg("a tensor of another device".into()).bt());
        };
        let tokens = rows_of("linear", layout, layers[0].weight.columns())?;
        let products = Self::products(layers, values("linear", storage, layout)?);
        let mut tensors = layers.iter().zip(products).map(|(layer, product)| {
            Tensor::from_vec(product, (tokens, layer.weight.rows()), input.device())
        });
        let tensors = tensors.by_ref().collect::<Result<Vec<_>>>()?;
        Ok(tensors.try_into().expect("there is a tensor for each layer"))
    }

    /// For each of `layers`, `[tokens, rows]`.
    fn products<const N: usize>(layers: [&Self; N], input: &[f32]) -> [Vec<f32>; N] {
        let matrices = layers.map(|layer| &*layer.weight);
        let mut products = PackedMatrix::products(matrices, layers[0].arithmetic, input);
        for (product, layer) in products.iter_mut().zip(layers) {
            let Some(bias) = &layer.bias else {
                continue;
            };
            for row in product.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(&**bias).for_each(|(value, bias)| *value += bias);
            }
        }
        products
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let tokens = rows_of(self.name(), layout, self.weight.columns())?;
        let [product] = Self::products([self], values(self.name(), storage, layout)?);
        Ok(computed(product, tokens, self.weight.rows()))
    }
}
