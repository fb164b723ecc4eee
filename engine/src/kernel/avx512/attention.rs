//! Some queries and one page, 16 values a register.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::ops::Range;

use super::load;
use crate::kernel::attention::{PAGE_TOKENS, PageHead, Row};

/// Values of a register, which are also the keys of a page: the scores of a page fill one.
const LANES: usize = 16;

/// Rows that share what is loaded of a page. With [`TILE_SUMS`] registers of each row's sum, as many
/// of values, and one weight they fill 21 of 32 registers.
const GROUP: usize = 4;

/// Registers of a head's sum that are summed over a page at once: 64 values, a head of most models.
const TILE_SUMS: usize = 4;

/// Whether the heads of `rows` fill registers.
pub(super) fn fills(rows: &[Row<'_>]) -> bool {
    rows.iter().all(|row| row.sum.len().is_multiple_of(LANES))
}

/// Adds to the sum of each row the weighted values of the places in `slots`.
///
/// A head is a multiple of 16 values. The bits of a row do not depend on the rows beside it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn attend(mut page: PageHead<'_>, slots: &Range<usize>, rows: &mut [Row<'_>]) {
    let (groups, rest) = rows.as_chunks_mut::<GROUP>();
    for rows in groups {
        group(page, slots, rows);
        page.next = Default::default();
    }
    let (pairs, rest) = rest.as_chunks_mut::<2>();
    for rows in pairs {
        group(page, slots, rows);
        page.next = Default::default();
    }
    let (alone, _) = rest.as_chunks_mut::<1>();
    alone.iter_mut().for_each(|rows| group(page, slots, rows));
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn group<const ROWS: usize>(page: PageHead<'_>, slots: &Range<usize>, rows: &mut [Row<'_>; ROWS]) {
    let head_size = rows[0].sum.len();
    // A score depends on its own key alone, so those that nobody sees do no harm.
    let dots = dots(page, rows);
    let mut weights = [[0.0; PAGE_TOKENS]; ROWS];
    for ((row, weights), dots) in rows.iter_mut().zip(&mut weights).zip(dots) {
        let mut scores = [0.0; PAGE_TOKENS];
        load::store_floats(&mut scores, dots);
        let (row_weights, factor) = row.softmax.update(scores, slots, head_size);
        *weights = row_weights;
        if let Some(factor) = factor {
            for sum in row.sum.iter_mut() {
                *sum *= factor;
            }
        }
    }
    let parts = head_size / LANES;
    let rest = parts - parts % TILE_SUMS;
    for first in (0..rest).step_by(TILE_SUMS) {
        add_values::<ROWS, TILE_SUMS>(rows, &weights, slots, page, first);
    }
    for part in rest..parts {
        add_values::<ROWS, 1>(rows, &weights, slots, page, part);
    }
}

/// The dot products of the rows' queries with all keys of a page, which lie side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn dots<const ROWS: usize>(page: PageHead<'_>, rows: &[Row<'_>; ROWS]) -> [__m512; ROWS] {
    // Two sums for each row, so that those of one row do not wait for each other too long.
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let keys = page.keys.as_chunks::<LANES>().0.as_chunks::<2>().0;
    let next = page.next.0.as_chunks::<LANES>().0.as_chunks::<2>().0;
    let mut queries = [&[][..]; ROWS];
    for (queries, row) in queries.iter_mut().zip(rows) {
        *queries = &row.query.as_chunks::<2>().0[..keys.len()];
    }
    for (index, keys) in keys.iter().enumerate() {
        if let Some(lines) = next.get(index) {
            lines.iter().for_each(|line| load::ahead(line));
        }
        for (half, keys) in keys.iter().enumerate() {
            let keys = load::floats(keys);
            for (sums, queries) in sums.iter_mut().zip(&queries) {
                let query = _mm512_set1_ps(queries[index][half]);
                sums[half] = _mm512_fmadd_ps(query, keys, sums[half]);
            }
        }
    }
    let mut dots = [_mm512_setzero_ps(); ROWS];
    for (dots, [even, odd]) in dots.iter_mut().zip(sums) {
        *dots = _mm512_add_ps(even, odd);
    }
    dots
}

/// Adds the weighted values of the places in `slots`: `SUMS` registers of each row, from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn add_values<const ROWS: usize, const SUMS: usize>(
    rows: &mut [Row<'_>; ROWS],
    weights: &[[f32; PAGE_TOKENS]; ROWS],
    slots: &Range<usize>,
    page: PageHead<'_>,
    first: usize,
) {
    let values = page.values.as_chunks::<LANES>().0;
    let next = page.next.1.as_chunks::<LANES>().0;
    let parts = values.len() / PAGE_TOKENS;
    let mut registers = [[_mm512_setzero_ps(); SUMS]; ROWS];
    for (registers, row) in registers.iter_mut().zip(rows.iter()) {
        let sums = &row.sum.as_chunks::<LANES>().0[first..first + SUMS];
        for (register, sum) in registers.iter_mut().zip(sums) {
            *register = load::floats(sum);
        }
    }
    for slot in slots.clone() {
        let mut loaded = [_mm512_setzero_ps(); SUMS];
        let places = slot * parts + first..slot * parts + first + SUMS;
        for (loaded, values) in loaded.iter_mut().zip(&values[places.clone()]) {
            *loaded = load::floats(values);
        }
        if let Some(lines) = next.get(places) {
            lines.iter().for_each(|line| load::ahead(line));
        }
        for (registers, weights) in registers.iter_mut().zip(weights) {
            let weight = _mm512_set1_ps(weights[slot]);
            for (register, values) in registers.iter_mut().zip(loaded) {
                *register = _mm512_fmadd_ps(weight, values, *register);
            }
        }
    }
    for (registers, row) in registers.iter().zip(rows.iter_mut()) {
        let sums = &mut row.sum.as_chunks_mut::<LANES>().0[first..first + SUMS];
        for (sum, register) in sums.iter_mut().zip(registers) {
            load::store_floats(sum, *register);
        }
    }
}
