//! A session whose cache several answers share, or that hidden states are taken through.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use umbel_client::{Chain, SessionOptions};

use crate::error::not_stepped;
use crate::generation::Generation;
use crate::model::Opened;
use crate::options::{self, Prompt};
use crate::tensor::{rows, view};
use crate::waiting::{give_up, wait};

/// A cache on the servers of a route. It opens with the first use, and servers that fail are replaced.
#[pyclass(frozen, module = "umbel")]
pub(crate) struct Session {
    opened: Opened,
    tokens_max: usize,
    options: SessionOptions,
    home: Home,
}

/// Where a chain is while nobody uses it.
#[derive(Clone)]
pub(crate) struct Home(Arc<Mutex<State>>);

struct State {
    /// The chain with the tokens in its cache; absent before the first use and after trouble.
    chain: Option<(Chain, Vec<u32>)>,
    /// All tokens so far.
    text: Vec<u32>,
    /// Rows of hidden states in the cache, which have no tokens.
    rows: u32,
    used: Used,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Used {
    ByNobody,
    BySomebody,
    NoMore,
}

/// What a use leaves behind.
pub(crate) struct Returned {
    pub(crate) chain: Option<(Chain, Vec<u32>)>,
    pub(crate) text: Vec<u32>,
}

impl Home {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what there is, for one user at a time.
    fn borrow(&self) -> PyResult<Returned> {
        let mut state = self.state();
        match state.used {
            Used::ByNobody => {}
            Used::BySomebody => {
                return Err(PyRuntimeError::new_err(
                    "the session is in use: end the answer that is under way, or close it",
                ));
            }
            Used::NoMore => return Err(PyRuntimeError::new_err("the session is closed")),
        }
        state.used = Used::BySomebody;
        Ok(Returned { chain: state.chain.take(), text: state.text.clone() })
    }

    /// Takes back what was borrowed.
    pub(crate) fn returned(&self, returned: Returned) {
        let mut state = self.state();
        if state.used == Used::NoMore {
            drop(state);
            give_up(returned);
            return;
        }
        state.used = Used::ByNobody;
        state.chain = returned.chain;
        state.text = returned.text;
    }
}

#[pymethods]
impl Session {
    /// Continues what the session holds with a text or tokens, which may be empty: an iterator over
    /// the new tokens.
    #[pyo3(signature = (prompt, **options))]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: Prompt,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Generation> {
        if self.home.state().rows > 0 {
            return Err(PyValueError::new_err(
                "hidden states were taken through this session, whose tokens nobody knows",
            ));
        }
        let Returned { chain, text } = self.home.borrow()?;
        let before = text.clone();
        let begun = self.begin(py, (chain, text), prompt, options);
        if begun.is_err() {
            self.home.returned(Returned { chain: None, text: before });
        }
        begun
    }

    /// Takes hidden states, float32 and `[tokens, hidden]`, through all blocks behind those of before,
    /// or behind `position` of them: what leaves the last block for each token.
    #[pyo3(signature = (hidden, *, position=None))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        hidden: &Bound<'_, PyAny>,
        position: Option<u32>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hidden = rows(hidden, self.opened.model.config().hidden_size)?;
        if hidden.shape.len() != 2 {
            return Err(PyValueError::new_err("a session is of one text: [tokens, hidden]"));
        }
        let (at, held) = self.place(position)?;
        let tokens = hidden.hidden.token_count();
        if at as usize + tokens > self.tokens_max {
            let max = self.tokens_max;
            return Err(PyValueError::new_err(format!(
                "the session has room for {max} tokens, and {tokens} at {at} are beyond it"
            )));
        }
        let Returned { chain, text } = self.home.borrow()?;
        let chain = match chain {
            None if held > 0 => Err(PyRuntimeError::new_err(
                "what this session held is lost with its servers: open another",
            )),
            None => self.opened.chain(py, (self.tokens_max, &[]), self.options),
            Some((chain, _)) => Ok(chain),
        };
        let stepped = chain.and_then(|mut chain| {
            let stepped = wait(py, chain.step(at, hidden.hidden))?;
            Ok((chain, stepped.map_err(|error| not_stepped(&error))?))
        });
        let (chain, result) = match stepped {
            Ok((chain, (left, _))) => (Some((chain, Vec::new())), Ok(left)),
            Err(error) => (None, Err(error)),
        };
        self.home.returned(Returned { chain, text });
        let left = result?;
        self.home.state().rows = at + u32::try_from(tokens).unwrap_or(u32::MAX);
        view(py, &left.to_values(), &[left.token_count(), left.hidden_size()])
    }

    /// Tokens so far.
    #[getter]
    fn tokens(&self) -> Vec<u32> {
        self.home.state().text.clone()
    }

    /// How many tokens there are so far.
    #[getter]
    fn position(&self) -> usize {
        let state = self.home.state();
        state.text.len().max(state.rows as usize)
    }

    /// Lets servers free the cache.
    fn close(&self) {
        let mut state = self.home.state();
        state.used = Used::NoMore;
        let chain = state.chain.take();
        drop(state);
        give_up(chain);
    }

    fn __enter__(own: Py<Self>) -> Py<Self> {
        own
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.close();
    }
}

impl Session {
    pub(crate) fn new(opened: Opened, tokens_max: usize, options: SessionOptions) -> Self {
        let tokens_max = tokens_max.clamp(1, opened.model.config().context_tokens);
        let state = State { chain: None, text: Vec::new(), rows: 0, used: Used::ByNobody };
        Self { opened, tokens_max, options, home: Home(Arc::new(Mutex::new(state))) }
    }

    fn begin(
        &self,
        py: Python<'_>,
        (chain, mut text): (Option<(Chain, Vec<u32>)>, Vec<u32>),
        prompt: Prompt,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Generation> {
        let more = self.opened.ids(prompt, text.is_empty())?;
        text.extend(more);
        let request = options::generate(text, options)?;
        let (chain, cached) = match chain {
            Some((chain, cached)) => (chain, Some(cached)),
            None => {
                let room = (self.tokens_max, &*request.prompt);
                (self.opened.chain(py, room, self.options)?, None)
            }
        };
        Generation::start(py, request, &self.opened, (chain, cached), Some(self.home.clone()))
    }

    /// Where rows go, and how many there are already.
    fn place(&self, position: Option<u32>) -> PyResult<(u32, u32)> {
        let state = self.home.state();
        if !state.text.is_empty() {
            return Err(PyValueError::new_err("this session has answered: open another for rows"));
        }
        let at = position.unwrap_or(state.rows);
        if at > state.rows {
            let held = state.rows;
            return Err(PyValueError::new_err(format!(
                "position {at} is beyond the {held} tokens that the session holds"
            )));
        }
        Ok((at, state.rows))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // An answer under way goes on without it.
        if self.home.state().used == Used::ByNobody {
            self.close();
        }
    }
}
