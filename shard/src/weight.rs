//! Tensors of a model as they lie in its file: type, shape and bytes, never widened.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::mapping::Mapping;

/// How the values of a [`Weight`] are written.
///
/// The quantized types are those of ggml: a row is cut into blocks of [`WeightType::block_values`]
/// values that share a scale, `ggml/src/ggml-common.h` in <https://github.com/ggml-org/ggml>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(non_camel_case_types, reason = "these are the names that everybody knows them by")]
pub enum WeightType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 32 values of 4 bits, one scale.
    Q4_0,
    /// 32 values of 4 bits, scale and minimum.
    Q4_1,
    /// 32 values of 5 bits, one scale.
    Q5_0,
    /// 32 values of 5 bits, scale and minimum.
    Q5_1,
    /// 32 values of 8 bits, one scale.
    Q8_0,
    /// 256 values of 4 bits in 8 groups with scales and minima of 6 bits.
    Q4K,
    /// 256 values of 5 bits in 8 groups with scales and minima of 6 bits.
    Q5K,
    /// 256 values of 6 bits in 16 groups with scales of 8 bits.
    Q6K,
}

impl WeightType {
    /// Every type, as they are listed to a person.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Values that are written together: 1 for the float types, else 32 or 256.
    #[must_use]
    pub const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of [`Self::block_values`] values.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Whether a value stands alone, without a scale that it shares.
    #[must_use]
    pub const fn is_float(self) -> bool {
        self.block_values() == 1
    }

    /// The name as ggml and people write it: `Q4_K`, `BF16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Bytes of a tensor of this type and shape (slowest dimension first), none of it trusted.
    ///
    /// `None` where the last dimension is no whole number of blocks or the number overflows.
    #[must_use]
    pub fn tensor_bytes(self, shape: &[usize]) -> Option<u64> {
        let (columns, rows) = match shape.split_last() {
            Some((&columns, rows)) => (columns, rows),
            None => (1, shape),
        };
        if !columns.is_multiple_of(self.block_values()) {
            return None;
        }
        let row_bytes = (columns / self.block_values()).checked_mul(self.block_bytes())?;
        let start = u64::try_from(row_bytes).ok()?;
        rows.iter().try_fold(start, |bytes, &size| bytes.checked_mul(u64::try_from(size).ok()?))
    }
}

impl FromStr for WeightType {
    type Err = UnknownWeightType;

    /// Reads a name in letters of any case.
    fn from_str(text: &str) -> Result<Self, UnknownWeightType> {
        let named = |kind: &Self| kind.name().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownWeightType(text.to_owned()))
    }
}

/// A name that no type of weight has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no type of weight is called {0:?}; there are {names}", names = Self::names())]
pub struct UnknownWeightType(String);

impl UnknownWeightType {
    fn names() -> String {
        WeightType::ALL.map(WeightType::name).join(", ")
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a model.
///
/// A clone shares the bytes, which lie in a memory map of the file wherever they can.
#[derive(Clone)]
pub struct Weight {
    weight_type: WeightType,
    shape: Vec<usize>,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    Mapped { mapping: Arc<Mapping>, start: usize, end: usize },
    Owned(Arc<[u8]>),
}

impl Weight {
    /// A tensor of bytes that this process holds itself; `shape` has the slowest dimension first.
    ///
    /// # Errors
    /// [`InvalidWeight`] where type, shape and length do not fit each other.
    pub fn new(
        weight_type: WeightType,
        shape: Vec<usize>,
        bytes: impl Into<Arc<[u8]>>,
    ) -> Result<Self, InvalidWeight> {
        let bytes = bytes.into();
        check_length(weight_type, &shape, bytes.len())?;
        Ok(Self { weight_type, shape, storage: Storage::Owned(bytes) })
    }

    /// A tensor in a mapped file; `None` where the file has not the bytes `offset..offset + bytes`.
    pub(crate) fn mapped(
        weight_type: WeightType,
        shape: Vec<usize>,
        mapping: &Arc<Mapping>,
        offset: u64,
    ) -> Option<Self> {
        let start = usize::try_from(offset).ok()?;
        let length = usize::try_from(weight_type.tensor_bytes(&shape)?).ok()?;
        let end = start.checked_add(length)?;
        mapping.bytes().get(start..end)?;
        let storage = Storage::Mapped { mapping: Arc::clone(mapping), start, end };
        Some(Self { weight_type, shape, storage })
    }

    /// How the values are written.
    #[must_use]
    pub const fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// Values along each dimension, the slowest first, as Hugging Face writes it: `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes as the file has them, little-endian, at any alignment.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped { mapping, start, end } => &mapping.bytes()[*start..*end],
            Storage::Owned(bytes) => bytes,
        }
    }

    /// Tells the system that the bytes will hardly be read again, as they were packed for a kernel, say:
    /// where they are mapped, they leave memory. Reading them later is as right as before, and slower.
    pub fn release(&self) {
        match &self.storage {
            Storage::Mapped { mapping, start, end } => mapping.release(*start..*end),
            Storage::Owned(_) => {}
        }
    }

    /// Rows of a matrix: all dimensions but the last, multiplied. A vector is one row.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rows)| rows.iter().product())
    }

    /// Values of one row: the last dimension.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.columns() / self.weight_type.block_values() * self.weight_type.block_bytes()
    }
}

impl fmt::Debug for Weight {
    /// Type and shape; never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({} {:?})", self.weight_type, self.shape)
    }
}

/// Parts that make no tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a {weight_type} tensor of shape {shape:?} {}, but {found} bytes were given",
    .expected.map_or_else(
        || format!("cannot exist (a row is whole blocks of {} values)", .weight_type.block_values()),
        |bytes| format!("has {bytes} bytes"),
    )
)]
pub struct InvalidWeight {
    /// How the values are written.
    pub weight_type: WeightType,
    /// The shape that was asked for.
    pub shape: Vec<usize>,
    /// Bytes that type and shape ask for; `None` where no tensor has this shape.
    pub expected: Option<u64>,
    /// Bytes that came.
    pub found: u64,
}

fn check_length(
    weight_type: WeightType,
    shape: &[usize],
    length: usize,
) -> Result<(), InvalidWeight> {
    let (expected, found) = (weight_type.tensor_bytes(shape), length as u64);
    if expected == Some(found) {
        return Ok(());
    }
    Err(InvalidWeight { weight_type, shape: shape.to_vec(), expected, found })
}

/// The tensors of one or more parts of a model, by their canonical names.
#[derive(Debug, Clone, Default)]
pub struct Weights(BTreeMap<String, Weight>);

impl Weights {
    /// The tensor with this canonical name.
    ///
    /// # Errors
    /// [`MissingTensor`] where no such tensor was loaded.
    pub fn get(&self, name: &str) -> Result<&Weight, MissingTensor> {
        self.0.get(name).ok_or_else(|| MissingTensor { name: name.to_owned() })
    }

    /// Whether a tensor with this name was loaded.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All tensors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.0.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// Bytes of all tensors together.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.0.values().map(|weight| weight.bytes().len() as u64).sum()
    }

    /// These tensors and those of `other`: the two ends of a model, say.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl FromIterator<(String, Weight)> for Weights {
    fn from_iter<T: IntoIterator<Item = (String, Weight)>>(tensors: T) -> Self {
        Self(tensors.into_iter().collect())
    }
}

/// A tensor that was asked for and is not among the loaded ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tensor {name} is not among the loaded ones")]
pub struct MissingTensor {
    /// Its canonical name.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_rows_have_whole_blocks() {
        assert_eq!(WeightType::Q4_1.tensor_bytes(&[2, 64]), Some(80));
        assert_eq!(WeightType::Q4_1.tensor_bytes(&[2, 48]), None);
        assert_eq!(WeightType::Q6K.tensor_bytes(&[3, 256]), Some(630));
        assert_eq!(WeightType::F32.tensor_bytes(&[]), Some(4));
        assert_eq!(WeightType::F32.tensor_bytes(&[usize::MAX, usize::MAX]), None);
    }

    #[test]
    fn every_type_is_found_by_its_name() {
        for kind in WeightType::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(kind.name().to_lowercase().parse(), Ok(kind));
        }
        let error = "Q3_K".parse::<WeightType>().unwrap_err().to_string();
        assert!(error.contains("Q3_K") && error.contains("Q4_K"), "{error}");
    }

    #[test]
    fn a_weight_has_the_bytes_that_its_shape_asks_for() {
        let weight = Weight::new(WeightType::Q8_0, vec![2, 32], vec![0; 68]).unwrap();
        assert_eq!((weight.rows(), weight.columns(), weight.row_bytes()), (2, 32, 34));
        let error = Weight::new(WeightType::BF16, vec![3], vec![0; 5]).unwrap_err();
        assert_eq!((error.expected, error.found), (Some(6), 5));
    }
}
