//! Weight matrices as the kernels of this machine want them.
//!
//! A matrix is packed once, when it is loaded, for the widest unit that the processor has; the pages
//! of its file are then given back.

pub(in crate::kernel) mod dense;
mod outputs;
mod pages;
pub(super) mod quantized;
pub(crate) mod unpack;

use std::fmt;
use std::ops::Range;

use umbel_shard::Weight;

use self::dense::DenseMatrix;
use self::outputs::Outputs;
pub(super) use self::pages::Pages;
use self::quantized::QuantizedMatrix;
use super::{InstructionSet, PARALLEL_WORK_MIN};
use crate::kernel::parallel::for_each_range;

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
    /// there is a unit for it (AVX-512 and AMX, not AVX2 or NEON), to integers of 8 bits with a scale
    /// for each block for quantized weights, and of 16 in blocks of unusually large values.
    #[default]
    Usual,
    /// For quantized weights, all activations are rounded to integers of 16 bits, for which products
    /// with many tokens take 1.6 times as long; else as [`Self::Usual`].
    Careful,
    /// Activations stay in binary32.
    Exact,
}

impl Arithmetic {
    /// All there are, the fastest first.
    pub const ALL: [Self; 3] = [Self::Usual, Self::Careful, Self::Exact];
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usual => "usual",
            Self::Careful => "careful",
            Self::Exact => "exact",
        })
    }
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
        assert_eq!(
            output.len(),
            self.tokens(input) * self.rows,
            "an output for each row and token"
        );
        multiply_all(&[self], arithmetic, input, &[Outputs::new(output, self.rows)]);
    }

    /// The products of `input` with each of `matrices`, which have the same number of columns: what
    /// `multiply` gives for each, but the activations are prepared once and all threads are busy with
    /// all matrices.
    ///
    /// # Panics
    /// As [`PackedMatrix::multiply`].
    #[must_use]
    pub fn products<const N: usize>(
        matrices: [&Self; N],
        arithmetic: Arithmetic,
        input: &[f32],
    ) -> [Vec<f32>; N] {
        let mut products = matrices.map(|of| Vec::with_capacity(of.tokens(input) * of.rows));
        let places = products.iter_mut().zip(matrices);
        let outputs: Vec<_> = places
            .map(|(product, of)| Outputs::spare(product, of.tokens(input), of.rows))
            .collect();
        multiply_all(&matrices, arithmetic, input, &outputs);
        drop(outputs);
        for (product, of) in products.iter_mut().zip(matrices) {
            #[allow(
                unsafe_code,
                reason = "zeros that are overwritten at once cost a tenth of a pass"
            )]
            // SAFETY: there is room for that many, and every row of every token has been written.
            unsafe {
                product.set_len(of.tokens(input) * of.rows);
            }
        }
        products
    }

    fn tokens(&self, input: &[f32]) -> usize {
        let tokens = input.len() / self.columns;
        assert_eq!(input.len(), tokens * self.columns, "the input has whole rows");
        tokens
    }
}

/// Calls `work` with each panel of several matrices, so many of each, once: it is told the index of a
/// matrix, and some of its panels. A panel takes `panel_work` multiplications; `together` are better taken
/// at once than one after the other.
fn for_each_panels(
    panels: &[usize],
    panel_work: usize,
    together: usize,
    work: impl Fn(usize, Range<usize>) + Sync + Send,
) {
    let piece = PARALLEL_WORK_MIN.div_ceil(panel_work).max(together);
    for_each_range(panels.iter().sum(), piece, |range| {
        let mut first = 0;
        for (matrix, &count) in panels.iter().enumerate() {
            let panels = range.start.max(first)..range.end.min(first + count);
            if !panels.is_empty() {
                work(matrix, panels.start - first..panels.end - first);
            }
            first += count;
        }
    });
}

/// Writes every row of every token of each of `outputs`: the products of `input` with the matrix in
/// the same place.
fn multiply_all(
    matrices: &[&PackedMatrix],
    arithmetic: Arithmetic,
    input: &[f32],
    outputs: &[Outputs<'_>],
) {
    let dense = matrices.iter().filter_map(|matrix| match &matrix.layout {
        Layout::Dense(dense) => Some(dense),
        Layout::Quantized(_) => None,
    });
    let quantized = matrices.iter().filter_map(|matrix| match &matrix.layout {
        Layout::Dense(_) => None,
        Layout::Quantized(quantized) => Some(quantized),
    });
    let (dense, quantized): (Vec<_>, Vec<_>) = (dense.collect(), quantized.collect());
    if quantized.is_empty() && dense.windows(2).all(|pair| pair[0].shares_inputs(pair[1])) {
        dense::multiply(&dense, arithmetic, input, outputs);
    } else if dense.is_empty() && quantized.windows(2).all(|pair| pair[0].shares_tokens(pair[1])) {
        quantized::multiply(&quantized, arithmetic, input, outputs);
    } else {
        for (matrix, output) in matrices.iter().zip(outputs) {
            multiply_all(&[matrix], arithmetic, input, std::slice::from_ref(output));
        }
    }
}

impl fmt::Debug for PackedMatrix {
    /// The shape; never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} x {})", self.rows, self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::specimen::{Numbers, bits, weights};
    use umbel_shard::WeightType;

    const COLUMNS: usize = 256;

    fn pack(
        set: InstructionSet,
        kind: WeightType,
        rows: usize,
        numbers: &mut Numbers,
    ) -> PackedMatrix {
        let bytes = weights(kind, rows * COLUMNS, numbers);
        PackedMatrix::pack_for(set, &Weight::new(kind, vec![rows, COLUMNS], &bytes[..]).unwrap())
    }

    /// Matrices of one type and of several, with rows that fill no panel.
    #[test]
    fn products_that_are_computed_together_have_the_bits_of_each_alone() {
        let mut numbers = Numbers(21);
        for set in InstructionSet::all() {
            for kinds in [
                [WeightType::F32; 3],
                [WeightType::BF16; 3],
                [WeightType::Q4_1; 3],
                [WeightType::Q4K, WeightType::Q4K, WeightType::Q6K],
                [WeightType::F16, WeightType::Q8_0, WeightType::F16],
            ] {
                let [a, b, c] = kinds;
                let [a, b, c] = [(a, 70), (b, 9), (c, 33)]
                    .map(|(kind, rows)| pack(set, kind, rows, &mut numbers));
                for tokens in [0, 1, 3, 40] {
                    let input = numbers.floats(tokens * COLUMNS);
                    for arithmetic in Arithmetic::ALL {
                        let together = PackedMatrix::products([&a, &b, &c], arithmetic, &input);
                        for (matrix, together) in [&a, &b, &c].into_iter().zip(together) {
                            let mut alone = vec![f32::NAN; tokens * matrix.rows()];
                            matrix.multiply(arithmetic, &input, &mut alone);
                            assert_eq!(bits(&together), bits(&alone), "{kinds:?}, {tokens} tokens");
                        }
                    }
                }
            }
        }
    }
}
