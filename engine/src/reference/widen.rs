//! Weights of every type to binary32, by candle's own decoders.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{DType, Device, Result, Tensor};
use umbel_shard::{Weight, WeightType};

/// `weight` in binary32, in its shape.
///
/// # Errors
/// Where candle refuses the tensor.
pub fn widen(weight: &Weight) -> Result<Tensor> {
    let float = |dtype| {
        Tensor::from_raw_buffer(weight.bytes(), dtype, weight.shape(), &Device::Cpu)?
            .to_dtype(DType::F32)
    };
    let quantized = |dtype| {
        // candle reads blocks in place and so needs their alignment, which a fresh buffer has.
        let bytes = weight.bytes().to_vec();
        qtensor_from_ggml(dtype, &bytes, weight.shape().to_vec(), &Device::Cpu)?
            .dequantize(&Device::Cpu)
    };
    match weight.weight_type() {
        WeightType::F32 => float(DType::F32),
        WeightType::F16 => float(DType::F16),
        WeightType::BF16 => float(DType::BF16),
        WeightType::Q4_0 => quantized(GgmlDType::Q4_0),
        WeightType::Q4_1 => quantized(GgmlDType::Q4_1),
        WeightType::Q5_0 => quantized(GgmlDType::Q5_0),
        WeightType::Q5_1 => quantized(GgmlDType::Q5_1),
        WeightType::Q8_0 => quantized(GgmlDType::Q8_0),
        WeightType::Q4K => quantized(GgmlDType::Q4K),
        WeightType::Q5K => quantized(GgmlDType::Q5K),
        WeightType::Q6K => quantized(GgmlDType::Q6K),
    }
}
