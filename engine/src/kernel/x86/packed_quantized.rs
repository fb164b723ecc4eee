//! Panels of quantized weights times activations of 8 or 16 bits, 8 rows in a register.
//!
//! `maddubs` multiplies unsigned bytes with signed ones and adds two products to 16 bits, in which it
//! stops at the largest number. Weights of 4 bits never come near it, even where the products of all quads
//! are added; those of 5 and 6 bits allow for fewer. Those of 8 bits are widened in place for `madd`, the
//! first and third of each row in one register, the second and fourth in another, and meet activations of
//! 16 bits that lie in the same pairs.

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

/// A block of 8 rows: unsigned bytes of 4 columns in each.
type Quads = [__m256i; QUADS];

/// A block of 8 rows in 16 bits.
type Pairs = [__m256i; 2 * QUADS];

/// How many products with quads of 4 bits can be added in 16 bits: `8 * 2 * 15 * 128` is below 2^15. Of 5
/// bits it is half of them, of 6 a quarter.
const QUADS_OF_4: usize = QUADS;
const QUADS_OF_5: usize = QUADS / 2;
const QUADS_OF_6: usize = QUADS / 4;

/// A block of one token's activations, and whether it has upper bytes.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    words: &'a Words,
    wide: bool,
}

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
        WeightType::Q4_0 => {
            scaled(panel, tile, sums, |quads, inputs| dot::<QUADS_OF_4, QUADS>(quads, inputs, 0))
        }
        WeightType::Q5_0 => {
            scaled(panel, tile, sums, |quads, inputs| dot::<QUADS_OF_5, QUADS>(quads, inputs, 0))
        }
        WeightType::Q8_0 => by_blocks(
            panel,
            tile,
            sums,
            |rows| (rows.pairs(), rows.scale()),
            |pairs, factors, inputs, token, sum| {
                let products = dot_pairs(pairs, inputs.words);
                add_scaled(above(products, token.offsets[0]), factors.scales[0], token, sum)
            },
        ),
        WeightType::Q4_1 | WeightType::Q4K => with_minimum(panel, tile, sums, |quads, inputs| {
            dot::<QUADS_OF_4, QUADS>(quads, inputs, 0)
        }),
        WeightType::Q5_1 | WeightType::Q5K => with_minimum(panel, tile, sums, |quads, inputs| {
            dot::<QUADS_OF_5, QUADS>(quads, inputs, 0)
        }),
        WeightType::Q6K => {
            by_blocks(
                panel,
                tile,
                sums,
                |rows| (rows.quads(), rows.factors()),
                |quads, factors, inputs, token, sum| {
                    const HALF: usize = QUADS / 2;
                    let (first, last) = quads.split_at(HALF);
                    let first = above(dot::<QUADS_OF_6, HALF>(first, inputs, 0), token.offsets[0]);
                    let last = above(dot::<QUADS_OF_6, HALF>(last, inputs, HALF), token.offsets[1]);
                    let first = _mm256_mul_ps(_mm256_cvtepi32_ps(first), factors.scales[0]);
                    let both = _mm256_fmadd_ps(_mm256_cvtepi32_ps(last), factors.scales[1], first);
                    _mm256_fmadd_ps(both, _mm256_set1_ps(token.scale), sum)
                },
            );
        }
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("weights in floating point are not packed as integers")
        }
    }
}

/// Types without a minimum.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled(
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    dot: impl Fn(&Quads, Inputs<'_>) -> __m256i + Copy,
) {
    by_blocks(
        panel,
        tile,
        sums,
        |rows| (rows.quads(), rows.factors()),
        |quads, factors, inputs, token, sum| {
            let products = above(dot(quads, inputs), token.offsets[0]);
            add_scaled(products, factors.scales[0], token, sum)
        },
    );
}

/// Types with a minimum.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn with_minimum(
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    dot: impl Fn(&Quads, Inputs<'_>) -> __m256i + Copy,
) {
    by_blocks(
        panel,
        tile,
        sums,
        |rows| (rows.quads(), rows.factors()),
        |quads, factors, inputs, token, sum| {
            let sum = add_scaled(dot(quads, inputs), factors.scales[0], token, sum);
            _mm256_fmadd_ps(factors.minimum, _mm256_set1_ps(token.sum), sum)
        },
    );
}

/// Reads block after block and adds its products to the sums of each token: `read` gives what `add`
/// multiplies.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_blocks<W>(
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    read: impl Fn(Rows<'_>) -> (W, Factors) + Copy,
    add: impl Fn(&W, &Factors, Inputs<'_>, &TokenFactors, __m256) -> __m256 + Copy,
) {
    sums.fill(Sums::ZERO);
    let words = tile.words.chunks_exact(tile.tokens);
    for (block, (words, tokens)) in words.zip(tile.factors.chunks_exact(tile.tokens)).enumerate() {
        for rows in 0..STRIPS * PARTS {
            let (strip, part) = (rows / PARTS, rows % PARTS);
            let (weights, factors) = read(Rows { panel, block, strip, part });
            // Counted, since what std chains together is called for each token where features differ.
            for (index, sums) in sums.iter_mut().enumerate() {
                let wide = tile.wide[block] >> index & 1 == 1;
                let inputs = Inputs { words: &words[index], wide };
                let sums = &mut sums.0[strip].as_chunks_mut::<LANES>().0[part];
                let sum = add(&weights, &factors, inputs, &tokens[index], load::floats(sums));
                load::store(sums, sum);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn dot_pairs(pairs: &Pairs, words: &Words) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for (&pairs, &word) in pairs.iter().zip(&words.0) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi32(word)));
    }
    sum
}

/// The products of `COUNT` quads with the words from `first` on; `TOGETHER` of them are added in 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn dot<const TOGETHER: usize, const COUNT: usize>(
    quads: &[__m256i],
    inputs: Inputs<'_>,
    first: usize,
) -> __m256i {
    let (upper, lower) = inputs.words.0.split_at(QUADS);
    let sum = dot_bytes::<TOGETHER, COUNT>(quads, &lower[first..]);
    if !inputs.wide {
        return sum;
    }
    // The upper bytes count 256 times the lower.
    let upper = dot_bytes::<TOGETHER, COUNT>(quads, &upper[first..]);
    _mm256_add_epi32(_mm256_slli_epi32::<8>(upper), sum)
}

#[target_feature(enable = "avx2")]
#[inline]
fn dot_bytes<const TOGETHER: usize, const COUNT: usize>(
    quads: &[__m256i],
    words: &[i32],
) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let mut sum = _mm256_setzero_si256();
    for start in (0..COUNT).step_by(TOGETHER) {
        let mut pairs = _mm256_setzero_si256();
        for place in start..start + TOGETHER {
            let products = _mm256_maddubs_epi16(quads[place], _mm256_set1_epi32(words[place]));
            pairs = _mm256_add_epi16(pairs, products);
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    sum
}

/// Products with weights that are packed from zero on, which `offset` makes up for.
#[target_feature(enable = "avx2")]
#[inline]
fn above(products: __m256i, offset: i32) -> __m256i {
    _mm256_add_epi32(products, _mm256_set1_epi32(offset))
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
    fn quads(self) -> Quads {
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
        quads
    }

    /// As [`Rows::quads`], of weights in 8 bits: for each word of the activations, the pairs that it is
    /// multiplied with.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn pairs(self) -> Pairs {
        let lines = self.panel.lines::<QUADS>(self.block, self.strip);
        let mut pairs = [_mm256_setzero_si256(); 2 * QUADS];
        for (pairs, line) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(lines) {
            let quad = load::bytes_32(&line.0.as_chunks().0[self.part]);
            let first = _mm256_and_si256(quad, _mm256_set1_epi16(0xff));
            *pairs = [first, _mm256_srli_epi16::<8>(quad)];
        }
        pairs
    }

    /// As [`Rows::factors`], of Q8_0.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn scale(self) -> Factors {
        let [scale] = self.panel.factors::<1>(self.block, self.strip);
        let scale = _mm256_cvtph_ps(load::bytes_16(&scale.0.as_chunks().0[self.part]));
        Factors { scales: [scale; 2], minimum: _mm256_setzero_ps() }
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
