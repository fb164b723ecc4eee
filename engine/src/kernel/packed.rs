//! Weight matrices as the kernels of this machine want them.
//!
//! A matrix is packed once, when it is loaded, for the widest unit that the processor has; the pages
//! of its file are then given back.

pub(in crate::kernel) mod dense;
mod outputs;
mod pages;
pub(super) mod quantized;

use std::fmt;

use umbel_shard::Weight;

use self::dense::DenseMatrix;
pub(super) use self::pages::Pages;
use self::quantized::QuantizedMatrix;
use super::InstructionSet;

/// A weight matrix `[rows, columns]` that is ready to be multiplied.
pub struct PackedMatrix {
    layout: Layout,
    rows: usize,
    columns: usize,
}

/// How the weights of a matrix lie in memory.
enum Layout {
    /// In panels, for weights in floating point.
    Dense(DenseMatrix),
    /// Integers of up to 8 bits in panels of 32 rows.
    Quantized(QuantizedMatrix),
}

/// How carefully activations are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Activations are rounded to what the unit multiplies: to bfloat16 for weights in bfloat16 where
    /// there is a unit for it (AVX-512, not AVX2), to integers of 16 bits with a scale for each block
    /// for quantized weights.
    #[default]
    Usual,
    /// For quantized weights, activations are rounded to integers of 8 bits, which moves logits of
    /// SmolLM2 by up to 0.43 and makes products with many tokens 1.5 times as fast; else as
    /// [`Self::Usual`].
    Fast,
    /// Activations stay in binary32.
    Exact,
}

impl PackedMatrix {
    /// Packs `weight` for the instructions that this machine has.
    #[must_use]
    pub fn pack(weight: &Weight) -> Self {
        Self::pack_for(InstructionSet::detected(), weight)
    }

    /// Packs `weight` for the instructions of `set`.
    #[must_use]
    pub fn pack_for(set: InstructionSet, weight: &Weight) -> Self {
        let layout = match DenseMatrix::pack(set, weight) {
            Some(dense) => Layout::Dense(dense),
            None => Layout::Quantized(QuantizedMatrix::pack(set, weight)),
        };
        weight.release();
        Self { layout, rows: weight.rows(), columns: weight.columns() }
    }

    /// Values of an output row.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values of an input row.
    #[must_use]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// `output = input * self^T`, from `[tokens, columns]` to `[tokens, rows]`.
    ///
    /// # Panics
    /// Where the sizes do not fit each other: shapes are checked when a model is loaded.
    pub fn multiply(&self, arithmetic: Arithmetic, input: &[f32], output: &mut [f32]) {
        match &self.layout {
            Layout::Dense(dense) => dense.multiply(arithmetic, input, output),
            Layout::Quantized(matrix) => matrix.multiply(arithmetic, input, output),
        }
    }
}

impl fmt::Debug for PackedMatrix {
    /// The shape; never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} x {})", self.rows, self.columns)
    }
}
