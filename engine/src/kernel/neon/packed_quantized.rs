//! Panels of quantized weights times activations of 8 or 16 bits, 4 rows a register.
//!
//! SDOT multiplies signed bytes: weights of up to 6 bits are what they are, and those of 8 bits, which
//! are packed from zero on, become what they stand for, so that nothing has to make up for their zero.
//! Without SDOT, weights are widened to 16 bits, row by row, and multiplied with activations of 16
//! bits in the order of the columns; the sums of a row stay in 4 lanes until the half of a block ends.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::aarch64::*;

use umbel_shard::WeightType;

use super::load;
use super::products::Products;
use super::unpack::{Factors, LANES, PARTS, Quads, Rows};
use crate::kernel::packed::quantized::layout::{QUADS, STRIPS};
use crate::kernel::packed::quantized::tokens::{IntegerTile, TokenFactors, Words};
use crate::kernel::packed::quantized::{Panel, Sums};

/// A block of 4 rows in 16 bits: for two quads at a time, the 8 columns of each row.
type Wide = [[int16x8_t; LANES]; QUADS / 2];

/// A block of one token's activations, and whether it has upper bytes.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    words: &'a Words,
    wide: bool,
}

/// One panel times one tile of tokens.
#[target_feature(enable = "neon")]
pub(super) fn multiply(
    products: Option<Products>,
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
) {
    match products {
        Some(products) => signed(products, panel, tile, sums),
        None => by_type::<_, true>(
            panel,
            tile,
            sums,
            |quads| widen(quads),
            |weights, inputs| dot(weights, inputs.words),
        ),
    }
}

/// By products of signed bytes.
#[target_feature(enable = "neon")]
#[inline]
fn signed(products: Products, panel: Panel<'_>, tile: IntegerTile<'_>, sums: &mut [Sums]) {
    let dot = |weights: &_, inputs: Inputs<'_>| products.dot(weights, inputs.words, inputs.wide);
    let as_packed = |quads: Quads| quads.map(|quad| vreinterpretq_s8_u8(quad));
    if panel.kind == WeightType::Q8_0 {
        let centred = |quads: Quads| as_packed(quads.map(|quad| veorq_u8(quad, vdupq_n_u8(0x80))));
        by_type::<_, false>(panel, tile, sums, centred, dot);
    } else {
        by_type::<_, true>(panel, tile, sums, as_packed, dot);
    }
}

/// `prepare` makes weights `W` of the quads, which `dot` multiplies; `FROM_ZERO` says whether they
/// still count from the zero of their type.
#[target_feature(enable = "neon")]
#[inline]
fn by_type<W, const FROM_ZERO: bool>(
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    prepare: impl Fn(Quads) -> W + Copy,
    dot: impl Fn(&W, Inputs<'_>) -> [int32x4_t; 2] + Copy,
) {
    match panel.kind {
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => {
            by_blocks(panel, tile, sums, prepare, |weights, factors, inputs, token, sum| {
                let products = whole(dot(weights, inputs));
                let offset = if FROM_ZERO { token.offsets[0] } else { 0 };
                let products = vaddq_s32(products, vdupq_n_s32(offset));
                add_scaled(products, factors.scales[0], token, sum)
            });
        }
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
            by_blocks(panel, tile, sums, prepare, |weights, factors, inputs, token, sum| {
                let products = whole(dot(weights, inputs));
                let sum = add_scaled(products, factors.scales[0], token, sum);
                vfmaq_n_f32(sum, factors.minimum, token.sum)
            });
        }
        WeightType::Q6K => {
            by_blocks(panel, tile, sums, prepare, |weights, factors, inputs, token, sum| {
                let [first, last] = dot(weights, inputs);
                let first = vaddq_s32(first, vdupq_n_s32(token.offsets[0]));
                let last = vaddq_s32(last, vdupq_n_s32(token.offsets[1]));
                let first = vmulq_f32(vcvtq_f32_s32(first), factors.scales[0]);
                let both = vfmaq_f32(first, vcvtq_f32_s32(last), factors.scales[1]);
                vfmaq_n_f32(sum, both, token.scale)
            });
        }
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("weights in floating point are not packed as integers")
        }
    }
}

/// Reads block after block and adds its products to the sums of each token.
#[target_feature(enable = "neon")]
#[inline]
fn by_blocks<W>(
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    prepare: impl Fn(Quads) -> W + Copy,
    add: impl Fn(&W, &Factors, Inputs<'_>, &TokenFactors, float32x4_t) -> float32x4_t + Copy,
) {
    sums.fill(Sums::ZERO);
    let words = tile.words.chunks_exact(tile.tokens);
    for (block, (words, tokens)) in words.zip(tile.factors.chunks_exact(tile.tokens)).enumerate() {
        for rows in 0..STRIPS * PARTS {
            let (strip, part) = (rows / PARTS, rows % PARTS);
            let read = Rows { panel, block, strip, part };
            let (weights, factors) = (prepare(read.quads()), read.factors());
            let inputs = words
                .iter()
                .zip(0..)
                .map(|(words, token)| Inputs { words, wide: tile.wide[block] >> token & 1 == 1 });
            for ((inputs, token), sums) in inputs.zip(tokens).zip(sums.iter_mut()) {
                let sums = &mut sums.0[strip].as_chunks_mut::<LANES>().0[part];
                let sum = add(&weights, &factors, inputs, token, load::floats(sums));
                load::store(sums, sum);
            }
        }
    }
}

/// Both halves of a block.
#[target_feature(enable = "neon")]
#[inline]
fn whole([first, last]: [int32x4_t; 2]) -> int32x4_t {
    vaddq_s32(first, last)
}

#[target_feature(enable = "neon")]
#[inline]
fn add_scaled(
    products: int32x4_t,
    scale: float32x4_t,
    token: &TokenFactors,
    sum: float32x4_t,
) -> float32x4_t {
    let scale = vmulq_n_f32(scale, token.scale);
    vfmaq_f32(sum, vcvtq_f32_s32(products), scale)
}

#[target_feature(enable = "neon")]
#[inline]
fn widen(quads: Quads) -> Wide {
    let mut wide = [[vdupq_n_s16(0); LANES]; QUADS / 2];
    for (wide, [first, second]) in wide.iter_mut().zip(quads.as_chunks::<2>().0) {
        let (first, second) = (vreinterpretq_u32_u8(*first), vreinterpretq_u32_u8(*second));
        // Two rows in each, with the columns of both quads side by side.
        for (pair, rows) in
            [vzip1q_u32(first, second), vzip2q_u32(first, second)].into_iter().enumerate()
        {
            let bytes = vreinterpretq_u8_u32(rows);
            wide[2 * pair] = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
            wide[2 * pair + 1] = vreinterpretq_s16_u16(vmovl_high_u8(bytes));
        }
    }
    wide
}

/// The products of 4 rows with one token, of the first and of the last 16 columns.
#[target_feature(enable = "neon")]
#[inline]
fn dot(weights: &Wide, words: &Words) -> [int32x4_t; 2] {
    let words = load::words(words);
    let mut halves = [vdupq_n_s32(0); 2];
    for (half, (weights, words)) in
        halves.iter_mut().zip(weights.as_chunks::<2>().0.iter().zip(words.as_chunks::<2>().0))
    {
        let mut rows = [vdupq_n_s32(0); LANES];
        for (weights, words) in weights.iter().zip(words) {
            let words = vreinterpretq_s16_s8(*words);
            for (row, weights) in rows.iter_mut().zip(weights) {
                *row = vmlal_s16(*row, vget_low_s16(*weights), vget_low_s16(words));
                *row = vmlal_high_s16(*row, *weights, words);
            }
        }
        let [a, b, c, d] = rows;
        *half = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
    }
    halves
}
