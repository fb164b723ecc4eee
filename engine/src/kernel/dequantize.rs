//! Rows of weights in binary32: for the look-up of embeddings, and for norms and biases.

use half::{bf16, f16};
use umbel_shard::WeightType;

use super::format::{self, BLOCK_VALUES, Block, GROUP_VALUES, SUPER_VALUES, SuperBlock};

/// Writes the weights in `bytes`, which are any number of whole rows, to `output`.
///
/// The values are those that GGML's own decoders give, to the bit.
///
/// # Panics
/// Where `bytes` has not as many values as `output`: a tensor is checked when it is loaded.
pub fn dequantize_row(kind: WeightType, bytes: &[u8], output: &mut [f32]) {
    assert_eq!(output.len() % kind.block_values(), 0, "weights come in whole blocks");
    let blocks = output.len() / kind.block_values();
    assert_eq!(bytes.len(), blocks * kind.block_bytes(), "the bytes hold the values");
    match kind {
        WeightType::F32 => floats(bytes, output, |value| f32::from_le_bytes(*value)),
        WeightType::F16 => floats(bytes, output, |value| f16::from_le_bytes(*value).to_f32()),
        WeightType::BF16 => floats(bytes, output, |value| bf16::from_le_bytes(*value).to_f32()),
        WeightType::Q4_0 => blocks_of(bytes, output, format::q4_0),
        WeightType::Q4_1 => blocks_of(bytes, output, format::q4_1),
        WeightType::Q5_0 => blocks_of(bytes, output, format::q5_0),
        WeightType::Q5_1 => blocks_of(bytes, output, format::q5_1),
        WeightType::Q8_0 => blocks_of(bytes, output, format::q8_0),
        WeightType::Q4K => super_blocks_of(bytes, output, format::q4_k),
        WeightType::Q5K => super_blocks_of(bytes, output, format::q5_k),
        WeightType::Q6K => super_blocks_of(bytes, output, format::q6_k),
    }
}

fn floats<const N: usize>(bytes: &[u8], output: &mut [f32], widen: impl Fn(&[u8; N]) -> f32) {
    for (value, bytes) in output.iter_mut().zip(bytes.as_chunks().0) {
        *value = widen(bytes);
    }
}

fn blocks_of<const N: usize>(bytes: &[u8], output: &mut [f32], read: impl Fn(&[u8; N]) -> Block) {
    for (output, bytes) in
        output.as_chunks_mut::<BLOCK_VALUES>().0.iter_mut().zip(bytes.as_chunks().0)
    {
        let block = read(bytes);
        for (output, value) in output.iter_mut().zip(block.values) {
            *output = block.scale * f32::from(value) + block.minimum;
        }
    }
}

fn super_blocks_of<const N: usize>(
    bytes: &[u8],
    output: &mut [f32],
    read: impl Fn(&[u8; N]) -> SuperBlock,
) {
    for (output, bytes) in
        output.as_chunks_mut::<SUPER_VALUES>().0.iter_mut().zip(bytes.as_chunks().0)
    {
        let block = read(bytes);
        for (index, (output, value)) in output.iter_mut().zip(block.values).enumerate() {
            let group = index / GROUP_VALUES;
            let scale = block.scale * f32::from(block.scales[group]);
            let minimum = block.minimum * f32::from(block.minimums[group]);
            *output = scale * f32::from(value) - minimum;
        }
    }
}

#[cfg(test)]
mod tests;
