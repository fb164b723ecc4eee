//! Some queries and one page, 4 values a register.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::aarch64::*;
use std::ops::Range;

use super::load;
use crate::kernel::attention::{PAGE_TOKENS, PageHead, Row};

/// Values of a register.
const LANES: usize = 4;

/// Registers that the scores of a page fill.
const STRIPS: usize = PAGE_TOKENS / LANES;

/// Rows that share what is loaded of a page. With [`TILE_SUMS`] registers of each row's sum, as many
/// of values, and a weight for each row they fill 26 of 32 registers.
const GROUP: usize = 2;

/// Registers of a head's sum that are summed over a page at once: 32 values.
const TILE_SUMS: usize = 8;

/// Adds to the sum of each row the weighted values of the places in `slots`.
///
/// A head is a multiple of 4 values. The bits of a row do not depend on the rows beside it.
#[target_feature(enable = "neon")]
pub(super) fn attend(page: PageHead<'_>, slots: &Range<usize>, rows: &mut [Row<'_>]) {
    let (groups, rest) = rows.as_chunks_mut::<GROUP>();
    groups.iter_mut().for_each(|rows| group(page, slots, rows));
    let (alone, _) = rest.as_chunks_mut::<1>();
    alone.iter_mut().for_each(|rows| group(page, slots, rows));
}

#[target_feature(enable = "neon")]
#[inline]
fn group<const ROWS: usize>(page: PageHead<'_>, slots: &Range<usize>, rows: &mut [Row<'_>; ROWS]) {
    let head_size = rows[0].sum.len();
    // A score depends on its own key alone, so those that nobody sees do no harm.
    let dots = dots(page.keys.as_chunks::<PAGE_TOKENS>().0, rows);
    let mut weights = [[0.0; PAGE_TOKENS]; ROWS];
    for ((row, weights), dots) in rows.iter_mut().zip(&mut weights).zip(dots) {
        let mut scores = [0.0; PAGE_TOKENS];
        for (scores, dots) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(dots) {
            load::store(scores, dots);
        }
        let (row_weights, factor) = row.softmax.update(scores, slots, head_size);
        *weights = row_weights;
        if let Some(factor) = factor {
            for sum in row.sum.iter_mut() {
                *sum *= factor;
            }
        }
    }
    let (parts, values) = (head_size / LANES, page.values.as_chunks::<LANES>().0);
    let rest = parts - parts % TILE_SUMS;
    for first in (0..rest).step_by(TILE_SUMS) {
        add_values::<ROWS, TILE_SUMS>(rows, &weights, slots, values, first);
    }
    for part in rest..parts {
        add_values::<ROWS, 1>(rows, &weights, slots, values, part);
    }
}

/// The dot products of the rows' queries with all keys of a page, which lie side by side.
#[target_feature(enable = "neon")]
#[inline]
fn dots<const ROWS: usize>(
    keys: &[[f32; PAGE_TOKENS]],
    rows: &[Row<'_>; ROWS],
) -> [[float32x4_t; STRIPS]; ROWS] {
    // Two sums for each score, so that those of one row do not wait for each other too long.
    let mut sums = [[[vdupq_n_f32(0.0); STRIPS]; 2]; ROWS];
    let keys = keys.as_chunks::<2>().0;
    let mut queries = [&[][..]; ROWS];
    for (queries, row) in queries.iter_mut().zip(rows) {
        *queries = &row.query.as_chunks::<2>().0[..keys.len()];
    }
    for (index, keys) in keys.iter().enumerate() {
        for (half, keys) in keys.iter().enumerate() {
            let keys = keys.as_chunks::<LANES>().0;
            for (sums, queries) in sums.iter_mut().zip(&queries) {
                let query = queries[index][half];
                for (sum, keys) in sums[half].iter_mut().zip(keys) {
                    *sum = vfmaq_n_f32(*sum, load::floats(keys), query);
                }
            }
        }
    }
    let mut dots = [[vdupq_n_f32(0.0); STRIPS]; ROWS];
    for (dots, [even, odd]) in dots.iter_mut().zip(sums) {
        for ((dot, even), odd) in dots.iter_mut().zip(even).zip(odd) {
            *dot = vaddq_f32(even, odd);
        }
    }
    dots
}

/// Adds the weighted values of the places in `slots`: `SUMS` registers of each row, from `first` on.
#[target_feature(enable = "neon")]
#[inline]
fn add_values<const ROWS: usize, const SUMS: usize>(
    rows: &mut [Row<'_>; ROWS],
    weights: &[[f32; PAGE_TOKENS]; ROWS],
    slots: &Range<usize>,
    values: &[[f32; LANES]],
    first: usize,
) {
    let parts = values.len() / PAGE_TOKENS;
    let mut registers = [[vdupq_n_f32(0.0); SUMS]; ROWS];
    for (registers, row) in registers.iter_mut().zip(rows.iter()) {
        let sums = &row.sum.as_chunks::<LANES>().0[first..first + SUMS];
        for (register, sum) in registers.iter_mut().zip(sums) {
            *register = load::floats(sum);
        }
    }
    for slot in slots.clone() {
        let mut loaded = [vdupq_n_f32(0.0); SUMS];
        for (loaded, values) in loaded.iter_mut().zip(&values[slot * parts + first..][..SUMS]) {
            *loaded = load::floats(values);
        }
        for (registers, weights) in registers.iter_mut().zip(weights) {
            for (register, values) in registers.iter_mut().zip(loaded) {
                *register = vfmaq_n_f32(*register, values, weights[slot]);
            }
        }
    }
    for (registers, row) in registers.iter().zip(rows.iter_mut()) {
        let sums = &mut row.sum.as_chunks_mut::<LANES>().0[first..first + SUMS];
        for (sum, register) in sums.iter_mut().zip(registers) {
            load::store(sum, *register);
        }
    }
}
