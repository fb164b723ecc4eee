//! Quantized weights: integers within a block, binary32 from block to block.

use crate::kernel::LANES;
use crate::kernel::activation::SuperIntegers;
use crate::kernel::format::{Block, GROUP_VALUES, SuperBlock};
use crate::kernel::matmul::{Panel, TILE_TOKENS};

/// Rows in blocks of 32 weights, added block by block.
pub(super) fn multiply<const N: usize>(
    panel: Panel<'_>,
    outputs: &mut [&mut [f32]],
    read: impl Fn(&[u8; N]) -> Block,
) {
    let tokens: Vec<_> = (0..outputs.len())
        .map(|token| panel.activations.block_row(panel.first_token + token))
        .collect();
    for (index, row) in panel.rows() {
        let mut sums = [0.0; TILE_TOKENS];
        for (place, bytes) in row.as_chunks::<N>().0.iter().enumerate() {
            let weights = read(bytes);
            for (sum, token) in sums.iter_mut().zip(&tokens) {
                let (inputs, factors) = (&token.values[place].0, token.factors[place]);
                let dot = integer_dot(&weights.values, inputs) as f32;
                *sum += weights.scale * (factors.scale * dot)
                    + weights.minimum * (factors.eighth_sum * LANES as f32);
            }
        }
        write(index, &sums, outputs);
    }
}

/// Rows in blocks of 256 weights, added block by block.
pub(super) fn multiply_super<const N: usize>(
    panel: Panel<'_>,
    outputs: &mut [&mut [f32]],
    read: impl Fn(&[u8; N]) -> SuperBlock,
) {
    let tokens: Vec<_> = (0..outputs.len())
        .map(|token| panel.activations.super_row(panel.first_token + token))
        .collect();
    for (index, row) in panel.rows() {
        let mut sums = [0.0; TILE_TOKENS];
        for (place, bytes) in row.as_chunks::<N>().0.iter().enumerate() {
            let weights = read(bytes);
            for (sum, token) in sums.iter_mut().zip(&tokens) {
                let inputs = &token[place];
                let (dot, minimums) = super_dot(&weights, inputs);
                *sum += weights.scale * inputs.scale * dot as f32
                    - weights.minimum * inputs.scale * minimums as f32;
            }
        }
        write(index, &sums, outputs);
    }
}

/// The dot product with the groups' scales, and the groups' minima with the sums of the inputs.
fn super_dot(weights: &SuperBlock, inputs: &SuperIntegers) -> (i32, i32) {
    let weight_groups = weights.values.as_chunks::<GROUP_VALUES>().0;
    let input_groups = inputs.values.as_chunks::<GROUP_VALUES>().0;
    let mut dot = 0;
    for ((weights, inputs), scale) in weight_groups.iter().zip(input_groups).zip(weights.scales) {
        dot += i32::from(scale) * integer_dot(weights, inputs);
    }
    let minimums = weights.minimums.iter().zip(inputs.group_sums);
    (dot, minimums.map(|(&minimum, sum)| i32::from(minimum) * i32::from(sum)).sum())
}

fn integer_dot<const N: usize>(weights: &[i8; N], inputs: &[i8; N]) -> i32 {
    weights.iter().zip(inputs).map(|(&weight, &input)| i32::from(weight) * i32::from(input)).sum()
}

fn write(row: usize, sums: &[f32; TILE_TOKENS], outputs: &mut [&mut [f32]]) {
    outputs.iter_mut().zip(sums).for_each(|(output, &sum)| output[row] = sum);
}
