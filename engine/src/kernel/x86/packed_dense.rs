//! Panels of weights in floating point, 8 rows a register.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use super::load;
use crate::kernel::packed::dense::{Format, PANEL_ROWS, Sums, Tile};

/// Registers of a panel's rows.
const REGISTERS: usize = PANEL_ROWS / 8;

/// Adds the products of `tile` to the sums of its tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply(format: Format, tile: Tile<'_>, sums: &mut [Sums]) {
    match format {
        Format::Binary32 => by_tokens::<256, 1>(tile, sums, |step, register, _| {
            _mm256_castsi256_ps(load::bytes_32(&step.as_chunks().0[register]))
        }),
        Format::Binary16 => by_tokens::<128, 1>(tile, sums, |step, register, _| {
            _mm256_cvtph_ps(load::bytes_16(&step.as_chunks().0[register]))
        }),
        Format::Bfloat16 => by_tokens::<256, 2>(tile, sums, |step, register, column| {
            widen(load::bytes_32(&step.as_chunks().0[register]), column)
        }),
        Format::Bfloat16Pairs | Format::Bfloat16Tiles => {
            unreachable!("AVX2 has no products of bfloat16")
        }
    }
}

/// `STEP` is how many bytes a step has, `WORDS` how many words of each token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_tokens<const STEP: usize, const WORDS: usize>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    load: impl Fn(&[u8; STEP], usize, usize) -> __m256 + Copy,
) {
    // A single token takes all rows at once, so that the weights are read in order. More take 16
    // rows, whose 12 sums, 2 weights and an input fill the 16 registers.
    match sums.len() {
        1 => multiply_tokens::<STEP, WORDS, 1, REGISTERS>(tile, sums, load),
        2 => multiply_tokens::<STEP, WORDS, 2, 2>(tile, sums, load),
        3 => multiply_tokens::<STEP, WORDS, 3, 2>(tile, sums, load),
        4 => multiply_tokens::<STEP, WORDS, 4, 2>(tile, sums, load),
        5 => multiply_tokens::<STEP, WORDS, 5, 2>(tile, sums, load),
        6 => multiply_tokens::<STEP, WORDS, 6, 2>(tile, sums, load),
        count => unreachable!("a tile of {count} tokens"),
    }
}

/// Takes `TAKEN` registers of rows through all steps, then the next ones.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn multiply_tokens<
    const STEP: usize,
    const WORDS: usize,
    const TOKENS: usize,
    const TAKEN: usize,
>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    load: impl Fn(&[u8; STEP], usize, usize) -> __m256 + Copy,
) {
    let steps = tile.weights.as_chunks::<STEP>().0;
    let inputs = tile.inputs.as_chunks::<TOKENS>().0.as_chunks::<WORDS>().0;
    let mut ahead = tile.ahead.chunks(64);
    for first in (0..REGISTERS).step_by(TAKEN) {
        let mut registers = [[_mm256_setzero_ps(); TAKEN]; TOKENS];
        for token in 0..TOKENS {
            for register in 0..TAKEN {
                let sums = sums[token].as_chunks().0;
                registers[token][register] = load::floats(&sums[first + register]);
            }
        }
        for (step, inputs) in steps.iter().zip(inputs) {
            if let Some(line) = ahead.next() {
                fetch(line);
            }
            for word in 0..WORDS {
                let mut weights = [_mm256_setzero_ps(); TAKEN];
                for register in 0..TAKEN {
                    weights[register] = load(step, first + register, word);
                }
                for token in 0..TOKENS {
                    let input = _mm256_set1_ps(f32::from_bits(inputs[word][token]));
                    for register in 0..TAKEN {
                        let sum = registers[token][register];
                        registers[token][register] = _mm256_fmadd_ps(weights[register], input, sum);
                    }
                }
            }
        }
        for token in 0..TOKENS {
            for register in 0..TAKEN {
                let sums = sums[token].as_chunks_mut().0;
                load::store(&mut sums[first + register], registers[token][register]);
            }
        }
    }
}

/// The even (0) or odd (1) columns of pairs of bfloat16, in binary32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen(pairs: __m256i, column: usize) -> __m256 {
    let words = if column == 0 {
        _mm256_slli_epi32::<16>(pairs)
    } else {
        _mm256_and_si256(pairs, _mm256_set1_epi32(-0x1_0000))
    };
    _mm256_castsi256_ps(words)
}

/// Brings the line of `bytes` into the second-level cache.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fetch(bytes: &[u8]) {
    _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().cast());
}
