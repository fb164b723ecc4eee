//! Elements as bytes, what narrower ones cost, and by how much they may be wrong.

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

use super::DType;

/// Elements that share a scale: so few that one large activation, of which models have some in the
/// same places of every token, makes few others coarse. The scale adds 6% to the bytes.
pub const Q8_BLOCK_ELEMENTS: usize = 32;

/// The largest magnitude of a signed byte that has its opposite.
const Q8_STEPS: f32 = 127.0;

/// The values as bytes, in rows of `width`.
pub(super) fn write(dtype: DType, width: usize, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => each(values, |value| value.to_le_bytes()),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "what is no id becomes the nearest"
        )]
        DType::Id => each(values, |value| (value as u32).to_le_bytes()),
        DType::F16 => {
            let largest = f16::MAX.to_f32();
            let within: Vec<_> = values.iter().map(|v| v.clamp(-largest, largest)).collect();
            let mut narrow = vec![f16::ZERO; values.len()];
            narrow.convert_from_f32_slice(&within);
            each(&narrow, |value| value.to_le_bytes())
        }
        DType::BF16 => {
            let largest = bf16::MAX.to_f32();
            each(values, |value| bf16::from_f32(value.clamp(-largest, largest)).to_le_bytes())
        }
        DType::Q8 => {
            let blocks = values.len().div_ceil(Q8_BLOCK_ELEMENTS);
            let mut bytes = Vec::with_capacity(values.len() + 2 * blocks);
            for row in values.chunks(width.max(1)) {
                row.chunks(Q8_BLOCK_ELEMENTS).for_each(|block| write_block(block, &mut bytes));
            }
            bytes
        }
    }
}

/// The values of these bytes, in rows of `width`.
pub(super) fn read(dtype: DType, width: usize, bytes: &[u8]) -> Vec<f32> {
    let (pairs, quads) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
    match dtype {
        DType::F32 => quads.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        #[expect(clippy::cast_precision_loss, reason = "nobody computes with ids")]
        DType::Id => quads.iter().map(|bytes| u32::from_le_bytes(*bytes) as f32).collect(),
        DType::F16 => {
            let narrow: Vec<_> = pairs.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
            narrow.to_f32_vec()
        }
        DType::BF16 => pairs.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        DType::Q8 => {
            let row_bytes = width + 2 * width.div_ceil(Q8_BLOCK_ELEMENTS);
            let mut values = Vec::with_capacity(bytes.len());
            for row in bytes.chunks_exact(row_bytes.max(1)) {
                row.chunks(2 + Q8_BLOCK_ELEMENTS).for_each(|block| read_block(block, &mut values));
            }
            values
        }
    }
}

/// See [`DType::error_max`].
pub(super) fn error_max(dtype: DType, value: f32, block_max: f32) -> f32 {
    // Half a unit in the last of so many binary places, and of the smallest number.
    let rounded =
        |places: i32, smallest: f32| (value.abs() * 2f32.powi(-places)).max(smallest / 2.0);
    match dtype {
        DType::F32 => 0.0,
        DType::Id => 0.5,
        DType::F16 => {
            rounded(11, f16::MIN_POSITIVE_SUBNORMAL.to_f32()).max(value.abs() - f16::MAX.to_f32())
        }
        DType::BF16 => rounded(8, bf16::MIN_POSITIVE_SUBNORMAL.to_f32() * 2.0),
        DType::Q8 => {
            // The scale is rounded up to the next binary16, and the quotient in binary32.
            let scale = (block_max / Q8_STEPS) * (1.0 + 2f32.powi(-10)) + 2f32.powi(-24);
            let largest = f16::MAX.to_f32() * Q8_STEPS;
            (scale / 2.0 * (1.0 + 2f32.powi(-15))).max(value.abs() - largest)
        }
    }
}

/// All values as bytes in one go, which the compiler does many at a time.
fn each<T: Copy, const N: usize>(values: &[T], write: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * N];
    for (place, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *place = write(*value);
    }
    bytes
}

/// A scale and a step for each value. What is no number becomes 0, what is infinite the largest.
fn write_block(block: &[f32], bytes: &mut Vec<u8>) {
    let finite = block.iter().map(|value| value.abs()).filter(|value| value.is_finite());
    let largest = finite.fold(0f32, f32::max);
    let wanted = (largest / Q8_STEPS).min(f16::MAX.to_f32());
    let mut scale = f16::from_f32(wanted);
    if scale.to_f32() < wanted {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    bytes.extend_from_slice(&scale.to_le_bytes());
    let scale = scale.to_f32();
    #[expect(clippy::cast_possible_truncation, reason = "it is clamped, and NaN becomes 0")]
    let step = |value: &f32| {
        let steps = if scale > 0.0 { value / scale } else { 0.0 };
        steps.round_ties_even().clamp(-Q8_STEPS, Q8_STEPS) as i8
    };
    bytes.extend(block.iter().map(|value| step(value).cast_unsigned()));
}

/// The values of a block; none where there is not even a scale.
fn read_block(block: &[u8], values: &mut Vec<f32>) {
    if let Some((scale, steps)) = block.split_first_chunk() {
        let scale = f16::from_le_bytes(*scale).to_f32();
        values.extend(steps.iter().map(|step| f32::from(step.cast_signed()) * scale));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::Tensor;
    use super::*;

    /// Numbers of every magnitude, with many in the range of activations.
    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -50f32..50.0,
            2 => any::<f32>().prop_filter("finite", |value| value.is_finite()),
            1 => Just(0.0),
            1 => -1e-7f32..1e-7,
        ]
    }

    fn wire_type() -> impl Strategy<Value = DType> {
        proptest::sample::select(DType::ALL.to_vec())
    }

    fn tensor(dtype: DType, width: usize, values: &[f32]) -> Tensor {
        let size = |size: usize| u32::try_from(size).unwrap();
        Tensor::from_values(dtype, vec![size(values.len() / width), size(width)], values).unwrap()
    }

    proptest! {
        #[test]
        fn no_value_is_further_off_than_its_bound(
            dtype in wire_type(),
            width in 1usize..80,
            numbers in proptest::collection::vec(number(), 1..240),
        ) {
            let numbers = &numbers[..numbers.len() / width * width];
            let read = tensor(dtype, width, numbers).to_f32();
            prop_assert_eq!(read.len(), numbers.len());
            for (row, read) in numbers.chunks(width).zip(read.chunks(width)) {
                let blocks = row.chunks(Q8_BLOCK_ELEMENTS).zip(read.chunks(Q8_BLOCK_ELEMENTS));
                for (block, read) in blocks {
                    let block_max = block.iter().fold(0f32, |most, value| most.max(value.abs()));
                    for (value, read) in block.iter().zip(read) {
                        let bound = dtype.error_max(*value, block_max);
                        let off = (value - read).abs();
                        prop_assert!(off <= bound, "{dtype}: {value} as {read}, bound {bound}");
                    }
                }
            }
        }

        #[test]
        fn a_row_is_written_alike_alone_and_among_others(
            dtype in wire_type(),
            width in 1usize..80,
            numbers in proptest::collection::vec(any::<f32>(), 1..240),
        ) {
            let numbers = &numbers[..numbers.len() / width * width];
            let together = tensor(dtype, width, numbers);
            for (number, row) in numbers.chunks(width).enumerate() {
                let number = u32::try_from(number).unwrap();
                prop_assert!(tensor(dtype, width, row) == together.rows(number, number + 1));
            }
        }

        #[test]
        fn what_was_written_once_is_written_the_same_again(
            dtype in wire_type(),
            numbers in proptest::collection::vec(number(), 1..80),
        ) {
            prop_assume!(dtype != DType::Q8, "its scale follows the largest value that is left");
            let once = tensor(dtype, numbers.len(), &numbers);
            prop_assert!(tensor(dtype, numbers.len(), &once.to_f32()) == once);
        }

        #[test]
        fn any_bytes_are_read(
            dtype in wire_type(),
            width in 0u32..70,
            rows in 0u32..4,
            byte in any::<u8>(),
        ) {
            let bytes = usize::try_from(dtype.row_bytes(width) * u64::from(rows)).unwrap();
            let tensor = Tensor::new(dtype, vec![rows, width], Bytes::from(vec![byte; bytes]));
            prop_assert_eq!(tensor.unwrap().to_f32().len(), (rows * width) as usize);
        }
    }

    #[test]
    fn what_is_no_number_harms_only_itself_in_8_bits() {
        let read = tensor(DType::Q8, 4, &[f32::NAN, f32::INFINITY, -2.0, 1.0]).to_f32();
        assert_eq!(read[0], 0.0);
        assert!(read[1] >= 2.0 && (read[2] + 2.0).abs() < 0.01 && (read[3] - 1.0).abs() < 0.01);
    }

    #[test]
    fn each_type_has_its_bytes() {
        for (dtype, bytes) in DType::ALL.into_iter().zip([400, 200, 200, 108]) {
            assert_eq!(tensor(dtype, 100, &[1.0; 100]).payload().len(), bytes, "{dtype}");
        }
    }
}
