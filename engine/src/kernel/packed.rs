//! Weight matrices as the kernels of this machine want them.
//!
//! A matrix is packed once, when it is loaded, for the widest unit that the processor has. Where there
//! is no packed kernel for its type and for the instructions, it stays as its file has it.

pub(in crate::kernel) mod dense;
mod outputs;
mod pages;

use std::fmt;

use umbel_shard::Weight;

use self::dense::DenseMatrix;
pub(super) use self::pages::Pages;
use super::{InstructionSet, WeightView, matmul_refined};

/// A weight matrix `[rows, columns]` that is ready to be multiplied.
pub struct PackedMatrix {
    layout: Layout,
    rows: usize,
    columns: usize,
}

/// How the weights of a matrix lie in memory.
enum Layout {
    /// As in the file, which is mapped and shared.
    Stored(Weight),
    /// In panels, for weights in floating point.
    Dense(DenseMatrix),
}

/// How carefully activations are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Activations are rounded to what the unit multiplies: to bfloat16 for weights in bfloat16 where
    /// there is a unit for it (AVX-512, not AVX2), to integers of 15 bits with a scale for each block for quantized weights.
    #[default]
    Usual,
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
        let layout = if let Some(dense) = DenseMatrix::pack(set, weight) {
            weight.release();
            Layout::Dense(dense)
        } else {
            Layout::Stored(weight.clone())
        };
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
            Layout::Stored(weight) => matmul_refined(WeightView::of(weight), input, output),
            Layout::Dense(dense) => dense.multiply(arithmetic, input, output),
        }
    }
}

impl fmt::Debug for PackedMatrix {
    /// The shape; never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} x {})", self.rows, self.columns)
    }
}
