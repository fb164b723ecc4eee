//! A frozen matrix with what an adapter adds to it (Hu et al. 2021,
//! <https://arxiv.org/abs/2106.09685>): `y = W x + b + scale B A dropout(x)`, or rows of that which are scaled
//! to learned norms ([`dora`](super::dora)).

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
        let mut output = self.product(input);
        if let Some(lora) = self.lora {
            let masked = lora.masked(input, self.linear.columns());
            let mut added = self.added(&lora, &masked);
            added.iter_mut().for_each(|added| *added *= lora.scale);
            match lora.matrices.row_scales(self.linear, lora.scale, self.pause) {
                None => output.iter_mut().zip(&added).for_each(|(output, added)| *output += added),
                Some(scales) => {
                    let dropped = lora.mask.map(|_| self.product(&masked));
                    scales.apply(self.linear.bias(), &mut output, dropped.as_deref(), &added);
                }
            }
            (self.pause)();
        }
        output
    }

    /// What the frozen matrix and its bias make of `input`.
    fn product(&self, input: &[f32]) -> Vec<f32> {
        let mut output =
            Vec::with_capacity(input.len() / self.linear.columns() * self.linear.rows());
        for input in input.chunks(PAUSE_TOKENS * self.linear.columns()) {
            output.extend_from_slice(&self.linear.multiply(input));
            (self.pause)();
        }
        output
    }

    /// `B A input`.
    fn added(&self, lora: &Lora<'_>, input: &[f32]) -> Vec<f32> {
        let inner = times_transposed(input, &lora.matrices.a, self.linear.columns());
        (self.pause)();
        times_transposed(&inner, &lora.matrices.b, lora.matrices.rank())
    }

    /// From the gradient of the output: adds that of `input` to `of_input`, and returns those of the
    /// adapter's values.
    pub(super) fn backward(
        &self,
        input: &[f32],
        gradient: &[f32],
        of_input: &mut [f32],
    ) -> Option<LoraMatrices> {
        let Some(lora) = self.lora else {
            self.product_backward(gradient, of_input);
            return None;
        };
        let masked = lora.masked(input, self.linear.columns());
        let Some(scales) = lora.matrices.row_scales(self.linear, lora.scale, self.pause) else {
            self.product_backward(gradient, of_input);
            return Some(self.lora_backward(&lora, &masked, gradient, of_input));
        };
        let of_sum = scales.of_sum(gradient);
        match lora.mask {
            None => self.product_backward(&of_sum, of_input),
            Some(mask) => {
                self.product_backward(gradient, of_input);
                let mut of_dropped = vec![0.0; input.len()];
                self.product_backward(&scales.of_dropped(gradient), &mut of_dropped);
                mask.apply(&mut of_dropped, self.linear.columns());
                add(of_input, &of_dropped);
            }
        }
        let found = self.lora_backward(&lora, &masked, &of_sum, of_input);
        // What a magnitude scales is computed once more: an output lacks it where its factor is zero.
        let base = self.product(&masked);
        let mut added = self.added(&lora, &masked);
        added.iter_mut().for_each(|added| *added *= lora.scale);
        let magnitudes = scales.of_magnitudes(self.linear.bias(), gradient, &base, &added);
        (self.pause)();
        Some(found.with_magnitudes(magnitudes))
    }

    /// Adds to `of_input` what comes back through the frozen matrix.
    fn product_backward(&self, gradient: &[f32], of_input: &mut [f32]) {
        let (columns, rows) = (self.linear.columns(), self.linear.rows());
        let parts = gradient.chunks(PAUSE_TOKENS * rows);
        for (gradient, of_input) in parts.zip(of_input.chunks_mut(PAUSE_TOKENS * columns)) {
            add_transposed(self.linear.weight(), gradient, of_input);
            (self.pause)();
        }
    }

    /// Adds to `of_input` what comes back through the matrices of the adapter, and returns their own
    /// gradients; `input` is what is left of it.
    fn lora_backward(
        &self,
        lora: &Lora<'_>,
        input: &[f32],
        gradient: &[f32],
        of_input: &mut [f32],
    ) -> LoraMatrices {
        let (columns, rows) = (self.linear.columns(), self.linear.rows());
        let rank = lora.matrices.rank();
        let mut inner = times_transposed(input, &lora.matrices.a, columns);
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
        add(of_input, &through);
        let a = transposed_times(&of_inner, rank, input, columns);
        (self.pause)();
        let b = transposed_times(gradient, rows, &inner, rank);
        (self.pause)();
        LoraMatrices::new(a, b, rank)
    }
}

fn add(output: &mut [f32], values: &[f32]) {
    output.iter_mut().zip(values).for_each(|(output, value)| *output += value);
}

impl Lora<'_> {
    fn masked<'a>(&self, input: &'a [f32], columns: usize) -> Cow<'a, [f32]> {
        let Some(mask) = self.mask else { return Cow::Borrowed(input) };
        let mut input = input.to_vec();
        mask.apply(&mut input, columns);
        Cow::Owned(input)
    }
}
