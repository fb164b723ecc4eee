//! Products of small matrices in binary32: those of adapters, a few columns wide.
//!
//! Each output is one sum in one order, and threads share outputs.

use crate::kernel::parallel::for_each;

/// Multiplications that are worth another thread, as in the kernels.
const PARALLEL_WORK_MIN: usize = 32 * 1024;

/// Sums that are kept side by side, so that compilers make vectors of them.
const LANES: usize = 8;

/// The sum of the products of two rows: of every eighth value, and then of these sums in order.
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    for ((sum, left), right) in sums.iter_mut().zip(left_rest).zip(right_rest) {
        *sum += left * right;
    }
    sums.iter().sum()
}

/// Adds `factor * row` to `output`.
pub(super) fn add_scaled(output: &mut [f32], factor: f32, row: &[f32]) {
    output.iter_mut().zip(row).for_each(|(output, value)| *output += factor * value);
}

/// `input * matrix^T`: from `[tokens, columns]` and `[rows, columns]` to `[tokens, rows]`.
pub(crate) fn times_transposed(input: &[f32], matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len() / columns;
    let mut output = vec![0.0; input.len() / columns * rows];
    let share = (PARALLEL_WORK_MIN / matrix.len()).max(1);
    let shares = output.chunks_mut(share * rows).zip(input.chunks(share * columns));
    for_each(shares, |(output, input)| {
        for (output, input) in output.chunks_exact_mut(rows).zip(input.chunks_exact(columns)) {
            for (output, row) in output.iter_mut().zip(matrix.chunks_exact(columns)) {
                *output = dot(input, row);
            }
        }
    });
    output
}

/// `input * matrix`: from `[tokens, rows]` and `[rows, columns]` to `[tokens, columns]`.
pub(super) fn times(input: &[f32], matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len() / columns;
    let mut output = vec![0.0; input.len() / rows * columns];
    let share = (PARALLEL_WORK_MIN / matrix.len()).max(1);
    let shares = output.chunks_mut(share * columns).zip(input.chunks(share * rows));
    for_each(shares, |(output, input)| {
        for (output, input) in output.chunks_exact_mut(columns).zip(input.chunks_exact(rows)) {
            for (&factor, row) in input.iter().zip(matrix.chunks_exact(columns)) {
                add_scaled(output, factor, row);
            }
        }
    });
    output
}

/// `left^T * right`, the sum over tokens: from `[tokens, rows]` and `[tokens, columns]` to
/// `[rows, columns]`.
pub(super) fn transposed_times(
    left: &[f32],
    rows: usize,
    right: &[f32],
    columns: usize,
) -> Vec<f32> {
    let tokens = left.len() / rows;
    let mut output = vec![0.0; rows * columns];
    let share = (PARALLEL_WORK_MIN / (tokens * columns).max(1)).max(1);
    for_each(output.chunks_mut(share * columns).enumerate(), |(index, output)| {
        for (row, output) in (index * share..).zip(output.chunks_exact_mut(columns)) {
            let factors = left.iter().skip(row).step_by(rows);
            for (&factor, right) in factors.zip(right.chunks_exact(columns)) {
                add_scaled(output, factor, right);
            }
        }
    });
    output
}
