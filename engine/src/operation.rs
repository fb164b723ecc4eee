//! The operations of a block, as candle's tensors see them.
//!
//! Each is a candle custom operation over one of our [`kernel`](crate::kernel)s, on contiguous
//! binary32 tensors `[tokens, values]` on the processor. All of them are batch invariant: the bits
//! computed for one token do not depend on the other tokens of the pass.

pub(crate) mod adapt;
pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod residual;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod route;
pub(crate) mod swiglu;

use candle_core::{CpuStorage, Error, Layout, Result, Shape, Storage, Tensor};

/// The values of a contiguous binary32 tensor, row by row.
fn values<'a>(
    operation: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| Error::RequiresContiguous { op: operation }.bt())?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// As [`values`], to be changed in their place.
fn values_mut<'a>(
    operation: &'static str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [f32]> {
    let count = values(operation, storage, layout)?.len();
    let CpuStorage::F32(values) = storage else { unreachable!("its values were read as binary32") };
    Ok(&mut values[layout.start_offset()..][..count])
}

/// Checks that each row of a tensor has `columns` values, and says how many rows there are.
fn rows_of(operation: &'static str, layout: &Layout, columns: usize) -> Result<usize> {
    match *layout.dims() {
        [rows, found] if found == columns => Ok(rows),
        [rows, _] => Err(Error::ShapeMismatchBinaryOp {
            lhs: layout.shape().clone(),
            rhs: Shape::from((rows, columns)),
            op: operation,
        }
        .bt()),
        _ => Err(Error::UnexpectedNumberOfDims {
            expected: 2,
            got: layout.dims().len(),
            shape: layout.shape().clone(),
        }
        .bt()),
    }
}

/// What an operation gives back to candle.
fn computed(values: Vec<f32>, rows: usize, columns: usize) -> (CpuStorage, Shape) {
    debug_assert_eq!(values.len(), rows * columns);
    (CpuStorage::F32(values), Shape::from((rows, columns)))
}

/// Reads the values of a contiguous binary32 tensor on the processor, row by row.
pub(crate) fn with_values<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(read(values("read", storage, layout)?)),
        Storage::Cuda(_) | Storage::Metal(_) => {
            Err(Error::Msg("a tensor of another device among the processor's".into()).bt())
        }
    }
}
