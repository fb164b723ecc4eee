//! A frozen matrix with what an adapter adds to it (Hu et al. 2021,
//! <https://arxiv.org/abs/2106.09685>): `y = W x + b + scale B A dropout(x)`.

use std::borrow::Cow;

use super::adapter::LoraMatrices;
use super::dense::{times, times_transposed, transposed_times};
use super::dropout::Mask;
use crate::kernel::add_transposed;
use crate::operation::linear::Linear;

/// Tokens between two pauses: with so many, a product takes about as long as reading its matrix from
/// memory, which is what one that decodes waits for anyway.
const PAUSE_TOKENS: usize = 64;

/// One matrix of a block during training.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    pub(super) linear: &'a Linear,
    /// `None` where the module is no target of the adapter.
    pub(super) lora: Option<Lora<'a>>,
    /// Called between parts of the work.
    pub(super) pause: &'a dyn Fn(),
}

/// What an adapter adds to a matrix.
#[derive(Clone, Copy)]
pub(super) struct Lora<'a> {
    pub(super) matrices: &'a LoraMatrices,
    pub(super) scale: f32,
    pub(super) mask: Option<Mask<'a>>,
}

impl Layer<'_> {
    /// From `[tokens, columns]` to `[tokens, rows]`.
    pub(super) fn forward(&self, input: &[f32]) -> Vec<f32> {
        let mut output =
            Vec::with_capacity(input.len() / self.linear.columns() * self.linear.rows());
        for input in input.chunks(PAUSE_TOKENS * self.linear.columns()) {
            output.extend_from_slice(&self.linear.multiply(input));
            (self.pause)();
        }
        if let Some(lora) = self.lora {
            let input = lora.masked(input, self.linear.columns());
            let inner = times_transposed(&input, &lora.matrices.a, self.linear.columns());
            (self.pause)();
            let added = times_transposed(&inner, &lora.matrices.b, lora.matrices.rank());
            let values = output.iter_mut().zip(&added);
            values.for_each(|(output, added)| *output += lora.scale * added);
            (self.pause)();
        }
        output
    }

    /// From the gradient of the output: adds that of `input` to `of_input`, and returns those of the
    /// adapter's matrices.
    pub(super) fn backward(
        &self,
        input: &[f32],
        gradient: &[f32],
        of_input: &mut [f32],
    ) -> Option<LoraMatrices> {
        let (columns, rows) = (self.linear.columns(), self.linear.rows());
        let parts = gradient.chunks(PAUSE_TOKENS * rows);
        for (gradient, of_input) in parts.zip(of_input.chunks_mut(PAUSE_TOKENS * columns)) {
            add_transposed(self.linear.weight(), gradient, of_input);
            (self.pause)();
        }
        let lora = self.lora?;
        let rank = lora.matrices.rank();
        let input = lora.masked(input, columns);
        let mut inner = times_transposed(&input, &lora.matrices.a, columns);
        (self.pause)();
        inner.iter_mut().for_each(|value| *value *= lora.scale);
        let mut of_inner = times(gradient, &lora.matrices.b, rank);
        (self.pause)();
        of_inner.iter_mut().for_each(|value| *value *= lora.scale);
        let mut through = times(&of_inner, &lora.matrices.a, columns);
        (self.pause)();
        if let Some(mask) = lora.mask {
            mask.apply(&mut through, columns);
        }
        of_input.iter_mut().zip(&through).for_each(|(of_input, through)| *of_input += through);
        let a = transposed_times(&of_inner, rank, &input, columns);
        (self.pause)();
        let b = transposed_times(gradient, rows, &inner, rank);
        (self.pause)();
        Some(LoraMatrices::new(a, b, rank))
    }
}

impl Lora<'_> {
    fn masked<'a>(&self, input: &'a [f32], columns: usize) -> Cow<'a, [f32]> {
        let Some(mask) = self.mask else { return Cow::Borrowed(input) };
        let mut input = input.to_vec();
        mask.apply(&mut input, columns);
        Cow::Owned(input)
    }
}
