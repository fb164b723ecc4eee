//! Tensors as they travel: element type, shape, and raw little-endian bytes.

mod narrow;

use std::fmt;

use bytes::Bytes;

pub use narrow::Q8_BLOCK_ELEMENTS;

/// How an element of a [`Tensor`] is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Blocks of [`Q8_BLOCK_ELEMENTS`] elements of a row, the last one with what is left: a
    /// binary16 scale, then a signed byte for each element.
    Q8,
    /// The id of a token, an unsigned number of 32 bits.
    Id,
}

impl DType {
    /// Every type of a number that is computed with, the most exact first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::BF16, Self::Q8];

    /// Bytes of a row of so many elements.
    #[must_use]
    pub const fn row_bytes(self, elements: u32) -> u64 {
        let elements = elements as u64;
        match self {
            Self::F32 | Self::Id => 4 * elements,
            Self::F16 | Self::BF16 => 2 * elements,
            Self::Q8 => elements + 2 * elements.div_ceil(Q8_BLOCK_ELEMENTS as u64),
        }
    }

    /// The most by which a finite value may change when it is written in this type, where
    /// `block_max` is the largest magnitude among the elements of its block (of its own for types
    /// without blocks). Beyond the range of the type, values become the largest that it has.
    #[must_use]
    pub fn error_max(self, value: f32, block_max: f32) -> f32 {
        narrow::error_max(self, value, block_max)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8 => "q8",
            Self::Id => "id",
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
        let bytes = Self::payload_bytes(dtype, &shape).ok_or(InvalidTensor::TooLarge)?;
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
        Self::from_values(DType::F32, shape, values)
    }

    /// A tensor of these values, each written as near as the type allows
    /// ([`DType::error_max`]). The bytes of a row depend on nothing but the row.
    ///
    /// # Errors
    /// [`InvalidTensor`] where `values` has not as many elements as `shape` asks for.
    pub fn from_values(
        dtype: DType,
        shape: Vec<u32>,
        values: &[f32],
    ) -> Result<Self, InvalidTensor> {
        let width = shape.last().map_or(1, |&width| width as usize);
        Self::new(dtype, shape, narrow::write(dtype, width, values).into())
    }

    /// The ids of consecutive tokens, `[ids, 1]`.
    ///
    /// # Panics
    /// If there are more than 32 bits count.
    #[must_use]
    pub fn of_ids(ids: &[u32]) -> Self {
        let count = u32::try_from(ids.len()).expect("a context is counted in 32 bits");
        let payload: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Self { dtype: DType::Id, shape: vec![count, 1], payload: payload.into() }
    }

    /// The ids of tokens; `None` where the tensor is not of shape `[ids, 1]`, or holds something
    /// else.
    #[must_use]
    pub fn to_ids(&self) -> Option<Vec<u32>> {
        let ([_, 1], DType::Id) = (self.shape.as_slice(), self.dtype) else {
            return None;
        };
        let ids = self.payload.as_chunks().0;
        Some(ids.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// Bytes that type and shape ask for; `None` beyond 64 bits.
    pub(crate) fn payload_bytes(dtype: DType, shape: &[u32]) -> Option<u64> {
        let (width, rows) = shape.split_last().unwrap_or((&1, &[]));
        let row_bytes = dtype.row_bytes(*width);
        rows.iter().try_fold(row_bytes, |bytes, &size| bytes.checked_mul(size.into()))
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
        let width = self.shape.last().map_or(1, |&width| width as usize);
        narrow::read(self.dtype, width, &self.payload)
    }

    /// The rows `[from, to)` of a tensor of shape `[rows, width]`, which share its payload.
    ///
    /// # Panics
    /// If the tensor has another rank, or not these rows.
    #[must_use]
    pub fn rows(&self, from: u32, to: u32) -> Self {
        let &[rows, width] = self.shape.as_slice() else { panic!("{self:?} has no rows") };
        assert!(from <= to && to <= rows, "{self:?} has no rows {from} to {to}");
        let row_bytes = self.payload.len().checked_div(rows as usize).unwrap_or(0);
        let payload = self.payload.slice(from as usize * row_bytes..to as usize * row_bytes);
        Self { dtype: self.dtype, shape: vec![to - from, width], payload }
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
    /// A packed payload that is not what a tensor of this type and shape is packed into.
    #[error("the tensor's payload is no packed one of its type and shape")]
    Packed,
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
        let blocks = |shape: &[u32]| Tensor::new(DType::Q8, shape.to_vec(), payload.clone());
        assert!(blocks(&[6]).is_ok() && blocks(&[2, 2]).is_ok());
        assert_eq!(blocks(&[2, 33]), Err(InvalidTensor::Length { expected: 74, found: 8 }));
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
