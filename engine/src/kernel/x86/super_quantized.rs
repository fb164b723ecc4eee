//! K-quants: blocks of 256 weights whose groups have integer scales.
//!
//! A group's scale multiplies its pairs of products as they are added to 32 bits, so a block stays
//! in integers until its end: at most `32 * 63 * 127 * 128` in each of the 8 lanes.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::array;

use super::dense::write;
use super::load;
use crate::kernel::activation::SuperIntegers;
use crate::kernel::format::{Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES, part, six_bit_factors};
use crate::kernel::matmul::Panel;

/// What 256 weights share: each is `scale * scales[group] * value + minimum * minimums[group]`.
struct Factors {
    /// Signed bytes, one for each group of 16 weights.
    scales: __m128i,
    /// 16-bit integers, one for each group.
    minimums: __m256i,
    /// The same number in all lanes.
    scale: __m256,
    /// The same number in all lanes.
    minimum: __m256,
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q4_k(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    let factors = |block: &[u8; Q4_K_BYTES]| paired_factors(part(block, 0));
    by_tokens(panel, outputs, factors, |block, half| {
        let [first, second] = nibbles(part(block, 16 + half * 64));
        let [third, fourth] = nibbles(part(block, 48 + half * 64));
        [first, second, third, fourth]
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q5_k(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    let factors = |block: &[u8; Q5_K_BYTES]| paired_factors(part(block, 0));
    by_tokens(panel, outputs, factors, |block, half| {
        let [first, second] = nibbles(part(block, 48 + half * 64));
        let [third, fourth] = nibbles(part(block, 80 + half * 64));
        let bits = load::bytes_32(part(block, 16));
        // Four bits of each byte are for this half.
        let bits = if half == 0 { bits } else { _mm256_srli_epi16::<4>(bits) };
        let above = |bits| _mm256_and_si256(bits, _mm256_set1_epi8(0x10));
        [
            _mm256_or_si256(first, above(_mm256_slli_epi16::<4>(bits))),
            _mm256_or_si256(second, above(_mm256_slli_epi16::<3>(bits))),
            _mm256_or_si256(third, above(_mm256_slli_epi16::<2>(bits))),
            _mm256_or_si256(fourth, above(_mm256_slli_epi16::<1>(bits))),
        ]
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q6_k(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    let factors = |block: &[u8; Q6_K_BYTES]| {
        let (scales, scale) = (load::bytes_16(part(block, 192)), load::binary16(part(block, 208)));
        // The values are written as 32 too many, whatever their group's scale.
        let minimum = _mm256_mul_ps(scale, _mm256_set1_ps(-32.0));
        Factors { scales, minimums: _mm256_cvtepi8_epi16(scales), scale, minimum }
    };
    by_tokens(panel, outputs, factors, |block, half| {
        let [first, third] = nibbles(part(block, half * 64));
        let [second, fourth] = nibbles(part(block, half * 64 + 32));
        let bits = load::bytes_32(part(block, 128 + half * 32));
        let above = |bits| _mm256_and_si256(bits, _mm256_set1_epi8(0x30));
        [
            _mm256_or_si256(first, above(_mm256_slli_epi16::<4>(bits))),
            _mm256_or_si256(second, above(_mm256_slli_epi16::<2>(bits))),
            _mm256_or_si256(third, above(bits)),
            _mm256_or_si256(fourth, above(_mm256_srli_epi16::<2>(bits))),
        ]
    });
}

/// The factors with which blocks of Q4_K and Q5_K begin; a scale and a minimum are for two groups.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn paired_factors(bytes: &[u8; 16]) -> Factors {
    let (scales, minimums) = six_bit_factors(part(bytes, 4));
    let [scales, minimums] = [scales, minimums].map(|factors| {
        let factors = load::bytes_8(factors);
        _mm_unpacklo_epi8(factors, factors)
    });
    Factors {
        scales,
        minimums: _mm256_cvtepi8_epi16(minimums),
        scale: load::binary16(part(bytes, 0)),
        minimum: _mm256_xor_ps(load::binary16(part(bytes, 2)), _mm256_set1_ps(-0.0)),
    }
}

/// The lower halves of 32 bytes, and the upper ones.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles(bytes: &[u8; 32]) -> [__m256i; 2] {
    let (bytes, lower) = (load::bytes_32(bytes), _mm256_set1_epi8(0xf));
    [_mm256_and_si256(bytes, lower), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), lower)]
}

/// `values` reads a half of a block, 32 weights in each of four registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_tokens<const BYTES: usize>(
    panel: Panel<'_>,
    outputs: &mut [&mut [f32]],
    factors: impl Fn(&[u8; BYTES]) -> Factors + Copy,
    values: impl Fn(&[u8; BYTES], usize) -> [__m256i; 4] + Copy,
) {
    let row = |token: usize| panel.activations.super_row(panel.first_token + token);
    match outputs.len() {
        1 => by_rows::<BYTES, 1>(panel, array::from_fn(row), outputs, factors, values),
        2 => by_rows::<BYTES, 2>(panel, array::from_fn(row), outputs, factors, values),
        3 => by_rows::<BYTES, 3>(panel, array::from_fn(row), outputs, factors, values),
        4 => by_rows::<BYTES, 4>(panel, array::from_fn(row), outputs, factors, values),
        count => unreachable!("a tile of {count} tokens"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_rows<const BYTES: usize, const TOKENS: usize>(
    panel: Panel<'_>,
    tokens: [&[SuperIntegers]; TOKENS],
    outputs: &mut [&mut [f32]],
    factors: impl Fn(&[u8; BYTES]) -> Factors + Copy,
    values: impl Fn(&[u8; BYTES], usize) -> [__m256i; 4] + Copy,
) {
    for (place, row) in panel.rows() {
        write(place, [dot::<BYTES, TOKENS>(row, tokens, factors, values)], outputs);
    }
}

/// The dot product of a row with each token. The registers are full with one row: its unpacked
/// weights, and for each token a sum of integers and one of floats.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dot<const BYTES: usize, const TOKENS: usize>(
    row: &[u8],
    tokens: [&[SuperIntegers]; TOKENS],
    factors: impl Fn(&[u8; BYTES]) -> Factors + Copy,
    values: impl Fn(&[u8; BYTES], usize) -> [__m256i; 4] + Copy,
) -> [f32; TOKENS] {
    let row = row.as_chunks::<BYTES>().0;
    let tokens = tokens.map(|token| &token[..row.len()]);
    let mut sums = [_mm256_setzero_ps(); TOKENS];
    for (place, block) in row.iter().enumerate() {
        let Factors { scales, minimums, scale, minimum } = factors(block);
        let mut products = [_mm256_setzero_si256(); TOKENS];
        for half in 0..2 {
            let runs = values(block, half);
            for (run, values) in runs.into_iter().enumerate() {
                let index = half * 4 + run;
                let scales = run_scales(scales, index);
                for token in 0..TOKENS {
                    let inputs = part(&tokens[token][place].values, index * 32);
                    let pairs = _mm256_maddubs_epi16(values, load::integers_32(inputs));
                    let scaled = _mm256_madd_epi16(pairs, scales);
                    products[token] = _mm256_add_epi32(products[token], scaled);
                }
            }
        }
        for token in 0..TOKENS {
            let inputs = &tokens[token][place];
            let input_scale = _mm256_set1_ps(inputs.scale);
            let offsets = _mm256_madd_epi16(minimums, load::words_16(&inputs.group_sums));
            let offset_scale = _mm256_mul_ps(minimum, input_scale);
            let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(offsets), offset_scale, sums[token]);
            let product_scale = _mm256_mul_ps(scale, input_scale);
            sums[token] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[token]), product_scale, sum);
        }
    }
    let mut dots = [0.0; TOKENS];
    for token in 0..TOKENS {
        dots[token] = load::sum(sums[token]);
    }
    dots
}

/// The scales of run `index` of 32 weights: its first group's in the lower half, then the second's.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn run_scales(scales: __m128i, index: usize) -> __m256i {
    const PAIRS: [[i64; 2]; 8] = run_shuffles();
    let [lower, upper] = PAIRS[index];
    _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, _mm_set_epi64x(upper, lower)))
}

/// For each run, which byte of the scales goes to each byte of a register.
const fn run_shuffles() -> [[i64; 2]; 8] {
    let mut shuffles = [[0; 2]; 8];
    let mut group = 0;
    while group < 16 {
        shuffles[group / 2][group % 2] = 0x0101_0101_0101_0101 * group as i64;
        group += 1;
    }
    shuffles
}
