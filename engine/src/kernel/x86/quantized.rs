//! Weights in blocks of 32: a register of bytes for each block.
//!
//! `maddubs` multiplies unsigned bytes with signed ones, so the 4 and 5 bits of a weight stay
//! unsigned, and what they are above (8 or 16 steps) becomes part of the block's minimum, which is
//! multiplied with the sum of the activations. The pairs of products fit in 16 bits: at most
//! `2 * 31 * 127`, and `2 * 128 * 127` for the weights of 8 bits.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::array;

use super::dense::write;
use super::load;
use crate::kernel::activation::BlockRow;
use crate::kernel::format::{Q4_0_BYTES, Q4_1_BYTES, Q5_0_BYTES, Q5_1_BYTES, Q8_0_BYTES, part};
use crate::kernel::matmul::Panel;

/// 32 weights: each is `scale * value + minimum`.
#[derive(Clone, Copy)]
struct Weights {
    /// Bytes, unsigned but in Q8_0.
    values: __m256i,
    /// The same number in all lanes.
    scale: __m256,
    /// The same number in all lanes; unused in Q8_0.
    minimum: __m256,
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q4_0(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens::<Q4_0_BYTES, false>(panel, outputs, |block| {
        above(8.0, nibbles(part(block, 2)), load::binary16(part(block, 0)))
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q4_1(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens::<Q4_1_BYTES, false>(panel, outputs, |block| Weights {
        values: nibbles(part(block, 4)),
        scale: load::binary16(part(block, 0)),
        minimum: load::binary16(part(block, 2)),
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q5_0(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens::<Q5_0_BYTES, false>(panel, outputs, |block| {
        let values = with_fifth_bits(nibbles(part(block, 6)), part(block, 2));
        above(16.0, values, load::binary16(part(block, 0)))
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q5_1(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens::<Q5_1_BYTES, false>(panel, outputs, |block| Weights {
        values: with_fifth_bits(nibbles(part(block, 8)), part(block, 4)),
        scale: load::binary16(part(block, 0)),
        minimum: load::binary16(part(block, 2)),
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q8_0(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens::<Q8_0_BYTES, true>(panel, outputs, |block| Weights {
        values: load::bytes_32(part(block, 2)),
        scale: load::binary16(part(block, 0)),
        minimum: _mm256_setzero_ps(),
    });
}

/// Weights that are written as `zero` steps too many.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn above(zero: f32, values: __m256i, scale: __m256) -> Weights {
    Weights { values, scale, minimum: _mm256_mul_ps(scale, _mm256_set1_ps(-zero)) }
}

/// The lower halves of 16 bytes, then the upper ones.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles(bytes: &[u8; 16]) -> __m256i {
    let bytes = load::bytes_16(bytes);
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    _mm256_and_si256(both, _mm256_set1_epi8(0xf))
}

/// Adds 16 to each value whose bit is set.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn with_fifth_bits(values: __m256i, bits: &[u8; 4]) -> __m256i {
    // Each byte of a lane gets the byte of bits that holds its own, then all bits but its own are
    // set: it is all ones where its own is set too.
    let spread = _mm256_shuffle_epi8(
        _mm256_set1_epi32(i32::from_le_bytes(*bits)),
        _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0),
    );
    let others = _mm256_set1_epi64x(0x7fbf_dfef_f7fb_fdfe);
    let set = _mm256_cmpeq_epi8(_mm256_or_si256(spread, others), _mm256_set1_epi8(-1));
    _mm256_or_si256(values, _mm256_and_si256(set, _mm256_set1_epi8(0x10)))
}

/// `SIGNED` weights have no minimum.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_tokens<const BYTES: usize, const SIGNED: bool>(
    panel: Panel<'_>,
    outputs: &mut [&mut [f32]],
    read: impl Fn(&[u8; BYTES]) -> Weights + Copy,
) {
    let row = |token: usize| panel.activations.block_row(panel.first_token + token);
    match outputs.len() {
        1 => by_rows::<BYTES, SIGNED, 4, 1>(panel, array::from_fn(row), outputs, read),
        2 => by_rows::<BYTES, SIGNED, 2, 2>(panel, array::from_fn(row), outputs, read),
        3 => by_rows::<BYTES, SIGNED, 2, 3>(panel, array::from_fn(row), outputs, read),
        4 => by_rows::<BYTES, SIGNED, 2, 4>(panel, array::from_fn(row), outputs, read),
        count => unreachable!("a tile of {count} tokens"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_rows<const BYTES: usize, const SIGNED: bool, const ROWS: usize, const TOKENS: usize>(
    panel: Panel<'_>,
    tokens: [BlockRow<'_>; TOKENS],
    outputs: &mut [&mut [f32]],
    read: impl Fn(&[u8; BYTES]) -> Weights + Copy,
) {
    let mut place = panel.first_row;
    let mut tiles = panel.bytes.chunks_exact(ROWS * panel.row_bytes);
    for tile in &mut tiles {
        let rows = array::from_fn(|row| &tile[row * panel.row_bytes..][..panel.row_bytes]);
        write(place, dot::<BYTES, SIGNED, ROWS, TOKENS>(rows, tokens, read), outputs);
        place += ROWS;
    }
    for row in tiles.remainder().chunks_exact(panel.row_bytes) {
        write(place, dot::<BYTES, SIGNED, 1, TOKENS>([row], tokens, read), outputs);
        place += 1;
    }
}

/// The dot product of each row with each token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dot<const BYTES: usize, const SIGNED: bool, const ROWS: usize, const TOKENS: usize>(
    rows: [&[u8]; ROWS],
    tokens: [BlockRow<'_>; TOKENS],
    read: impl Fn(&[u8; BYTES]) -> Weights + Copy,
) -> [[f32; TOKENS]; ROWS] {
    let blocks = rows[0].len() / BYTES;
    let rows = rows.map(|row| &row.as_chunks::<BYTES>().0[..blocks]);
    let values = tokens.map(|token| &token.values[..blocks]);
    let factors = tokens.map(|token| &token.factors[..blocks]);
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_ps(); TOKENS]; ROWS];
    for block in 0..blocks {
        let mut weights = [read(&rows[0][block]); ROWS];
        for row in 1..ROWS {
            weights[row] = read(&rows[row][block]);
        }
        for token in 0..TOKENS {
            let inputs = load::integers_32(&values[token][block].0);
            let scale = _mm256_set1_ps(factors[token][block].scale);
            let eighth_sum = _mm256_set1_ps(factors[token][block].eighth_sum);
            for row in 0..ROWS {
                let Weights { values, scale: weight_scale, minimum } = weights[row];
                let pairs = if SIGNED {
                    // The weights' signs move to the activations.
                    let inputs = _mm256_sign_epi8(inputs, values);
                    _mm256_maddubs_epi16(_mm256_abs_epi8(values), inputs)
                } else {
                    _mm256_maddubs_epi16(values, inputs)
                };
                let products = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                let mut sum = sums[row][token];
                if !SIGNED {
                    sum = _mm256_fmadd_ps(minimum, eighth_sum, sum);
                }
                let products = _mm256_mul_ps(products, scale);
                sums[row][token] = _mm256_fmadd_ps(weight_scale, products, sum);
            }
        }
    }
    let mut dots = [[0.0; TOKENS]; ROWS];
    for row in 0..ROWS {
        for token in 0..TOKENS {
            dots[row][token] = load::sum(sums[row][token]);
        }
    }
    dots
}
