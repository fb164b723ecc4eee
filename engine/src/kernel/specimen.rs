//! Weights and activations for the tests of the kernels.

use half::{bf16, f16};
use umbel_shard::WeightType;

use super::dequantize_row;
use super::format::BLOCK_VALUES;

pub(crate) const ALL_TYPES: [WeightType; 11] = [
    WeightType::F32,
    WeightType::F16,
    WeightType::BF16,
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q5_0,
    WeightType::Q5_1,
    WeightType::Q8_0,
    WeightType::Q4K,
    WeightType::Q5K,
    WeightType::Q6K,
];

/// Numbers from a seed (`SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Between -1 and 1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// Activations as models have them: in some blocks one is much larger than all others.
    pub(crate) fn activations(&mut self, count: usize) -> Vec<f32> {
        let mut values = self.floats(count);
        for block in values.chunks_mut(BLOCK_VALUES) {
            if self.byte() < 50 {
                block[usize::from(self.byte()) % block.len()] *= 200.0;
            }
        }
        values
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}

/// `values` weights of `kind`: any bits, but with scales and floats that models have.
pub(crate) fn weights(kind: WeightType, values: usize, numbers: &mut Numbers) -> Vec<u8> {
    weights_with_scales(kind, values, numbers, |numbers| numbers.float() / 16.0)
}

/// As [`weights`], with scales and minima that `scale` draws.
pub(crate) fn weights_with_scales(
    kind: WeightType,
    values: usize,
    numbers: &mut Numbers,
    scale: impl Fn(&mut Numbers) -> f32,
) -> Vec<u8> {
    let floats = numbers.floats(values);
    match kind {
        WeightType::F32 => {
            return floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        }
        WeightType::F16 => {
            return floats.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        }
        WeightType::BF16 => {
            return floats.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        }
        WeightType::Q4_0
        | WeightType::Q4_1
        | WeightType::Q5_0
        | WeightType::Q5_1
        | WeightType::Q8_0
        | WeightType::Q4K
        | WeightType::Q5K
        | WeightType::Q6K => {}
    }
    let mut bytes: Vec<u8> =
        (0..values / kind.block_values() * kind.block_bytes()).map(|_| numbers.byte()).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        for &place in scale_places(kind) {
            let scale = f16::from_f32(scale(numbers));
            block[place..place + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

/// Where a block has numbers in binary16.
fn scale_places(kind: WeightType) -> &'static [usize] {
    match kind {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => &[],
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => &[0],
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
        WeightType::Q6K => &[208],
    }
}

/// The weights in `bytes`, exactly.
pub(crate) fn widened(kind: WeightType, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() / kind.block_bytes() * kind.block_values()];
    dequantize_row(kind, bytes, &mut values);
    values.into_iter().map(f64::from).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
