//! An answer, token by token.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use umbel_client::{Chain, FinishReason, Generate};

use crate::error::not_generated;
use crate::model::Opened;
use crate::session::{Home, Returned};
use crate::waiting::{give_up, wait};

/// One new token.
#[pyclass(frozen, get_all, module = "umbel")]
pub(crate) struct Token {
    /// Its id.
    id: u32,
    /// The text that may be shown now; empty while a character is incomplete.
    text: String,
    /// The largest logits before any sampling, as pairs of a token and its logit, largest first.
    top_logits: Vec<(u32, f32)>,
}

#[pymethods]
impl Token {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        format!("Token(id={}, text={:?})", self.id, self.text)
    }
}

/// An answer under way: an iterator over its tokens. Ctrl-C, `close()` and the end of a `with` end it,
/// and its servers forget it.
#[pyclass(frozen, module = "umbel")]
pub(crate) struct Generation(Mutex<Progress>);

struct Progress {
    /// Absent while a thread waits for a token, and at the end.
    under_way: Option<umbel_client::Generation>,
    /// The session to which the chain goes back.
    home: Option<Home>,
    prompt_count: usize,
    /// The prompt and the answer so far.
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
    /// Neither finished nor given up.
    lives: bool,
}

impl Generation {
    /// Begins where the chain holds what stands beside it, or what its servers do.
    pub(crate) fn start(
        py: Python<'_>,
        request: Generate,
        opened: &Opened,
        (chain, cached): (Chain, Option<Vec<u32>>),
        home: Option<Home>,
    ) -> PyResult<Self> {
        let tokens = request.prompt.clone();
        let cached = cached.unwrap_or_else(|| chain.held().to_vec());
        let model = opened.model.clone();
        // Where text is guessed, the prompt is taken into an index on the runtime.
        let started = wait(py, async move { request.resume(model, chain, &cached) })?;
        let under_way = Some(started.map_err(not_generated)?);
        let (prompt_count, finish, lives) = (tokens.len(), None, true);
        Ok(Self(Mutex::new(Progress { under_way, home, prompt_count, tokens, finish, lives })))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of how a step went. The lock is never held while something is waited for.
    fn stepped(
        &self,
        generation: umbel_client::Generation,
        stepped: PyResult<Option<umbel_client::Token>>,
    ) -> (PyResult<Option<umbel_client::Token>>, Option<Chain>) {
        let mut progress = self.progress();
        progress.tokens = generation.tokens().to_vec();
        progress.finish = generation.finish_reason();
        match stepped {
            Ok(Some(token)) if progress.lives => {
                progress.under_way = Some(generation);
                (Ok(Some(token)), None)
            }
            Ok(token) => {
                progress.lives = false;
                let chain = progress.end(generation, true);
                (Ok(token), chain)
            }
            Err(error) => {
                progress.lives = false;
                // Nobody knows what its cache holds: the session's next answer begins anew.
                let chain = progress.end(generation, false);
                (Err(error), chain)
            }
        }
    }
}

impl Progress {
    /// Gives the chain back to the session; without one it is returned, to be closed.
    fn end(&mut self, generation: umbel_client::Generation, in_order: bool) -> Option<Chain> {
        let text = generation.tokens().to_vec();
        let (chain, cached) = generation.into_chain();
        match (self.home.take(), in_order) {
            (Some(home), true) => {
                home.returned(Returned { chain: Some((chain, cached)), text });
                None
            }
            (Some(home), false) => {
                home.returned(Returned { chain: None, text });
                Some(chain)
            }
            (None, _) => Some(chain),
        }
    }
}

#[pymethods]
impl Generation {
    fn __iter__(own: Py<Self>) -> Py<Self> {
        own
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Token>> {
        let taken = {
            let mut progress = self.progress();
            if !progress.lives {
                return Ok(None);
            }
            progress.under_way.take()
        };
        let Some(mut generation) = taken else {
            return Err(PyRuntimeError::new_err("another thread waits for this generation"));
        };
        let stepped = wait(py, generation.next());
        let stepped = stepped.and_then(|token| token.map_err(not_generated));
        let (stepped, chain) = self.stepped(generation, stepped);
        if let Some(chain) = chain {
            wait(py, chain.close())?;
        }
        let token = stepped?;
        Ok(token.map(|token| Token {
            id: token.id,
            text: token.text,
            top_logits: token.top_logits,
        }))
    }

    /// The rest of the answer as one text.
    fn text(&self, py: Python<'_>) -> PyResult<String> {
        let mut text = String::new();
        while let Some(token) = self.__next__(py)? {
            text.push_str(&token.text);
        }
        Ok(text)
    }

    /// The tokens of the answer so far.
    #[getter]
    fn tokens(&self) -> Vec<u32> {
        let progress = self.progress();
        progress.tokens[progress.prompt_count..].to_vec()
    }

    /// The tokens of the prompt.
    #[getter]
    fn prompt(&self) -> Vec<u32> {
        let progress = self.progress();
        progress.tokens[..progress.prompt_count].to_vec()
    }

    /// `stop` where the model ended its answer, `length` where there was no more room, and `None` as
    /// long as it goes on and where it was given up.
    #[getter]
    fn finish_reason(&self) -> Option<&'static str> {
        self.progress().finish.map(FinishReason::as_str)
    }

    /// Ends the answer here. One that a thread waits for ends with the token that it waits for.
    fn close(&self) {
        let mut progress = self.progress();
        progress.lives = false;
        if let Some(generation) = progress.under_way.take() {
            let chain = progress.end(generation, true);
            drop(progress);
            give_up(chain);
        }
    }

    fn __enter__(own: Py<Self>) -> Py<Self> {
        own
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.close();
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.close();
    }
}
