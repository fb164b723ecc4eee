//! Panels of quantized weights.

use half::f16;
use umbel_shard::WeightType;

use crate::kernel::format::BLOCK_VALUES;
use crate::kernel::packed::quantized::layout::{HalfLine, QUADS, Quads, STRIP_ROWS, STRIPS, quads};
use crate::kernel::packed::quantized::tokens::{IntegerTile, TokenFactors, TokenTile, Words};
use crate::kernel::packed::quantized::{Panel, Sums};

/// What the integers of a block stand for: `scales[half] * integer + minimum`, where the halves are
/// of 16 columns.
struct Factors {
    scales: [[f32; STRIP_ROWS]; 2],
    minimum: Option<[f32; STRIP_ROWS]>,
}

/// One panel times one tile of tokens.
pub(in crate::kernel) fn multiply(panel: Panel<'_>, tile: TokenTile<'_>, sums: &mut [Sums]) {
    match tile {
        TokenTile::Floats { values, columns } => exactly(panel, values, columns, sums),
        TokenTile::Integers(tile) => integers(panel, tile, sums),
    }
}

fn integers(panel: Panel<'_>, tile: IntegerTile<'_>, sums: &mut [Sums]) {
    sums.fill(Sums::ZERO);
    let blocks = tile.words.chunks_exact(tile.tokens).zip(tile.factors.chunks_exact(tile.tokens));
    for (block, (words, token_factors)) in blocks.enumerate() {
        for strip in 0..STRIPS {
            let (weights, factors) = (weights(panel, block, strip), factors(panel, block, strip));
            for ((words, token), sum) in words.iter().zip(token_factors).zip(sums.iter_mut()) {
                add(&weights, &factors, panel.kind, words, *token, &mut sum.0[strip]);
            }
        }
    }
}

/// Adds the products of one block for one token.
fn add(
    weights: &Quads,
    factors: &Factors,
    kind: WeightType,
    words: &Words,
    token: TokenFactors,
    sums: &mut [f32; STRIP_ROWS],
) {
    let halves = weights.as_chunks::<{ QUADS / 2 }>().0;
    let words = words.0.as_chunks::<QUADS>().0;
    let mut products = token.offsets.map(|offset| [offset; STRIP_ROWS]);
    for ((products, quads), words) in products.iter_mut().zip(halves).zip(words) {
        for (quad, words) in quads.iter().zip(words.as_chunks::<2>().0) {
            let inputs = words.map(|word| [word << 16 >> 16, word >> 16]);
            for (product, weights) in products.iter_mut().zip(quad.as_chunks::<4>().0) {
                let weights = weights.map(i32::from);
                *product += weights[0] * inputs[0][0] + weights[2] * inputs[0][1];
                *product += weights[1] * inputs[1][0] + weights[3] * inputs[1][1];
            }
        }
    }
    for row in 0..STRIP_ROWS {
        let [first, last] = [products[0][row], products[1][row]];
        let [first_scale, last_scale] = factors.scales.map(|scales| scales[row]);
        // As the wider kernels do it: a product is rounded with the sum that it is added to.
        let sum = &mut sums[row];
        if kind == WeightType::Q6K {
            let scaled = (last as f32).mul_add(last_scale, first as f32 * first_scale);
            *sum = scaled.mul_add(token.scale, *sum);
        } else {
            *sum = ((first + last) as f32).mul_add(first_scale * token.scale, *sum);
        }
        if let Some(minimum) = &factors.minimum {
            *sum = minimum[row].mul_add(token.sum, *sum);
        }
    }
}

/// Activations and weights in binary32, column by column.
#[inline(always)]
pub(in crate::kernel) fn exactly(
    panel: Panel<'_>,
    values: &[f32],
    columns: usize,
    sums: &mut [Sums],
) {
    sums.fill(Sums::ZERO);
    for block in 0..columns / BLOCK_VALUES {
        for strip in 0..STRIPS {
            let weights = widened(panel, block, strip);
            for (token, sums) in values.chunks_exact(columns).zip(sums.iter_mut()) {
                let mut sum = sums.0[strip];
                for (weights, value) in weights.iter().zip(&token[block * BLOCK_VALUES..]) {
                    for (sum, weight) in sum.iter_mut().zip(weights) {
                        *sum += weight * value;
                    }
                }
                sums.0[strip] = sum;
            }
        }
    }
}

/// The weights of a block, column by column.
#[inline(always)]
fn widened(panel: Panel<'_>, block: usize, strip: usize) -> [[f32; STRIP_ROWS]; BLOCK_VALUES] {
    let (quads, factors) = (weights(panel, block, strip), factors(panel, block, strip));
    let zero = f32::from(panel.zero());
    let mut widened = [[0.0; STRIP_ROWS]; BLOCK_VALUES];
    for (column, weights) in widened.iter_mut().enumerate() {
        let (quad, scales) = (&quads[column / 4], &factors.scales[column / 16]);
        for row in 0..STRIP_ROWS {
            let integer = f32::from(quad[row * 4 + column % 4]) - zero;
            weights[row] = integer * scales[row];
        }
        if let Some(minimum) = &factors.minimum {
            weights.iter_mut().zip(minimum).for_each(|(weight, minimum)| *weight += minimum);
        }
    }
    widened
}

#[inline(always)]
fn weights(panel: Panel<'_>, block: usize, strip: usize) -> Quads {
    match panel.kind {
        WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => {
            quads(panel.kind, panel.lines::<4>(block, strip))
        }
        WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => {
            quads(panel.kind, panel.lines::<5>(block, strip))
        }
        WeightType::Q6K => quads(panel.kind, panel.lines::<6>(block, strip)),
        WeightType::Q8_0 => quads(panel.kind, panel.lines::<8>(block, strip)),
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("weights in floating point are not packed as integers")
        }
    }
}

#[inline(always)]
fn factors(panel: Panel<'_>, block: usize, strip: usize) -> Factors {
    match panel.kind {
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => {
            let [scales] = panel.factors::<1>(block, strip).map(binary16);
            Factors { scales: [scales; 2], minimum: None }
        }
        WeightType::Q4_1 | WeightType::Q5_1 => {
            let [scales, minimum] = panel.factors::<2>(block, strip).map(binary16);
            Factors { scales: [scales; 2], minimum: Some(minimum) }
        }
        WeightType::Q4K | WeightType::Q5K => {
            let [scale, minimum] = panel.supers::<2>(block, strip).map(binary16);
            let [factors] = panel.factors::<1>(block, strip);
            let [scales, minimums] = factors.halves().map(|half| half.map(f32::from));
            Factors {
                scales: [product(scale, scales); 2],
                minimum: Some(product(minimum, minimums).map(|minimum| -minimum)),
            }
        }
        WeightType::Q6K => {
            let [scale] = panel.supers::<1>(block, strip).map(binary16);
            let [factors] = panel.factors::<1>(block, strip);
            let signed = |byte: u8| f32::from(byte.cast_signed());
            let scales = factors.halves().map(|half| product(scale, half.map(signed)));
            Factors { scales, minimum: None }
        }
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("weights in floating point are not packed as integers")
        }
    }
}

#[inline(always)]
fn binary16(half: HalfLine) -> [f32; STRIP_ROWS] {
    let mut values = [0.0; STRIP_ROWS];
    for (value, bytes) in values.iter_mut().zip(half.0.as_chunks::<2>().0) {
        *value = f16::from_le_bytes(*bytes).to_f32();
    }
    values
}

#[inline(always)]
fn product(left: [f32; STRIP_ROWS], right: [f32; STRIP_ROWS]) -> [f32; STRIP_ROWS] {
    std::array::from_fn(|row| left[row] * right[row])
}
