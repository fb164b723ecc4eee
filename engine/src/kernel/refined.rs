//! Quantized weights times activations that are rounded to 15 bits instead of 8.
//!
//! What rounding to 8 bits leaves over is rounded to 8 bits again and multiplied like a token of its
//! own; the two products add up. Models have tokens with a few huge activations beside small ones
//! (Sun et al. 2024, "Massive Activations in Large Language Models",
//! <https://arxiv.org/abs/2402.17762>), of which 8 bits keep little: on SmolLM2 in Q4_1 they move
//! logits by up to 0.4, and the second rounding brings that under 0.01. It doubles the integer
//! products, but not the weights that are read, which bound decoding.

use umbel_shard::WeightType;

use super::activation::residual;
use super::format::{BLOCK_VALUES, SUPER_VALUES};
use super::{WeightView, matmul};

/// `output = input * weight^T`, from `[tokens, columns]` to `[tokens, rows]`, as [`fn@matmul`] but with
/// activations that are rounded twice where the weights are quantized.
///
/// # Panics
/// As [`fn@matmul`].
pub fn matmul_refined(weight: WeightView<'_>, input: &[f32], output: &mut [f32]) {
    let leave_over: fn(&[f32], &mut [f32]) = match weight.kind {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            return matmul(weight, input, output);
        }
        WeightType::Q4_0
        | WeightType::Q4_1
        | WeightType::Q5_0
        | WeightType::Q5_1
        | WeightType::Q8_0 => residual::<BLOCK_VALUES>,
        WeightType::Q4K | WeightType::Q5K | WeightType::Q6K => residual::<SUPER_VALUES>,
    };
    // A token and what its rounding leaves over are neighbours, so that they share a tile.
    let mut both = Vec::with_capacity(2 * input.len());
    for token in input.chunks_exact(weight.columns) {
        both.extend_from_slice(token);
        let start = both.len();
        both.resize(start + token.len(), 0.0);
        leave_over(token, &mut both[start..]);
    }
    let mut products = vec![0.0; 2 * output.len()];
    matmul(weight, &both, &mut products);
    let products = products.chunks_exact(2 * weight.rows);
    for (output, products) in output.chunks_exact_mut(weight.rows).zip(products) {
        let (first, second) = products.split_at(weight.rows);
        for ((output, first), second) in output.iter_mut().zip(first).zip(second) {
            *output = first + second;
        }
    }
}

#[cfg(test)]
mod tests;
