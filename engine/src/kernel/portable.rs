//! The inner loops for any machine: plain loops over arrays, which compilers turn into vectors.

pub(super) mod attention;
mod dense;
mod panels;
mod quantized;

use half::{bf16, f16};
use umbel_shard::WeightType;

pub(super) use self::panels::multiply_tile;
use super::format;
use super::matmul::Panel;

/// Multiplies the rows of `panel` with its tokens; there is an output for each.
pub(super) fn multiply(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    let binary32 = |value: &[u8; 4]| f32::from_le_bytes(*value);
    let binary16 = |value: &[u8; 2]| f16::from_le_bytes(*value).to_f32();
    let bfloat16 = |value: &[u8; 2]| bf16::from_le_bytes(*value).to_f32();
    match panel.kind {
        WeightType::F32 => dense::multiply(panel, outputs, binary32),
        WeightType::F16 => dense::multiply(panel, outputs, binary16),
        WeightType::BF16 => dense::multiply(panel, outputs, bfloat16),
        WeightType::Q4_0 => quantized::multiply(panel, outputs, format::q4_0),
        WeightType::Q4_1 => quantized::multiply(panel, outputs, format::q4_1),
        WeightType::Q5_0 => quantized::multiply(panel, outputs, format::q5_0),
        WeightType::Q5_1 => quantized::multiply(panel, outputs, format::q5_1),
        WeightType::Q8_0 => quantized::multiply(panel, outputs, format::q8_0),
        WeightType::Q4K => quantized::multiply_super(panel, outputs, format::q4_k),
        WeightType::Q5K => quantized::multiply_super(panel, outputs, format::q5_k),
        WeightType::Q6K => quantized::multiply_super(panel, outputs, format::q6_k),
    }
}
