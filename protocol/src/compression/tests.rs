//! What is packed comes back bit for bit, and nothing else does harm.

use proptest::prelude::*;

use super::*;

/// Bytes of which some are frequent, so that there is something to gain.
fn skewed(count: usize, spread: u8, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(|_| next() & next() & next() & spread).collect()
}

/// Values as activations are: most of them small, all of them noisy.
fn activations(rows: u32, width: u32, dtype: DType) -> Tensor {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..rows * width)
        .map(|_| (next() + next() + next()) * (1.0 + 8.0 * next().abs()))
        .collect();
    Tensor::from_values(dtype, vec![rows, width], &values).unwrap()
}

fn unpacked(tensor: &Tensor, packed: &[u8]) -> Result<Tensor, InvalidTensor> {
    unpack(tensor.dtype(), tensor.shape().to_vec(), packed)
}

#[test]
fn hidden_states_become_smaller_and_come_back() {
    for (dtype, most) in [(DType::F32, 0.92), (DType::F16, 0.95), (DType::BF16, 0.82)] {
        let tensor = activations(64, 576, dtype);
        let packed = pack(&tensor).unwrap();
        let ratio = packed.len() as f64 / tensor.payload().len() as f64;
        assert!(ratio < most, "{dtype}: {ratio}");
        assert!(unpacked(&tensor, &packed) == Ok(tensor), "{dtype}");
    }
}

#[test]
fn what_would_not_become_smaller_is_left_alone() {
    assert!(pack(&activations(1, 576, DType::F32)).is_none(), "a step of decode");
    assert!(pack(&activations(256, 576, DType::Q8)).is_none(), "narrow already");
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    })
    .take(4 * 64 * 256)
    .collect();
    assert!(pack(&Tensor::new(DType::F32, vec![64, 256], noise.into()).unwrap()).is_none());
}

#[test]
fn a_shape_that_asks_for_more_than_the_payload_can_hold_is_refused_before_it_is_made() {
    for shape in [vec![1 << 20, 1 << 20], vec![4_096, 4_096], vec![u32::MAX; 4]] {
        assert_eq!(unpack(DType::F32, shape, &[1; 100]), Err(InvalidTensor::TooLarge));
    }
    assert_eq!(unpack(DType::Q8, vec![4, 4], &[0; 100]), Err(InvalidTensor::Packed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_of_any_skew_come_back(
        count in 1usize..3_000,
        spread in any::<u8>(),
        seed in any::<u64>(),
    ) {
        let plane = skewed(count, spread, seed);
        let code = Code::of(&plane);
        prop_assert_eq!(Code::from_bytes(&code.to_bytes()), Some(code.clone()));
        let mut bits = Vec::new();
        code.write(&plane, &mut bits);
        prop_assert_eq!(bits.len(), code.bits(&plane).div_ceil(8), "the claimed length is the real one");
        let mut read = vec![0; count];
        prop_assert_eq!(code.read(&bits, &mut read), Some(()));
        prop_assert_eq!(&read, &plane);
        bits.push(0);
        prop_assert_eq!(code.read(&bits, &mut read), None, "a byte too many");
        bits.truncate(bits.len() - 2);
        prop_assert_eq!(code.read(&bits, &mut read), None, "a byte too few");
    }

    #[test]
    fn tensors_of_any_bytes_come_back(
        dtype in proptest::sample::select(vec![DType::F32, DType::F16, DType::BF16]),
        rows in 60u32..70,
        spread in any::<u8>(),
        seed in any::<u64>(),
    ) {
        let bytes = usize::try_from(dtype.row_bytes(512)).unwrap() * rows as usize;
        let tensor = Tensor::new(dtype, vec![rows, 512], skewed(bytes, spread, seed).into()).unwrap();
        if let Some(packed) = pack(&tensor) {
            prop_assert!(packed.len() < tensor.payload().len());
            prop_assert!(unpacked(&tensor, &packed) == Ok(tensor));
        }
    }

    #[test]
    fn perturbed_bytes_give_a_tensor_or_an_error(
        place in any::<proptest::sample::Index>(),
        bit in 0u8..8,
        cut in any::<proptest::sample::Index>(),
    ) {
        let tensor = activations(60, 256, DType::BF16);
        let packed = pack(&tensor).map(|packed| packed.to_vec());
        let mut packed = packed.unwrap_or_else(|| vec![0; 100]);
        let index = place.index(packed.len());
        packed[index] ^= 1 << bit;
        if let Ok(other) = unpacked(&tensor, &packed) {
            prop_assert_eq!(other.shape(), tensor.shape());
        }
        packed.truncate(cut.index(packed.len()));
        prop_assert!(unpacked(&tensor, &packed).is_err());
    }
}
