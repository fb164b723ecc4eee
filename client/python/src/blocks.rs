//! Remote blocks, forward and back: what an autograd function of `PyTorch` wraps.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use umbel_client::train::FrozenBlocks;

use crate::error::not_passed;
use crate::tensor::{Rows, rows, view};
use crate::waiting::{give_up, wait};

/// Some or all blocks of a model, on servers that are replaced where they fail.
#[pyclass(frozen, module = "umbel")]
pub(crate) struct Blocks {
    hidden_size: usize,
    span: (u32, u32),
    state: Mutex<State>,
}

/// Who has the blocks.
enum State {
    Free(Box<FrozenBlocks>),
    /// One thread, which gives them back.
    InUse,
    Closed,
}

/// What has gone forward, and can be brought back any number of times. It holds no memory of servers.
#[pyclass(frozen, module = "umbel")]
pub(crate) struct Passed {
    passed: umbel_client::train::Passed,
    shape: Vec<usize>,
}

#[pymethods]
impl Blocks {
    /// Takes hidden states, float32 and `[tokens, hidden]` or `[texts, tokens, hidden]`, through the
    /// blocks: what leaves them, in the same shape, and what `backward` wants.
    fn forward<'py>(
        &self,
        py: Python<'py>,
        hidden: &Bound<'_, PyAny>,
    ) -> PyResult<(Bound<'py, PyAny>, Passed)> {
        let rows = rows(hidden, self.hidden_size)?;
        let lengths = rows.lengths()?;
        let Rows { hidden, shape } = rows;
        let mut frozen = self.borrow()?;
        let passed = wait(py, frozen.forward(&lengths, &hidden));
        self.give_back(py, frozen)?;
        let passed = passed?.map_err(not_passed)?;
        let left = view(py, &passed.output().to_values(), &shape)?;
        Ok((left, Passed { passed, shape }))
    }

    /// Brings the gradient of what left the blocks back to what entered them, in the same shape.
    fn backward<'py>(
        &self,
        py: Python<'py>,
        passed: &Bound<'_, Passed>,
        gradient: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Rows { hidden: gradient, shape } = rows(gradient, self.hidden_size)?;
        let Passed { passed, shape: expected } = passed.get();
        if shape != *expected {
            return Err(PyValueError::new_err(format!(
                "the gradient is {shape:?}; what went forward was {expected:?}"
            )));
        }
        let mut frozen = self.borrow()?;
        let back = wait(py, frozen.backward(passed, &gradient));
        self.give_back(py, frozen)?;
        let back = back?.map_err(not_passed)?;
        view(py, &back.to_values(), &shape)
    }

    /// The first block, and the one behind the last.
    #[getter]
    const fn span(&self) -> (u32, u32) {
        self.span
    }

    /// Who computes which blocks: pairs of a peer and its blocks.
    #[getter]
    fn route(&self) -> PyResult<Vec<(String, (u32, u32))>> {
        let route = match &*self.state() {
            State::Free(frozen) => frozen.route(),
            State::InUse => return Err(in_use()),
            State::Closed => return Err(closed()),
        };
        let hop = |hop: umbel_client::train::TrainingHop| {
            let peer = hop.peer.map_or_else(String::new, |peer| peer.to_string());
            (peer, (hop.blocks.start(), hop.blocks.end()))
        };
        Ok(route.into_iter().map(hop).collect())
    }

    /// Lets servers forget what they hold for them, as soon as the thread that uses them has its answer.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self.end() {
            State::Free(frozen) => wait(py, frozen.close()),
            State::InUse | State::Closed => Ok(()),
        }
    }

    fn __enter__(own: Py<Self>) -> Py<Self> {
        own
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}

impl Blocks {
    pub(crate) fn new(frozen: FrozenBlocks) -> Self {
        let span = (frozen.span().start(), frozen.span().end());
        let (hidden_size, state) = (frozen.hidden_size(), State::Free(Box::new(frozen)));
        Self { hidden_size, span, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody uses them any more; what they were before.
    fn end(&self) -> State {
        std::mem::replace(&mut *self.state(), State::Closed)
    }

    /// Takes them for one thread, so that no lock is held while it waits.
    fn borrow(&self) -> PyResult<Box<FrozenBlocks>> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::InUse) {
            State::Free(frozen) => Ok(frozen),
            State::InUse => Err(in_use()),
            State::Closed => {
                *state = State::Closed;
                Err(closed())
            }
        }
    }

    /// Gives them back, or closes them where that was asked for meanwhile.
    fn give_back(&self, py: Python<'_>, frozen: Box<FrozenBlocks>) -> PyResult<()> {
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            drop(state);
            return wait(py, frozen.close());
        }
        *state = State::Free(frozen);
        Ok(())
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        give_up(self.end());
    }
}

fn in_use() -> PyErr {
    PyRuntimeError::new_err("another thread uses the blocks")
}

fn closed() -> PyErr {
    PyRuntimeError::new_err("the blocks are closed")
}
