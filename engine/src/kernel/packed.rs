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

/// Matrices with the same number of columns, and the rows that each of them is multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a, const N: usize> {
    /// The matrices.
    pub matrices: [&'a PackedMatrix; N],
    /// `[tokens, columns]`.
    pub input: &'a [f32],
}

/// One of several products that are computed together.
struct Product<'a, M> {
    matrix: &'a M,
    /// Which of the inputs it is multiplied with.
    input: usize,
    outputs: &'a Outputs<'a>,
}

impl<'a, M> Product<'a, M> {
    /// The same with a matrix as it lies in memory.
    const fn of<L>(&self, matrix: &'a L) -> Product<'a, L> {
        Product { matrix, input: self.input, outputs: self.outputs }
    }
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
        let outputs = Outputs::new(output, self.rows);
        let product = Product { matrix: self, input: 0, outputs: &outputs };
        multiply_all(&[product], &[input], arithmetic);
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
        let group = Group { matrices, input };
        Self::group_products(&[group], arithmetic).pop().expect("a group has its products")
    }

    /// What [`PackedMatrix::products`] gives for each of `groups`, with all threads busy with all of them.
    ///
    /// # Panics
    /// As [`PackedMatrix::multiply`].
    #[must_use]
    pub fn group_products<const N: usize>(
        groups: &[Group<'_, N>],
        arithmetic: Arithmetic,
    ) -> Vec<[Vec<f32>; N]> {
        let values = |of: &Self, input: &[f32]| of.tokens(input) * of.rows;
        let room = |Group { matrices, input }: &Group<'_, N>| {
            matrices.map(|of| Vec::with_capacity(values(of, input)))
        };
        let mut products: Vec<[Vec<f32>; N]> = groups.iter().map(room).collect();
        let places = products.iter_mut().zip(groups).enumerate();
        let outputs = places.flat_map(|(index, (products, Group { matrices, input }))| {
            let places = products.iter_mut().zip(*matrices);
            places.map(move |(product, of)| {
                (of, index, Outputs::spare(product, of.tokens(input), of.rows))
            })
        });
        let outputs: Vec<_> = outputs.collect();
        let tasks: Vec<_> = outputs
            .iter()
            .map(|(matrix, input, outputs)| Product { matrix: *matrix, input: *input, outputs })
            .collect();
        let inputs: Vec<_> = groups.iter().map(|group| group.input).collect();
        multiply_all(&tasks, &inputs, arithmetic);
        drop(tasks);
        drop(outputs);
        for (products, Group { matrices, input }) in products.iter_mut().zip(groups) {
            for (product, of) in products.iter_mut().zip(matrices) {
                #[allow(
                    unsafe_code,
                    reason = "zeros that are overwritten at once cost a tenth of a pass"
                )]
                // SAFETY: there is room for that many, and every row of every token has been written.
                unsafe {
                    product.set_len(values(of, input));
                }
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

/// Calls `work` with each panel of several products, so many of each, once: it is told the index of a
/// product, and some of its panels. They take so many multiplications in all, and so many of them are better
/// taken at once than one after the other.
fn for_each_panels(
    panels: &[usize],
    work_of_all: usize,
    together: usize,
    work: impl Fn(usize, Range<usize>) + Sync + Send,
) {
    let count = panels.iter().sum::<usize>();
    let panel_work = (work_of_all / count.max(1)).max(1);
    let piece = PARALLEL_WORK_MIN.div_ceil(panel_work).max(together);
    for_each_range(count, piece, |range| {
        let mut first = 0;
        for (product, &count) in panels.iter().enumerate() {
            let panels = range.start.max(first)..range.end.min(first + count);
            if !panels.is_empty() {
                work(product, panels.start - first..panels.end - first);
            }
            first += count;
        }
    });
}

/// Writes every row of every token of each of `products`, which are with these inputs.
fn multiply_all(products: &[Product<'_, PackedMatrix>], inputs: &[&[f32]], arithmetic: Arithmetic) {
    let dense = products.iter().map(|product| match &product.matrix.layout {
        Layout::Dense(matrix) => Some(product.of(matrix)),
        Layout::Quantized(_) => None,
    });
    let quantized = products.iter().map(|product| match &product.matrix.layout {
        Layout::Dense(_) => None,
        Layout::Quantized(matrix) => Some(product.of(matrix)),
    });
    let dense: Option<Vec<_>> = dense.collect();
    if let Some(dense) = dense.filter(|all| alike(all, DenseMatrix::shares_inputs)) {
        return dense::multiply(&dense, inputs, arithmetic);
    }
    let quantized: Option<Vec<_>> = quantized.collect();
    if let Some(quantized) = quantized.filter(|all| alike(all, QuantizedMatrix::shares_tokens)) {
        return quantized::multiply(&quantized, inputs, arithmetic);
    }
    for product in products {
        let alone = Product { input: 0, ..*product };
        multiply_all(&[alone], &[inputs[product.input]], arithmetic);
    }
}

/// Whether what is prepared of an input for the matrix of one product does for those of all.
fn alike<M>(products: &[Product<'_, M>], shares: impl Fn(&M, &M) -> bool) -> bool {
    products.windows(2).all(|pair| shares(pair[0].matrix, pair[1].matrix))
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

    /// Groups of several numbers of tokens, of one type and of several.
    #[test]
    fn groups_have_the_bits_of_each_product_alone() {
        let mut numbers = Numbers(22);
        for set in InstructionSet::all() {
            for kinds in [
                [WeightType::F32; 3],
                [WeightType::BF16; 3],
                [WeightType::Q4K; 3],
                [WeightType::Q4K, WeightType::Q6K, WeightType::F16],
            ] {
                let matrices = kinds.map(|kind| {
                    [pack(set, kind, 70, &mut numbers), pack(set, kind, 33, &mut numbers)]
                });
                let inputs = [1, 20, 0].map(|tokens| numbers.floats(tokens * COLUMNS));
                for arithmetic in Arithmetic::ALL {
                    let groups = matrices.iter().zip(&inputs);
                    let groups: Vec<_> = groups
                        .map(|(matrices, input)| Group { matrices: matrices.each_ref(), input })
                        .collect();
                    let together = PackedMatrix::group_products(&groups, arithmetic);
                    for (Group { matrices, input }, together) in groups.iter().zip(together) {
                        let alone = PackedMatrix::products(*matrices, arithmetic, input);
                        assert_eq!(
                            together.each_ref().map(|of| bits(of)),
                            alone.each_ref().map(|of| bits(of)),
                            "{kinds:?}"
                        );
                    }
                }
            }
        }
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
