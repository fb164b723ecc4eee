//! Tensors as they travel: element type, shape, and raw little-endian bytes.

use std::fmt;

use bytes::Bytes;
use half::{bf16, f16};

/// How an element of a [`Tensor`] is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

/// Most dimensions of a tensor: hidden states have 2, a batch of them 3, prompts of each block 4.
pub const TENSOR_DIMENSIONS_MAX: usize = 4;

/// A tensor whose payload has exactly the bytes that its type and shape ask for.
///
/// A clone shares the payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<u32>,
    payload: Bytes,
}

impl Tensor {
    /// A tensor from its parts, none of which is trusted.
    ///
    /// # Errors
    /// [`InvalidTensor`] where the parts do not fit each other.
    pub fn new(dtype: DType, shape: Vec<u32>, payload: Bytes) -> Result<Self, InvalidTensor> {
        if shape.len() > TENSOR_DIMENSIONS_MAX {
            return Err(InvalidTensor::Dimensions { dimensions: shape.len() });
        }
        let bytes = shape
            .iter()
            .try_fold(dtype.element_bytes() as u64, |bytes, &size| bytes.checked_mul(size.into()))
            .ok_or(InvalidTensor::TooLarge)?;
        if bytes != payload.len() as u64 {
            return Err(InvalidTensor::Length { expected: bytes, found: payload.len() as u64 });
        }
        Ok(Self { dtype, shape, payload })
    }

    /// A binary32 tensor of these values.
    ///
    /// # Errors
    /// [`InvalidTensor`] where `values` has not as many elements as `shape` asks for.
    pub fn from_f32(shape: Vec<u32>, values: &[f32]) -> Result<Self, InvalidTensor> {
        let mut payload = Vec::with_capacity(values.len() * 4);
        for value in values {
            payload.extend_from_slice(&value.to_le_bytes());
        }
        Self::new(DType::F32, shape, payload.into())
    }

    /// How an element is written.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements along each dimension, the slowest first.
    #[must_use]
    pub fn shape(&self) -> &[u32] {
        &self.shape
    }

    /// The elements, little-endian, without gaps.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The elements, widened to binary32 where they are narrower.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let (pairs, quads) = (self.payload.chunks_exact(2), self.payload.chunks_exact(4));
        match self.dtype {
            DType::F32 => quads.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            DType::F16 => pairs.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            DType::BF16 => pairs.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }
}

impl fmt::Debug for Tensor {
    /// Type and shape; never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

/// Parts that make no tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTensor {
    /// More dimensions than any message has.
    #[error("a tensor of {dimensions} dimensions; the most is {TENSOR_DIMENSIONS_MAX}")]
    Dimensions {
        /// How many it claimed.
        dimensions: usize,
    },
    /// More bytes than 64 bits can count.
    #[error("the tensor's shape overflows")]
    TooLarge,
    /// A payload that is shorter or longer than the shape says.
    #[error("the tensor's shape asks for {expected} bytes, its payload has {found}")]
    Length {
        /// Bytes that type and shape ask for.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shape_that_lies_is_refused() {
        let payload = Bytes::from_static(&[0; 8]);
        let tensor = |shape: &[u32]| Tensor::new(DType::F32, shape.to_vec(), payload.clone());
        assert!(tensor(&[2]).is_ok());
        assert_eq!(tensor(&[3]), Err(InvalidTensor::Length { expected: 12, found: 8 }));
        assert_eq!(tensor(&[u32::MAX; 4]), Err(InvalidTensor::TooLarge));
        assert_eq!(tensor(&[1; 5]), Err(InvalidTensor::Dimensions { dimensions: 5 }));
        assert_eq!(tensor(&[0, 7]), Err(InvalidTensor::Length { expected: 0, found: 8 }));
    }

    #[test]
    fn narrow_elements_widen_exactly() {
        let half = Bytes::copy_from_slice(&f16::from_f32(-1.5).to_le_bytes());
        assert_eq!(Tensor::new(DType::F16, vec![1], half).unwrap().to_f32(), [-1.5]);
        let brain = Bytes::copy_from_slice(&bf16::from_f32(3.0).to_le_bytes());
        assert_eq!(Tensor::new(DType::BF16, vec![1], brain).unwrap().to_f32(), [3.0]);
    }

    proptest! {
        #[test]
        fn binary32_elements_survive(values in proptest::collection::vec(any::<f32>(), 0..64)) {
            let shape = vec![1, u32::try_from(values.len()).unwrap()];
            let read = Tensor::from_f32(shape, &values).unwrap().to_f32();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&read), bits(&values));
        }
    }
}
