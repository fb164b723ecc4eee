//! Hidden states: what flows between blocks, and between peers.

use std::fmt;
use std::ops::Range;

use candle_core::{Device, Tensor};
use umbel_protocol::{DType, Tensor as WireTensor};

use crate::operation;

/// One row of binary32 values for each of one or more tokens: `[tokens, hidden]`, on the processor.
///
/// A clone shares the values, and so do [`HiddenStates::rows`].
#[derive(Clone)]
pub struct HiddenStates(Tensor);

impl HiddenStates {
    /// Wraps `values`, row by row, `hidden_size` to a row.
    ///
    /// # Errors
    /// [`WrongHiddenStates`] where they fill no whole number of rows, or none at all.
    pub fn from_values(values: Vec<f32>, hidden_size: usize) -> Result<Self, WrongHiddenStates> {
        let rows = values.len().checked_div(hidden_size).unwrap_or(0);
        if rows == 0 {
            return Err(WrongHiddenStates::NoToken);
        }
        if rows * hidden_size != values.len() {
            return Err(WrongHiddenStates::Shape { shape: vec![values.len()], hidden_size });
        }
        let tensor = Tensor::from_vec(values, (rows, hidden_size), &Device::Cpu)
            .expect("the shape was checked against the values");
        Ok(Self(tensor))
    }

    /// Reads what a peer sent: `[tokens, hidden]` or `[1, tokens, hidden]` in any element type.
    ///
    /// Values that are not finite pass: they harm only the session that sent them.
    ///
    /// # Errors
    /// [`WrongHiddenStates`] where the shape is another one or there is no token.
    pub fn from_wire(tensor: &WireTensor, hidden_size: usize) -> Result<Self, WrongHiddenStates> {
        let (tokens, width) = match *tensor.shape() {
            [tokens, width] | [1, tokens, width] => (tokens, width),
            _ => (1, 0),
        };
        if usize::try_from(width) != Ok(hidden_size) {
            let shape = tensor.shape().iter().map(|&size| size as usize).collect();
            return Err(WrongHiddenStates::Shape { shape, hidden_size });
        }
        if tokens == 0 {
            return Err(WrongHiddenStates::NoToken);
        }
        Self::from_values(tensor.to_f32(), hidden_size)
    }

    /// The tensor `[tokens, hidden]` in binary32, as it is sent to a peer.
    #[must_use]
    pub fn to_wire(&self) -> WireTensor {
        self.to_wire_as(DType::F32)
    }

    /// The tensor `[tokens, hidden]`, as it is sent to a peer that takes elements of this type.
    /// What is narrower than binary32 is rounded here and nowhere else.
    #[must_use]
    pub fn to_wire_as(&self, dtype: DType) -> WireTensor {
        let size = |size: usize| u32::try_from(size).expect("no dimension reaches four billion");
        let shape = vec![size(self.token_count()), size(self.hidden_size())];
        self.with_values(|values| WireTensor::from_values(dtype, shape, values))
            .expect("the values fill the shape")
    }

    /// Whether all values are finite numbers. Where they are not, whoever computed them did so wrongly, or
    /// from what was none before.
    #[must_use]
    pub fn are_finite(&self) -> bool {
        self.with_values(|values| values.iter().all(|value| value.is_finite()))
    }

    /// How many tokens there are: at least one.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.0.dims()[0]
    }

    /// Values of one token.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.0.dims()[1]
    }

    /// The tokens of `range`, without a copy.
    ///
    /// # Errors
    /// [`NoSuchRows`] where `range` is empty or leaves these.
    pub fn rows(&self, range: Range<usize>) -> Result<Self, NoSuchRows> {
        if range.is_empty() || range.end > self.token_count() {
            return Err(NoSuchRows { rows: range, tokens: self.token_count() });
        }
        let rows = self.0.narrow(0, range.start, range.len());
        Ok(Self(rows.expect("the range was checked against the rows")))
    }

    /// The last token alone, without a copy.
    #[must_use]
    pub fn last_row(&self) -> Self {
        let last = self.token_count() - 1;
        self.rows(last..last + 1).expect("there is at least one token")
    }

    /// The tokens of all `parts`, one after the other.
    ///
    /// # Errors
    /// [`WrongHiddenStates`] where the parts differ in width or there is no part.
    pub fn concat(parts: &[Self]) -> Result<Self, WrongHiddenStates> {
        let [first, rest @ ..] = parts else {
            return Err(WrongHiddenStates::NoToken);
        };
        let hidden_size = first.hidden_size();
        if let Some(other) = rest.iter().find(|part| part.hidden_size() != hidden_size) {
            return Err(WrongHiddenStates::Shape { shape: other.0.dims().to_vec(), hidden_size });
        }
        let tokens = parts.iter().map(Self::token_count).sum::<usize>();
        let mut values = Vec::with_capacity(tokens * hidden_size);
        for part in parts {
            part.with_values(|part| values.extend_from_slice(part));
        }
        Self::from_values(values, hidden_size)
    }

    /// The values, row by row.
    #[must_use]
    pub fn to_values(&self) -> Vec<f32> {
        self.with_values(<[f32]>::to_vec)
    }

    /// The tensor itself, for mathematics of one's own: `[tokens, hidden]`, binary32.
    #[must_use]
    pub const fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// What a block computed: `tensor` is `[tokens, hidden]` in binary32 on the processor.
    pub(crate) fn computed(tensor: Tensor) -> Self {
        assert_eq!(tensor.rank(), 2, "blocks keep the shape of their input");
        assert!(tensor.is_contiguous(), "operations give contiguous tensors");
        Self(tensor)
    }

    fn with_values<R>(&self, read: impl FnOnce(&[f32]) -> R) -> R {
        operation::with_values(&self.0, read)
            .expect("hidden states are contiguous binary32 on the processor")
    }
}

impl fmt::Debug for HiddenStates {
    /// The shape; never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HiddenStates({} x {})", self.token_count(), self.hidden_size())
    }
}

/// A tensor that is no hidden states of this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongHiddenStates {
    /// Not a token.
    #[error("hidden states of no token at all")]
    NoToken,
    /// Another shape than `[tokens, hidden_size]`.
    #[error(
        "hidden states have the shape [tokens, {hidden_size}], not {shape:?}: \
         is the peer running another model?"
    )]
    Shape {
        /// The shape that was found.
        shape: Vec<usize>,
        /// Values of one token of this model.
        hidden_size: usize,
    },
}

/// Rows that the hidden states do not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no tokens {rows:?} among {tokens}")]
pub struct NoSuchRows {
    /// The rows that were asked for.
    pub rows: Range<usize>,
    /// How many there are.
    pub tokens: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(shape: &[u32]) -> WireTensor {
        let elements = shape.iter().product::<u32>();
        let values: Vec<f32> = (0..elements).map(|value| value as f32).collect();
        WireTensor::from_f32(shape.to_vec(), &values).unwrap()
    }

    #[test]
    fn hidden_states_survive_the_wire() {
        let read = HiddenStates::from_wire(&wire(&[1, 3, 2]), 2).unwrap();
        assert_eq!((read.token_count(), read.hidden_size()), (3, 2));
        assert_eq!(read.to_values(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read.to_wire(), wire(&[3, 2]));
    }

    #[test]
    fn half_precision_from_a_peer_is_widened() {
        let payload = half::bf16::from_f32(-2.5).to_le_bytes().repeat(2);
        let tensor = WireTensor::new(DType::BF16, vec![1, 2], payload.into()).unwrap();
        assert_eq!(HiddenStates::from_wire(&tensor, 2).unwrap().to_values(), [-2.5, -2.5]);
    }

    #[test]
    fn a_row_is_rounded_alike_alone_and_among_others() {
        let all = HiddenStates::from_wire(&wire(&[5, 40]), 40).unwrap();
        for dtype in DType::ALL {
            let together = all.to_wire_as(dtype);
            let alone = all.rows(2..3).unwrap().to_wire_as(dtype);
            assert!(alone == together.rows(2, 3), "{dtype}");
        }
    }

    #[test]
    fn another_shape_is_refused() {
        for shape in [&[][..], &[4], &[2, 3, 4], &[1, 1, 1, 4], &[3, 5]] {
            let refused = HiddenStates::from_wire(&wire(shape), 4).unwrap_err();
            assert!(matches!(refused, WrongHiddenStates::Shape { .. }), "{shape:?}");
        }
        for shape in [&[0, 4][..], &[1, 0, 4]] {
            let refused = HiddenStates::from_wire(&wire(shape), 4).unwrap_err();
            assert_eq!(refused, WrongHiddenStates::NoToken, "{shape:?}");
        }
    }

    #[test]
    fn rows_of_a_slice_are_those_of_the_whole() {
        let all = HiddenStates::from_wire(&wire(&[5, 2]), 2).unwrap();
        let middle = all.rows(1..4).unwrap();
        assert_eq!(middle.to_values(), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(middle.last_row().to_wire(), all.rows(3..4).unwrap().to_wire());
        assert!(all.rows(2..2).is_err());
        assert!(all.rows(4..6).is_err());
        let parts = [all.rows(0..1).unwrap(), middle, all.rows(4..5).unwrap()];
        assert_eq!(HiddenStates::concat(&parts).unwrap().to_wire(), all.to_wire());
        assert_eq!(HiddenStates::concat(&[]).unwrap_err(), WrongHiddenStates::NoToken);
    }
}
