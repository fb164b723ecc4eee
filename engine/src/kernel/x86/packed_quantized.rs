//! Panels of quantized weights times activations of 16 bits, 8 rows in a register.
//!
//! `madd` multiplies pairs of 16-bit integers and adds them to 32 bits. The bytes of a quad are
//! widened in place: the first and third of each row in one register, the second and fourth in
//! another; the activations lie in the same pairs.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use umbel_shard::WeightType;

use super::load;
use crate::kernel::LANES;
use crate::kernel::packed::quantized::layout::{HalfLine, Line, QUADS, STRIP_ROWS, STRIPS};
use crate::kernel::packed::quantized::tokens::{IntegerTile, TokenFactors, Words};
use crate::kernel::packed::quantized::{Panel, Sums};

/// Registers for the rows of a strip.
const PARTS: usize = STRIP_ROWS / LANES;

/// A block of 8 rows: for each word of the activations, the pairs that it is multiplied with.
type Pairs = [__m256i; 2 * QUADS];

/// What the integers of a block stand for: `scales[half] * integer + minimum`, where the halves are
/// of 16 columns.
struct Factors {
    scales: [__m256; 2],
    minimum: __m256,
}

/// One panel times one tile of tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply(panel: Panel<'_>, tile: IntegerTile<'_>, sums: &mut [Sums]) {
    match panel.kind {
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => {
            by_blocks(panel, tile, sums, |pairs, factors, words, token, sum| {
                let products = dot(pairs, words, 0, 2 * QUADS, token.offsets[0]);
                add_scaled(products, factors.scales[0], token, sum)
            })
        }
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
            by_blocks(panel, tile, sums, |pairs, factors, words, token, sum| {
                let products = dot(pairs, words, 0, 2 * QUADS, 0);
                let sum = add_scaled(products, factors.scales[0], token, sum);
                _mm256_fmadd_ps(factors.minimum, _mm256_set1_ps(token.sum), sum)
            })
        }
        WeightType::Q6K => by_blocks(panel, tile, sums, |pairs, factors, words, token, sum| {
            let first = dot(pairs, words, 0, QUADS, token.offsets[0]);
            let last = dot(pairs, words, QUADS, 2 * QUADS, token.offsets[1]);
            let first = _mm256_mul_ps(_mm256_cvtepi32_ps(first), factors.scales[0]);
            let both = _mm256_fmadd_ps(_mm256_cvtepi32_ps(last), factors.scales[1], first);
            _mm256_fmadd_ps(both, _mm256_set1_ps(token.scale), sum)
        }),
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("weights in floating point are not packed as integers")
        }
    }
}

/// Reads block after block and adds its products to the sums of each token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_blocks(
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    add: impl Fn(&Pairs, &Factors, &Words, &TokenFactors, __m256) -> __m256 + Copy,
) {
    sums.fill(Sums::ZERO);
    let words = tile.words.chunks_exact(tile.tokens);
    for (block, (words, tokens)) in words.zip(tile.factors.chunks_exact(tile.tokens)).enumerate() {
        for rows in 0..STRIPS * PARTS {
            let (strip, part) = (rows / PARTS, rows % PARTS);
            let read = Rows { panel, block, strip, part };
            let (pairs, factors) = (read.pairs(), read.factors());
            for ((words, token), sums) in words.iter().zip(tokens).zip(sums.iter_mut()) {
                let sums = &mut sums.0[strip].as_chunks_mut::<LANES>().0[part];
                let sum = add(&pairs, &factors, words, token, load::floats(sums));
                load::store(sums, sum);
            }
        }
    }
}

/// The products with the words from `first` to before `last`, and `offset`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dot(pairs: &Pairs, words: &Words, first: usize, last: usize, offset: i32) -> __m256i {
    let mut sum = _mm256_set1_epi32(offset);
    for (&pairs, &word) in pairs[first..last].iter().zip(&words.0[first..last]) {
        let products = _mm256_madd_epi16(pairs, _mm256_set1_epi32(word));
        sum = _mm256_add_epi32(sum, products);
    }
    sum
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_scaled(products: __m256i, scale: __m256, token: &TokenFactors, sum: __m256) -> __m256 {
    let scale = _mm256_mul_ps(scale, _mm256_set1_ps(token.scale));
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sum)
}

/// 8 rows of a block.
#[derive(Clone, Copy)]
struct Rows<'a> {
    panel: Panel<'a>,
    block: usize,
    strip: usize,
    part: usize,
}

impl Rows<'_> {
    /// The weights of a block.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn pairs(self) -> Pairs {
        let Self { panel, block, strip, part } = self;
        let bytes = |line: &Line| load::bytes_32(&line.0.as_chunks().0[part]);
        let mut quads = [_mm256_setzero_si256(); QUADS];
        match panel.kind {
            WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => {
                bits_4(panel.lines::<4>(block, strip).each_ref().map(bytes), &mut quads);
            }
            WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => {
                let [first @ .., fifth] = panel.lines::<5>(block, strip).each_ref().map(bytes);
                bits_4(first, &mut quads);
                add_fifth(fifth, &mut quads);
            }
            WeightType::Q6K => {
                let [first @ .., upper, last_upper] =
                    panel.lines::<6>(block, strip).each_ref().map(bytes);
                bits_4(first, &mut quads);
                add_upper([upper, last_upper], &mut quads);
            }
            WeightType::Q8_0 => quads = panel.lines::<8>(block, strip).each_ref().map(bytes),
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                unreachable!("weights in floating point are not packed as integers")
            }
        }
        let mut pairs = [_mm256_setzero_si256(); 2 * QUADS];
        for (pairs, quad) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(quads) {
            *pairs =
                [_mm256_and_si256(quad, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(quad)];
        }
        pairs
    }

    /// The factors of a block.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn factors(self) -> Factors {
        let Self { panel, block, strip, part } = self;
        let binary16 =
            |factors: &HalfLine| _mm256_cvtph_ps(load::bytes_16(&factors.0.as_chunks().0[part]));
        let bytes = |half_line: &[u8; STRIP_ROWS]| load::bytes_8(half_line.as_chunks().0[part]);
        let zero = _mm256_setzero_ps();
        match panel.kind {
            WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => {
                let [scale] = panel.factors::<1>(block, strip).each_ref().map(binary16);
                Factors { scales: [scale; 2], minimum: zero }
            }
            WeightType::Q4_1 | WeightType::Q5_1 => {
                let [scale, minimum] = panel.factors::<2>(block, strip).each_ref().map(binary16);
                Factors { scales: [scale; 2], minimum }
            }
            WeightType::Q4K | WeightType::Q5K => {
                let [scale, minimum] = panel.supers::<2>(block, strip).each_ref().map(binary16);
                let [factors] = panel.factors::<1>(block, strip);
                let [scales, minimums] = factors
                    .halves()
                    .map(|half_line| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(half_line))));
                let minimum = _mm256_mul_ps(minimum, minimums);
                Factors {
                    scales: [_mm256_mul_ps(scale, scales); 2],
                    minimum: _mm256_xor_ps(minimum, _mm256_set1_ps(-0.0)),
                }
            }
            WeightType::Q6K => {
                let [scale] = panel.supers::<1>(block, strip).each_ref().map(binary16);
                let [factors] = panel.factors::<1>(block, strip);
                let scales = factors.halves().map(|half_line| {
                    let integers = _mm256_cvtepi8_epi32(bytes(half_line));
                    _mm256_mul_ps(scale, _mm256_cvtepi32_ps(integers))
                });
                Factors { scales, minimum: zero }
            }
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                unreachable!("weights in floating point are not packed as integers")
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn bits_4(lines: [__m256i; 4], quads: &mut [__m256i; QUADS]) {
    let lower = _mm256_set1_epi8(0xf);
    for (quad, halves) in lines.into_iter().enumerate() {
        quads[quad] = _mm256_and_si256(halves, lower);
        quads[quad + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(halves), lower);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_fifth(fifth: __m256i, quads: &mut [__m256i; QUADS]) {
    // What crosses from one byte to the next by shifting pairs of them never reaches the place.
    let shifted = [
        _mm256_slli_epi16::<4>(fifth),
        _mm256_slli_epi16::<3>(fifth),
        _mm256_slli_epi16::<2>(fifth),
        _mm256_slli_epi16::<1>(fifth),
        fifth,
        _mm256_srli_epi16::<1>(fifth),
        _mm256_srli_epi16::<2>(fifth),
        _mm256_srli_epi16::<3>(fifth),
    ];
    for (quad, shifted) in quads.iter_mut().zip(shifted) {
        *quad = _mm256_or_si256(*quad, _mm256_and_si256(shifted, _mm256_set1_epi8(0x10)));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_upper(lines: [__m256i; 2], quads: &mut [__m256i; QUADS]) {
    for (quads, upper) in quads.as_chunks_mut::<4>().0.iter_mut().zip(lines) {
        let shifted = [
            _mm256_slli_epi16::<4>(upper),
            _mm256_slli_epi16::<2>(upper),
            upper,
            _mm256_srli_epi16::<2>(upper),
        ];
        for (quad, shifted) in quads.iter_mut().zip(shifted) {
            *quad = _mm256_or_si256(*quad, _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)));
        }
    }
}
