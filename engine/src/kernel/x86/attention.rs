//! One query and one page.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::ops::Range;

use super::load;
use crate::kernel::LANES;
use crate::kernel::attention::{PAGE_TOKENS, PageQuery, Softmax};

/// Keys whose dot products are summed at once: their sums fill one register.
const TILE_KEYS: usize = 8;

/// Registers of a head's sum that are summed over a page at once.
const TILE_SUMS: usize = 4;

/// Adds to `sum`, the weighted values so far, what the query sees of the page.
///
/// `sum` has whole registers: a multiple of 8 values.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn attend(query: PageQuery<'_>, softmax: &mut Softmax, sum: &mut [f32]) {
    let (octets, head_size) = (sum.len() / LANES, sum.len());
    let (queries, _) = query.query.as_chunks::<LANES>();
    let (keys, values) = (query.keys.as_chunks::<LANES>().0, query.values.as_chunks::<LANES>().0);
    let mut dots = [0.0; PAGE_TOKENS];
    for (tile, dots) in dots.as_chunks_mut::<TILE_KEYS>().0.iter_mut().enumerate() {
        let start = tile * TILE_KEYS;
        // A score depends on its own key alone, so those that nobody sees do no harm.
        if start < query.slots.end && query.slots.start < start + TILE_KEYS {
            let keys = &keys[start * octets..][..TILE_KEYS * octets];
            load::store(dots, tile_dots(queries, keys));
        }
    }
    let (weights, factor) = softmax.update(dots, &query.slots, head_size);
    let (tiles, rest) = sum.as_chunks_mut::<LANES>().0.as_chunks_mut::<TILE_SUMS>();
    let rest_start = tiles.len() * TILE_SUMS;
    for (tile, sums) in tiles.iter_mut().enumerate() {
        let values = &values[tile * TILE_SUMS..];
        add_values(sums, factor, &weights, &query.slots, values, octets);
    }
    for (index, sum) in rest.iter_mut().enumerate() {
        let values = &values[rest_start + index..];
        add_values(std::array::from_mut(sum), factor, &weights, &query.slots, values, octets);
    }
}

/// The dot products of a query with 8 keys.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile_dots(query: &[[f32; LANES]], keys: &[[f32; LANES]]) -> __m256 {
    let octets = query.len();
    let mut sums = [_mm256_setzero_ps(); TILE_KEYS];
    for (octet, query) in query.iter().enumerate() {
        let query = load::floats(query);
        for (key, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_fmadd_ps(query, load::floats(&keys[key * octets + octet]), *sum);
        }
    }
    // Neighbours, then quarters, then halves are added, for all keys alike.
    let [a, b, c, d, e, f, g, h] = sums;
    let first = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let second = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
    let lower = _mm256_permute2f128_ps::<0x20>(first, second);
    let upper = _mm256_permute2f128_ps::<0x31>(first, second);
    _mm256_add_ps(lower, upper)
}

/// Shrinks `sums` by `factor` and adds the weighted values of the places in `slots`;
/// `values` begins with the first place's part for these sums, and a place has `octets` parts.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_values<const N: usize>(
    sums: &mut [[f32; LANES]; N],
    factor: f32,
    weights: &[f32; PAGE_TOKENS],
    slots: &Range<usize>,
    values: &[[f32; LANES]],
    octets: usize,
) {
    let factor = _mm256_set1_ps(factor);
    let mut registers = [_mm256_setzero_ps(); N];
    for (register, sum) in registers.iter_mut().zip(sums.iter()) {
        *register = _mm256_mul_ps(load::floats(sum), factor);
    }
    for slot in slots.clone() {
        let weight = _mm256_set1_ps(weights[slot]);
        let values = &values[slot * octets..][..N];
        for (register, value) in registers.iter_mut().zip(values) {
            *register = _mm256_fmadd_ps(weight, load::floats(value), *register);
        }
    }
    for (sum, register) in sums.iter_mut().zip(registers) {
        load::store(sum, register);
    }
}
