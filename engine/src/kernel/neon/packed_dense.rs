//! Panels of weights in floating point, 4 rows a register.
//!
//! Sums are fused, as the portable loops fuse them on this target: both give the same bits.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::aarch64::*;

use super::load;
use crate::kernel::packed::dense::{Format, PANEL_ROWS, Sums, Tile};

/// Registers of a panel's rows.
const REGISTERS: usize = PANEL_ROWS / 4;

/// Adds the products of `tile` to the sums of its tokens.
#[target_feature(enable = "neon")]
pub(super) fn multiply(format: Format, tile: Tile<'_>, sums: &mut [Sums]) {
    match format {
        Format::Binary32 => by_tokens::<256, 1>(tile, sums, |step, register, _| {
            vreinterpretq_f32_u8(load::bytes_16(&step.as_chunks().0[register]))
        }),
        Format::Binary16 => by_tokens::<128, 1>(tile, sums, |step, register, _| {
            load::binary16(&step.as_chunks().0[register])
        }),
        Format::Bfloat16 => by_tokens::<256, 2>(tile, sums, |step, register, column| {
            widen(load::bytes_16(&step.as_chunks().0[register]), column)
        }),
        Format::Bfloat16Pairs | Format::Bfloat16Tiles => {
            unreachable!("NEON has no products of bfloat16")
        }
    }
}

/// `STEP` is how many bytes a step has, `WORDS` how many words of each token.
#[target_feature(enable = "neon")]
#[inline]
fn by_tokens<const STEP: usize, const WORDS: usize>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    load: impl Fn(&[u8; STEP], usize, usize) -> float32x4_t + Copy,
) {
    // Wide cores add four times a cycle and wait four cycles for a sum, so 16 sums go side by side
    // where the registers allow it. A single token takes all rows at once, so that the weights are
    // read in order; six take 16 rows, whose 24 sums, 4 weights and an input fill 29 registers.
    match sums.len() {
        1 => multiply_tokens::<STEP, WORDS, 1, REGISTERS>(tile, sums, load),
        2 => multiply_tokens::<STEP, WORDS, 2, 8>(tile, sums, load),
        3 => multiply_tokens::<STEP, WORDS, 3, 4>(tile, sums, load),
        4 => multiply_tokens::<STEP, WORDS, 4, 4>(tile, sums, load),
        5 => multiply_tokens::<STEP, WORDS, 5, 4>(tile, sums, load),
        6 => multiply_tokens::<STEP, WORDS, 6, 4>(tile, sums, load),
        count => unreachable!("a tile of {count} tokens"),
    }
}

/// Takes `TAKEN` registers of rows through all steps, then the next ones.
#[target_feature(enable = "neon")]
#[inline]
fn multiply_tokens<
    const STEP: usize,
    const WORDS: usize,
    const TOKENS: usize,
    const TAKEN: usize,
>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    load: impl Fn(&[u8; STEP], usize, usize) -> float32x4_t + Copy,
) {
    let steps = tile.weights.as_chunks::<STEP>().0;
    let inputs = tile.inputs.as_chunks::<TOKENS>().0.as_chunks::<WORDS>().0;
    let mut ahead = tile.ahead.chunks(64);
    for first in (0..REGISTERS).step_by(TAKEN) {
        let mut registers = [[vdupq_n_f32(0.0); TAKEN]; TOKENS];
        for token in 0..TOKENS {
            for register in 0..TAKEN {
                let sums = sums[token].as_chunks().0;
                registers[token][register] = load::floats(&sums[first + register]);
            }
        }
        for (step, inputs) in steps.iter().zip(inputs) {
            if let Some(line) = ahead.next() {
                load::fetch(line);
            }
            for word in 0..WORDS {
                let mut weights = [vdupq_n_f32(0.0); TAKEN];
                for register in 0..TAKEN {
                    weights[register] = load(step, first + register, word);
                }
                for token in 0..TOKENS {
                    let input = f32::from_bits(inputs[word][token]);
                    for register in 0..TAKEN {
                        let sum = registers[token][register];
                        registers[token][register] = vfmaq_n_f32(sum, weights[register], input);
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
#[target_feature(enable = "neon")]
#[inline]
fn widen(pairs: uint8x16_t, column: usize) -> float32x4_t {
    let pairs = vreinterpretq_u32_u8(pairs);
    let words = if column == 0 {
        vshlq_n_u32::<16>(pairs)
    } else {
        vandq_u32(pairs, vdupq_n_u32(0xffff_0000))
    };
    vreinterpretq_f32_u32(words)
}
