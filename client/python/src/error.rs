//! Exceptions: the lines that `umbel` prints, raised.

use std::error::Error as StdError;

use pyo3::PyErr;
use pyo3::exceptions::{PyException, PyValueError};
use umbel_client::chain::remote::OpenChainError;
use umbel_client::train::{FrozenError, TrainError};
use umbel_client::{GenerateError, StepError};

pyo3::create_exception!(
    umbel,
    Error,
    PyException,
    "Something that a swarm, or a model's files, could not do; the text says what, and what to do."
);

pyo3::create_exception!(
    umbel,
    NotServedError,
    Error,
    "Nobody in the swarm serves the model, or some of its blocks: later somebody may."
);

/// What the world did.
pub(crate) fn failed(error: &dyn StdError) -> PyErr {
    Error::new_err(line(error))
}

/// What the caller did.
pub(crate) fn wrong(error: &dyn StdError) -> PyErr {
    PyValueError::new_err(line(error))
}

pub(crate) fn not_generated(error: GenerateError) -> PyErr {
    match error {
        GenerateError::EmptyPrompt
        | GenerateError::PromptTooLong { .. }
        | GenerateError::UnknownToken { .. }
        | GenerateError::Sampling(_) => wrong(&error),
        GenerateError::Step(error) => not_stepped(&error),
        GenerateError::NoWeights
        | GenerateError::NoLogits
        | GenerateError::Grammar(_)
        | GenerateError::NotNumbers(_)
        | GenerateError::Ends(_) => failed(&error),
    }
}

pub(crate) fn not_opened(error: OpenChainError) -> PyErr {
    not_stepped(&StepError::from(error))
}

pub(crate) fn not_stepped(error: &StepError) -> PyErr {
    let nobody = match error {
        StepError::Open(open) => matches!(**open, OpenChainError::NotServed { .. }),
        StepError::Compute(_)
        | StepError::Interrupted
        | StepError::Session(_)
        | StepError::Malformed { .. } => false,
    };
    if nobody || error.no_route().is_some() {
        return NotServedError::new_err(line(error));
    }
    failed(error)
}

pub(crate) fn not_passed(error: FrozenError) -> PyErr {
    match error {
        FrozenError::Length { .. }
        | FrozenError::Shape { .. }
        | FrozenError::Prompt { .. }
        | FrozenError::Blocks(_) => wrong(&error),
        FrozenError::Train(TrainError::NoRoute { .. }) => NotServedError::new_err(line(&error)),
        FrozenError::Train(_) => failed(&error),
    }
}

/// An error and what led to it.
fn line(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}
