//! Widening against another implementation of the formats.

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;

use super::*;
use crate::kernel::specimen::{ALL_TYPES, Numbers, bits, weights};

const VALUES: usize = 4096;

/// The decoder of another implementation.
fn by_candle(kind: GgmlDType, bytes: &[u8]) -> Vec<f32> {
    let tensor = qtensor_from_ggml(kind, bytes, vec![VALUES], &Device::Cpu).unwrap();
    tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
}

#[test]
fn every_quantized_type_is_decoded_as_candle_decodes_it() {
    for (kind, candle) in [
        (WeightType::Q4_0, GgmlDType::Q4_0),
        (WeightType::Q4_1, GgmlDType::Q4_1),
        (WeightType::Q5_0, GgmlDType::Q5_0),
        (WeightType::Q5_1, GgmlDType::Q5_1),
        (WeightType::Q8_0, GgmlDType::Q8_0),
        (WeightType::Q4K, GgmlDType::Q4K),
        (WeightType::Q5K, GgmlDType::Q5K),
        (WeightType::Q6K, GgmlDType::Q6K),
    ] {
        let bytes = weights(kind, VALUES, &mut Numbers(1));
        let mut values = vec![0.0; VALUES];
        dequantize_row(kind, &bytes, &mut values);
        // Equal as numbers: the sign of a zero is lost where a minimum of zero is added.
        assert_eq!(values, by_candle(candle, &bytes), "{kind}");
    }
}

#[test]
fn floats_are_widened_exactly_even_the_smallest() {
    let smallest = f16::from_bits(1);
    let mut values = [0.0; 2];
    let bytes = [smallest.to_le_bytes(), (-smallest).to_le_bytes()].concat();
    dequantize_row(WeightType::F16, &bytes, &mut values);
    assert_eq!(values, [2f32.powi(-24), -2f32.powi(-24)]);
    dequantize_row(WeightType::BF16, &[0x80, 0x3f, 0x01, 0x00], &mut values);
    assert_eq!(values, [1.0, f32::from_bits(0x1_0000)]);
    dequantize_row(WeightType::F32, &[1, 0, 0, 0, 0, 0, 0x80, 0xbf], &mut values);
    assert_eq!(values, [f32::from_bits(1), -1.0]);
}

#[test]
fn bytes_may_begin_anywhere() {
    for kind in ALL_TYPES {
        let bytes = weights(kind, 512, &mut Numbers(2));
        let shifted = [&[0xff], bytes.as_slice()].concat();
        let (mut there, mut here) = (vec![0.0; 512], vec![0.0; 512]);
        dequantize_row(kind, &shifted[1..], &mut there);
        dequantize_row(kind, &bytes, &mut here);
        assert_eq!(bits(&there), bits(&here), "{kind}");
    }
}
