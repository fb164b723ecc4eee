//! One query and one page, 16 values a register.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::ops::Range;

use super::load;
use crate::kernel::attention::{PAGE_TOKENS, PageQuery, Softmax};

/// Values of a register, which are also the keys of a page: the scores of a page fill one.
pub(super) const LANES: usize = 16;

/// Registers of a head's sum that are summed over a page at once: 64 values, a head of most models.
const TILE_SUMS: usize = 4;

/// Adds to `sum`, the weighted values so far, what the query sees of the page.
///
/// `sum` has whole registers: a multiple of 16 values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn attend(query: PageQuery<'_>, softmax: &mut Softmax, sum: &mut [f32]) {
    let (parts, head_size) = (sum.len() / LANES, sum.len());
    let queries = query.query.as_chunks::<LANES>().0;
    let (keys, values) = (query.keys.as_chunks::<LANES>().0, query.values.as_chunks::<LANES>().0);
    let mut dots = [0.0; PAGE_TOKENS];
    // A score depends on its own key alone, so those that nobody sees do no harm.
    load::store_floats(&mut dots, page_dots(queries, &keys[..PAGE_TOKENS * parts]));
    let (weights, factor) = softmax.update(dots, &query.slots, head_size);
    let (tiles, rest) = sum.as_chunks_mut::<LANES>().0.as_chunks_mut::<TILE_SUMS>();
    let rest_start = tiles.len() * TILE_SUMS;
    for (tile, sums) in tiles.iter_mut().enumerate() {
        let values = &values[tile * TILE_SUMS..];
        add_values(sums, factor, &weights, &query.slots, values, parts);
    }
    for (index, sum) in rest.iter_mut().enumerate() {
        let values = &values[rest_start + index..];
        add_values(std::array::from_mut(sum), factor, &weights, &query.slots, values, parts);
    }
}

/// The dot products of a query with all keys of a page.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn page_dots(query: &[[f32; LANES]], keys: &[[f32; LANES]]) -> __m512 {
    let parts = query.len();
    let mut sums = [_mm512_setzero_ps(); PAGE_TOKENS];
    for (part, query) in query.iter().enumerate() {
        let query = load::floats(query);
        for (key, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_fmadd_ps(query, load::floats(&keys[key * parts + part]), *sum);
        }
    }
    let mut quarters = [_mm512_setzero_ps(); PAGE_TOKENS / 4];
    for (quarter, sums) in quarters.iter_mut().zip(sums.as_chunks::<4>().0) {
        *quarter = add_within_quarters(*sums);
    }
    let [a, b, c, d] = quarters;
    add_quarters(add_quarters(a, b), add_quarters(c, d))
}

/// In each quarter of a register: the sums of the four values of each key.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn add_within_quarters([a, b, c, d]: [__m512; 4]) -> __m512 {
    let (low, high) = (_mm512_castps_pd(interleave(a, b)), _mm512_castps_pd(interleave(c, d)));
    let first = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
    let second = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    _mm512_add_ps(first, second)
}

/// In each quarter: the sums of values 0 and 2 of both registers, then those of 1 and 3.
#[target_feature(enable = "avx512f")]
#[inline]
fn interleave(first: __m512, second: __m512) -> __m512 {
    _mm512_add_ps(_mm512_unpacklo_ps(first, second), _mm512_unpackhi_ps(first, second))
}

/// The sums of neighbouring quarters, of `first` in the lower half and of `second` in the upper.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_quarters(first: __m512, second: __m512) -> __m512 {
    let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(first, second);
    let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(first, second);
    _mm512_add_ps(even, odd)
}

/// Shrinks `sums` by `factor` and adds the weighted values of the places in `slots`;
/// `values` begins with the first place's part for these sums, and a place has `parts` of them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn add_values<const N: usize>(
    sums: &mut [[f32; LANES]; N],
    factor: f32,
    weights: &[f32; PAGE_TOKENS],
    slots: &Range<usize>,
    values: &[[f32; LANES]],
    parts: usize,
) {
    let factor = _mm512_set1_ps(factor);
    let mut registers = [_mm512_setzero_ps(); N];
    for (register, sum) in registers.iter_mut().zip(sums.iter()) {
        *register = _mm512_mul_ps(load::floats(sum), factor);
    }
    for slot in slots.clone() {
        let weight = _mm512_set1_ps(weights[slot]);
        let values = &values[slot * parts..][..N];
        for (register, value) in registers.iter_mut().zip(values) {
            *register = _mm512_fmadd_ps(weight, load::floats(value), *register);
        }
    }
    for (sum, register) in sums.iter_mut().zip(registers) {
        load::store_floats(sum, register);
    }
}
