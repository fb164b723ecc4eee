//! Rows of gradients times a weight matrix itself: the gradient of a matrix product's input.
//!
//! Threads share the columns, so that each output is summed by one of them: within a panel from its
//! first row to its last, and then panel by panel. Products and sums are rounded each on its own, so
//! that every set of instructions gives the same bits.

use std::ops::Range;

use super::packed::unpack::{TILE_COLUMNS, TILE_ROWS, WeightTile};
use super::parallel::for_each;
use super::{InstructionSet, PackedMatrix};

/// Tokens that share a row of weights that is loaded: with AVX-512 their sums are 8 registers of 32.
/// With 4 tokens a pass was no faster.
const TOKENS: usize = 2;

/// What a token's gradient comes to in the columns of a tile.
type Sums = [f32; TILE_COLUMNS];

/// Adds `gradient * matrix` to `output`: from `[tokens, rows]` to `[tokens, columns]`.
///
/// # Panics
/// Where the sizes do not fit each other.
pub(crate) fn add_transposed(matrix: &PackedMatrix, gradient: &[f32], output: &mut [f32]) {
    add_transposed_with(InstructionSet::detected(), matrix, gradient, output);
}

/// As [`add_transposed`], with the instructions of `set`.
fn add_transposed_with(
    set: InstructionSet,
    matrix: &PackedMatrix,
    gradient: &[f32],
    output: &mut [f32],
) {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let tokens = gradient.len() / rows;
    assert_eq!(gradient.len(), tokens * rows, "a gradient for each row of the matrix");
    assert_eq!(output.len(), tokens * columns, "a gradient for each of its columns");
    let mut strips: Vec<Vec<Sums>> = vec![Vec::new(); columns.div_ceil(TILE_COLUMNS)];
    for_each(strips.iter_mut().enumerate(), |(index, strip)| {
        let mut tile = [[0.0; TILE_COLUMNS]; TILE_ROWS];
        *strip = vec![[0.0; TILE_COLUMNS]; tokens];
        for panel in 0..matrix.panel_count() {
            matrix.unpack(panel, index, &mut tile);
            add_panel(set, &tile, matrix.rows_of_panel(panel), rows, gradient, strip);
        }
    });
    for (start, strip) in (0..columns).step_by(TILE_COLUMNS).zip(&strips) {
        let place = start..columns.min(start + TILE_COLUMNS);
        for (output, sums) in output.chunks_exact_mut(columns).zip(strip) {
            output[place.clone()].iter_mut().zip(sums).for_each(|(output, sum)| *output += sum);
        }
    }
}

/// Adds to the `totals` of all tokens what the rows `panel` of a matrix of `rows` rows give.
fn add_panel(
    set: InstructionSet,
    tile: &WeightTile,
    panel: Range<usize>,
    rows: usize,
    gradient: &[f32],
    totals: &mut [Sums],
) {
    match set {
        InstructionSet::Portable => add_rows(tile, panel, rows, gradient, totals),
        // NEON is in the baseline of the architecture, so compilers use it without being told.
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(_) => add_rows(tile, panel, rows, gradient, totals),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(_) => {
            #[expect(unsafe_code, reason = "a call into a function that needs AVX2")]
            // SAFETY: the set has its value only where the processor has the instructions.
            unsafe {
                add_rows_avx2(tile, panel, rows, gradient, totals);
            }
        }
        // Tiles of AMX multiply bfloat16 and bytes alone, and whoever has them has AVX-512.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(_) | InstructionSet::Amx(_) => {
            #[expect(unsafe_code, reason = "a call into a function that needs AVX-512")]
            // SAFETY: the set has its value only where the processor has the instructions.
            unsafe {
                add_rows_avx512(tile, panel, rows, gradient, totals);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_rows_avx2(
    tile: &WeightTile,
    panel: Range<usize>,
    rows: usize,
    gradient: &[f32],
    totals: &mut [Sums],
) {
    add_rows(tile, panel, rows, gradient, totals);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn add_rows_avx512(
    tile: &WeightTile,
    panel: Range<usize>,
    rows: usize,
    gradient: &[f32],
    totals: &mut [Sums],
) {
    add_rows(tile, panel, rows, gradient, totals);
}

#[inline(always)]
fn add_rows(
    tile: &WeightTile,
    panel: Range<usize>,
    rows: usize,
    gradient: &[f32],
    totals: &mut [Sums],
) {
    let (several, alone) = totals.as_chunks_mut::<TOKENS>();
    let (first, last) = gradient.split_at(several.len() * TOKENS * rows);
    for (totals, gradients) in several.iter_mut().zip(first.chunks_exact(TOKENS * rows)) {
        add_tokens(tile, &panel, rows, gradients, totals);
    }
    for (total, gradient) in alone.as_chunks_mut::<1>().0.iter_mut().zip(last.chunks_exact(rows)) {
        add_tokens(tile, &panel, rows, gradient, total);
    }
}

#[inline(always)]
fn add_tokens<const N: usize>(
    tile: &WeightTile,
    panel: &Range<usize>,
    rows: usize,
    gradients: &[f32],
    totals: &mut [Sums; N],
) {
    let mut sums = [[0.0; TILE_COLUMNS]; N];
    let of_token: [&[f32]; N] =
        std::array::from_fn(|token| &gradients[token * rows..][panel.start..panel.end]);
    for (row, weights) in tile[..panel.len()].iter().enumerate() {
        for (sums, gradients) in sums.iter_mut().zip(of_token) {
            let gradient = gradients[row];
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += gradient * weight;
            }
        }
    }
    for (totals, sums) in totals.iter_mut().zip(&sums) {
        totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
}

#[cfg(test)]
mod tests {
    use umbel_shard::{Weight, WeightType};

    use super::*;
    use crate::kernel::specimen::{ALL_TYPES, Numbers, bits, weights, widened};

    const COLUMNS: usize = 256 + 32;
    const ROWS: usize = 70;

    /// Of sums of 70 products, beside the sum of their magnitudes.
    const ERROR_MAX: f64 = 8.0 * f32::EPSILON as f64;

    fn columns_of(kind: WeightType) -> usize {
        if kind.block_values() > 32 { 512 } else { COLUMNS }
    }

    #[test]
    fn a_gradient_is_the_product_with_the_matrix_in_every_type() {
        let mut numbers = Numbers(31);
        for kind in ALL_TYPES {
            let columns = columns_of(kind);
            let bytes = weights(kind, ROWS * columns, &mut numbers);
            let values = widened(kind, &bytes);
            let weight = Weight::new(kind, vec![ROWS, columns], &bytes[..]).unwrap();
            let gradient = numbers.floats(3 * ROWS);
            let mut output = vec![0.5; 3 * columns];
            add_transposed(&PackedMatrix::pack(&weight), &gradient, &mut output);
            for (index, &output) in output.iter().enumerate() {
                let (token, column) = (index / columns, index % columns);
                let product = |row: usize| {
                    f64::from(gradient[token * ROWS + row]) * values[row * columns + column]
                };
                let exact = 0.5 + (0..ROWS).map(product).sum::<f64>();
                let size = 0.5 + (0..ROWS).map(|row| product(row).abs()).sum::<f64>();
                let error = (f64::from(output) - exact).abs();
                assert!(error <= ERROR_MAX * size, "{kind}: {output}, not {exact}");
            }
        }
    }

    #[test]
    fn every_instruction_set_and_any_number_of_tokens_gives_the_same_bits() {
        let mut numbers = Numbers(32);
        for kind in [WeightType::F32, WeightType::BF16, WeightType::Q4_1, WeightType::Q6K] {
            let columns = columns_of(kind);
            let bytes = weights(kind, ROWS * columns, &mut numbers);
            let weight = Weight::new(kind, vec![ROWS, columns], &bytes[..]).unwrap();
            let matrix = PackedMatrix::pack(&weight);
            let gradient = numbers.floats(5 * ROWS);
            let mut portable = vec![0.0; 5 * columns];
            add_transposed_with(InstructionSet::Portable, &matrix, &gradient, &mut portable);
            for set in InstructionSet::all() {
                let mut together = vec![0.0; 5 * columns];
                add_transposed_with(set, &matrix, &gradient, &mut together);
                assert_eq!(bits(&together), bits(&portable), "{kind}, {set:?}");
                let tokens = gradient.chunks(ROWS).zip(together.chunks(columns));
                for (gradient, together) in tokens {
                    let mut alone = vec![0.0; columns];
                    add_transposed_with(set, &matrix, gradient, &mut alone);
                    assert_eq!(bits(&alone), bits(together), "{kind}, {set:?}");
                }
            }
        }
    }
}
