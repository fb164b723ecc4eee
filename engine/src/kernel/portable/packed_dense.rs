//! Panels of weights in floating point: arrays of rows, which compilers turn into vectors.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

use crate::kernel::packed::dense::{Format, PANEL_ROWS, Sums, Tile};

/// Adds the products of `tile` to the sums of its tokens.
pub(in crate::kernel) fn multiply_tile(format: Format, tile: Tile<'_>, sums: &mut [Sums]) {
    match format {
        Format::Binary32 => by_tokens::<4, 1>(tile, sums, |row, _| f32::from_le_bytes(*row)),
        Format::Binary16 => by_tokens::<2, 1>(tile, sums, |row, _| binary16(*row)),
        Format::Bfloat16 => by_tokens::<4, 2>(tile, sums, bfloat16),
        Format::Bfloat16Pairs | Format::Bfloat16Tiles => {
            unreachable!("products of bfloat16 need a unit for them")
        }
    }
}

/// `ROW` is how many bytes a row has in a step, `WORDS` how many words each token.
fn by_tokens<const ROW: usize, const WORDS: usize>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    widen: impl Fn(&[u8; ROW], usize) -> f32 + Copy,
) {
    // 6 tokens with 8 rows have 12 registers of 4 sums, of the 16 that the narrowest machines have.
    // A single token takes more rows, so that its sums do not wait for each other.
    match sums.len() {
        1 => multiply_tokens::<ROW, WORDS, 1, 16>(tile, sums, widen),
        2 => multiply_tokens::<ROW, WORDS, 2, 8>(tile, sums, widen),
        3 => multiply_tokens::<ROW, WORDS, 3, 8>(tile, sums, widen),
        4 => multiply_tokens::<ROW, WORDS, 4, 8>(tile, sums, widen),
        5 => multiply_tokens::<ROW, WORDS, 5, 8>(tile, sums, widen),
        6 => multiply_tokens::<ROW, WORDS, 6, 8>(tile, sums, widen),
        count => unreachable!("a tile of {count} tokens"),
    }
}

/// Takes `TAKEN` rows through all steps, then the next ones.
fn multiply_tokens<
    const ROW: usize,
    const WORDS: usize,
    const TOKENS: usize,
    const TAKEN: usize,
>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    widen: impl Fn(&[u8; ROW], usize) -> f32 + Copy,
) {
    let steps = tile.weights.as_chunks::<ROW>().0.as_chunks::<PANEL_ROWS>().0;
    let inputs = tile.inputs.as_chunks::<TOKENS>().0.as_chunks::<WORDS>().0;
    for part in 0..PANEL_ROWS / TAKEN {
        let mut lanes = [[0.0; TAKEN]; TOKENS];
        for token in 0..TOKENS {
            lanes[token] = sums[token].as_chunks::<TAKEN>().0[part];
        }
        for (step, inputs) in steps.iter().zip(inputs) {
            let rows = &step.as_chunks::<TAKEN>().0[part];
            for word in 0..WORDS {
                let weights = rows.each_ref().map(|row| widen(row, word));
                for token in 0..TOKENS {
                    let input = f32::from_bits(inputs[word][token]);
                    for row in 0..TAKEN {
                        lanes[token][row] = multiply_add(weights[row], input, lanes[token][row]);
                    }
                }
            }
        }
        for token in 0..TOKENS {
            sums[token].as_chunks_mut::<TAKEN>().0[part] = lanes[token];
        }
    }
}

/// `weight * input + sum`: rounded once where every machine of the target has an instruction for it,
/// twice elsewhere, as a call of a function would take longer than all the rest.
#[inline(always)]
fn multiply_add(weight: f32, input: f32, sum: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        weight.mul_add(input, sum)
    } else {
        weight * input + sum
    }
}

/// The column `word` of a pair of bfloat16.
#[inline(always)]
fn bfloat16(pair: &[u8; 4], word: usize) -> f32 {
    let pair = u32::from_le_bytes(*pair);
    f32::from_bits(if word == 0 { pair << 16 } else { pair & 0xffff_0000 })
}

/// Widens by a multiplication, exact for denormals too, as a loop of it becomes vectors.
#[inline(always)]
fn binary16(bytes: [u8; 2]) -> f32 {
    /// The exponents of binary32 are 112 above those of binary16.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let half = u32::from(u16::from_le_bytes(bytes));
    let finite = f32::from_bits((half & 0x7fff) << 13) * REBIAS;
    let endless = 0x7f80_0000 | (half & 0x03ff) << 13;
    let magnitude = if half & 0x7c00 == 0x7c00 { endless } else { finite.to_bits() };
    f32::from_bits(magnitude | (half & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_binary16_is_widened_as_it_should_be() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (binary16(bits.to_le_bytes()), f16::from_bits(bits).to_f32());
            assert_eq!(found.is_nan(), expected.is_nan(), "{bits:#06x}");
            assert!(found.is_nan() || found.to_bits() == expected.to_bits(), "{bits:#06x}");
        }
    }
}
