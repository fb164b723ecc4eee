//! Keyword arguments of what generates.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use umbel_client::{Generate, Sampling, SessionOptions, Speculate};
use umbel_protocol::DType;

/// A text, or tokens.
#[derive(FromPyObject)]
pub(crate) enum Prompt {
    #[pyo3(transparent)]
    Text(String),
    #[pyo3(transparent)]
    Ids(Vec<u32>),
}

/// Puts what was named over the defaults.
pub(crate) fn generate(
    prompt: Vec<u32>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Generate> {
    let mut wanted = Generate::new(prompt);
    let Some(options) = options else { return Ok(wanted) };
    for (name, value) in options {
        let name: String = name.extract()?;
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed } =
            &mut wanted.sampling;
        match name.as_str() {
            "max_tokens" => wanted.max_tokens = value.extract()?,
            "temperature" => *temperature = value.extract()?,
            "top_k" => *top_k = value.extract()?,
            "top_p" => *top_p = value.extract()?,
            "min_p" => *min_p = value.extract()?,
            "repetition_penalty" => *repetition_penalty = value.extract()?,
            "seed" => *seed = value.extract()?,
            "stop" => wanted.stop = texts(&value)?,
            "ignore_eos" => wanted.ignore_eos = value.extract()?,
            "top_logits" => wanted.top_logits = value.extract()?,
            "speculate" => {
                wanted.speculate = if value.extract()? { Speculate::Auto } else { Speculate::Off };
            }
            _ => return Err(PyTypeError::new_err(format!("there is no option {name:?}"))),
        }
    }
    if wanted.sampling.temperature > 0.0 && !options.contains("seed")? {
        wanted.sampling.seed = getrandom::u64()
            .map_err(|_| PyValueError::new_err("the system has no randomness: give a seed"))?;
    }
    Ok(wanted)
}

/// One text, or several.
fn texts(value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    match value.extract::<String>() {
        Ok(text) => Ok(vec![text]),
        Err(_) => value.extract(),
    }
}

/// How a session is to be.
pub(crate) fn session(standby: bool, wire: &str, cache: &str) -> PyResult<SessionOptions> {
    let (wire, cache) = (dtype("wire", wire)?, dtype("cache", cache)?);
    Ok(SessionOptions { standby, wire, cache, ..SessionOptions::default() })
}

fn dtype(option: &str, name: &str) -> PyResult<DType> {
    let named = DType::ALL.into_iter().find(|dtype| dtype.to_string() == name);
    named.ok_or_else(|| {
        let all = DType::ALL.map(|dtype| dtype.to_string()).join(", ");
        PyValueError::new_err(format!("{option} is one of {all}, and not {name:?}"))
    })
}
