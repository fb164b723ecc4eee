//! Binary32 values as Python passes them around: whatever has the buffer protocol comes in, such as an
//! array of `NumPy`, and a `memoryview` goes out, which `NumPy` and `PyTorch` take without a copy.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView};
use umbel_engine::HiddenStates;

/// Hidden states of one text, `[tokens, hidden]`, or of several of one length,
/// `[texts, tokens, hidden]`.
pub(crate) struct Rows {
    /// Row by row.
    pub(crate) hidden: HiddenStates,
    /// As they came.
    pub(crate) shape: Vec<usize>,
}

impl Rows {
    /// Tokens of each text.
    pub(crate) fn lengths(&self) -> PyResult<Vec<u32>> {
        let (texts, tokens) = match self.shape[..] {
            [texts, tokens, _] => (texts, tokens),
            _ => (1, self.hidden.token_count()),
        };
        let tokens = u32::try_from(tokens).map_err(|_| PyValueError::new_err("a text too long"))?;
        Ok(vec![tokens; texts])
    }
}

/// Reads hidden states of a model with `hidden_size` values for each token.
pub(crate) fn rows(value: &Bound<'_, PyAny>, hidden_size: usize) -> PyResult<Rows> {
    let (shape, values) = floats(value)?;
    let fits = matches!(shape.len(), 2 | 3) && shape.last() == Some(&hidden_size);
    if !fits || values.is_empty() {
        return Err(PyValueError::new_err(format!(
            "hidden states of this model are [tokens, {hidden_size}] or [texts, tokens, \
             {hidden_size}], with one token at least; these are {shape:?}"
        )));
    }
    let hidden = HiddenStates::from_values(values, hidden_size);
    Ok(Rows { hidden: hidden.expect("the shape was checked"), shape })
}

fn floats(value: &Bound<'_, PyAny>) -> PyResult<(Vec<usize>, Vec<f32>)> {
    let Ok(view) = PyMemoryView::from(value) else {
        return Err(PyTypeError::new_err(
            "expected float32 values behind the buffer protocol, such as an array of NumPy; for a \
             tensor of PyTorch give x.detach().numpy()",
        ));
    };
    let format: String = view.getattr("format")?.extract()?;
    if !matches!(format.as_str(), "f" | "=f" | "<f") {
        return Err(PyTypeError::new_err(format!(
            "expected float32 values, and these have the format {format:?}"
        )));
    }
    let shape: Vec<usize> = view.getattr("shape")?.extract()?;
    let bytes = view.call_method0("tobytes")?;
    let (values, _) = bytes.cast::<PyBytes>()?.as_bytes().as_chunks();
    Ok((shape, values.iter().map(|&bytes| f32::from_ne_bytes(bytes)).collect()))
}

/// A view of values in this shape, which holds them alone and may be written to.
pub(crate) fn view<'py>(
    py: Python<'py>,
    values: &[f32],
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = PyByteArray::new_with(py, size_of_val(values), |bytes| {
        for (place, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *place = value.to_ne_bytes();
        }
        Ok(())
    })?;
    PyMemoryView::from(&bytes)?.call_method1("cast", ("f", shape.to_vec()))
}
