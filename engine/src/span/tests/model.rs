//! Small models of every family, with weights from a fixed generator in any type.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device as CandleDevice, Tensor};
use umbel_shard::{
    Experts, Family, ModelConfig, Rope, RopeScaling, Weight, WeightType, Weights, layout,
};

use crate::HiddenStates;
use crate::train::TargetModule;

/// The width of the K-quants' blocks, so that every type can hold every matrix.
const HIDDEN_SIZE: usize = 256;

/// A model of three blocks with grouped queries. Where its family has windows, these are shorter
/// than a page, longer than one, and absent.
pub(crate) fn config(family: Family) -> ModelConfig {
    let windows = match family {
        Family::Mistral | Family::Qwen3 => vec![Some(5), Some(21), None],
        Family::Llama | Family::Qwen2 | Family::Mixtral | Family::Qwen3Moe => vec![None; 3],
    };
    // The weights of a token's experts add up to 1 in one family, and not in the other.
    let experts = match family {
        Family::Mixtral => Some(Experts { count: 4, per_token: 2, normalized: true }),
        Family::Qwen3Moe => Some(Experts { count: 5, per_token: 3, normalized: false }),
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => None,
    };
    ModelConfig {
        family,
        hidden_size: HIDDEN_SIZE,
        intermediate_size: 256,
        block_count: 3,
        head_count: 8,
        kv_head_count: 2,
        head_size: 32,
        vocabulary_size: 64,
        context_tokens: 128,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        attention_windows: windows,
        attention_bias: family == Family::Qwen2,
        output_bias: false,
        mlp_bias: false,
        experts,
        tied_embeddings: true,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

/// The matrices that an adapter can add to: all there are, but for those of experts.
pub(crate) fn targets(config: &ModelConfig) -> Vec<TargetModule> {
    let count = if config.experts.is_some() { 4 } else { TargetModule::ALL.len() };
    TargetModule::ALL[..count].to_vec()
}

/// Weights of all blocks, the matrices in `weight_type`.
pub(crate) fn weights(config: &ModelConfig, weight_type: WeightType) -> Weights {
    let mut noise = Noise(config.family as u64 + 1);
    let tensors = (0..config.block_count).flat_map(|index| layout::block(config, index));
    let weight = |tensor: layout::LayoutTensor| {
        let count = tensor.shape.iter().product();
        let weight = match *tensor.shape.as_slice() {
            [_, columns] => {
                // Rows of such values keep the size of what they are multiplied by.
                let scale = 1.6 / (columns as f32).sqrt();
                let values = noise.values(count).map(|value| value * scale).collect();
                encode(weight_type, tensor.shape, values)
            }
            _ => {
                let centre = if tensor.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
                let values = noise.values(count).map(|value| centre + value * 0.1).collect();
                encode(WeightType::F32, tensor.shape, values)
            }
        };
        (tensor.name, weight)
    };
    tensors.map(weight).collect()
}

/// Hidden states such as an embedding gives, another for each `seed`.
pub(crate) fn hidden(tokens: usize, seed: u64) -> HiddenStates {
    let values = Noise(seed).values(tokens * HIDDEN_SIZE).collect();
    HiddenStates::from_values(values, HIDDEN_SIZE).unwrap()
}

fn encode(weight_type: WeightType, shape: Vec<usize>, values: Vec<f32>) -> Weight {
    let quantized = |dtype| {
        let tensor =
            Tensor::from_vec(values.clone(), shape.as_slice(), &CandleDevice::Cpu).unwrap();
        QTensor::quantize(&tensor, dtype).unwrap().data().unwrap().into_owned()
    };
    let bytes: Vec<u8> = match weight_type {
        WeightType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        WeightType::F16 => {
            values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
        }
        WeightType::BF16 => {
            values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect()
        }
        WeightType::Q4_0 => quantized(GgmlDType::Q4_0),
        WeightType::Q4_1 => quantized(GgmlDType::Q4_1),
        WeightType::Q5_0 => quantized(GgmlDType::Q5_0),
        WeightType::Q5_1 => quantized(GgmlDType::Q5_1),
        WeightType::Q8_0 => quantized(GgmlDType::Q8_0),
        WeightType::Q4K => quantized(GgmlDType::Q4K),
        WeightType::Q5K => quantized(GgmlDType::Q5K),
        WeightType::Q6K => quantized(GgmlDType::Q6K),
    };
    Weight::new(weight_type, shape, bytes).unwrap()
}

/// Values of about the standard normal distribution: sums of twelve uniform ones.
struct Noise(u64);

impl Noise {
    fn values(&mut self, count: usize) -> impl Iterator<Item = f32> + '_ {
        (0..count).map(|_| (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0)
    }

    /// Knuth's 64-bit linear congruential generator; its upper 16 bits.
    fn uniform(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 48) as f32 / 65_536.0
    }
}
