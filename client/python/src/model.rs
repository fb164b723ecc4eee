//! A model: text and tokens, and what begins everything else.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use umbel_client::text::chat_template::Message;
use umbel_client::train::FrozenBlocks;
use umbel_client::{Chain, ClientModel, Generate, Opening, RemoteChain, SessionOptions, Swarm};
use umbel_engine::train::{Adapter, PeftFiles};
use umbel_protocol::Span;

use crate::blocks::Blocks;
use crate::error::{failed, not_generated, not_opened, not_passed, wrong};
use crate::generation::Generation;
use crate::options::{self, Prompt};
use crate::session::Session;
use crate::tensor::{rows, view};
use crate::waiting::{compute, wait};

/// The client's part of a model: embedding and head, tokenizer and chat template.
#[pyclass(frozen, module = "umbel")]
pub(crate) struct Model {
    opened: Opened,
}

/// A model, and the swarm that serves its blocks.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) model: Arc<ClientModel>,
    pub(crate) swarm: Arc<Swarm>,
}

impl Opened {
    /// A session with room for so many tokens, at most the model's context.
    pub(crate) fn chain(
        &self,
        py: Python<'_>,
        (tokens, prompt): (usize, &[u32]),
        options: SessionOptions,
    ) -> PyResult<Chain> {
        let tokens = tokens.clamp(1, self.model.config().context_tokens);
        let tokens_max = u32::try_from(tokens).expect("a context is counted in 32 bits");
        let opening = Opening { tokens_max, prompt, options, adapter: None };
        let opening = RemoteChain::open_with(Arc::clone(&self.swarm), &self.model, opening);
        let chain = wait(py, opening)?.map_err(not_opened)?;
        Ok(Chain::Remote(Box::new(chain)))
    }

    /// The tokens of a prompt, with what stands around a text where it is a whole one.
    pub(crate) fn ids(&self, prompt: Prompt, is_whole: bool) -> PyResult<Vec<u32>> {
        let text = match prompt {
            Prompt::Ids(ids) => return Ok(ids),
            Prompt::Text(text) => text,
        };
        if is_whole {
            return self.model.encode(&text).map_err(|error| failed(&error));
        }
        let Some(tokenizer) = self.model.tokenizer() else {
            return Err(PyValueError::new_err("the model has no tokenizer: give tokens"));
        };
        tokenizer.encode(&text, false).map_err(|error| failed(&error))
    }

    fn hidden_size(&self) -> usize {
        self.model.config().hidden_size
    }
}

#[pymethods]
impl Model {
    /// The hash of all its parts, by which servers of the same model are found.
    #[getter]
    fn id(&self) -> String {
        self.opened.model.id().to_string()
    }

    /// How many blocks it has.
    #[getter]
    fn block_count(&self) -> u32 {
        self.opened.model.config().block_count
    }

    /// Values of a token between blocks.
    #[getter]
    fn hidden_size(&self) -> usize {
        self.opened.hidden_size()
    }

    /// How many tokens it knows.
    #[getter]
    fn vocabulary_size(&self) -> usize {
        self.opened.model.config().vocabulary_size
    }

    /// Tokens of its longest text.
    #[getter]
    fn context_tokens(&self) -> usize {
        self.opened.model.config().context_tokens
    }

    /// The tokens that end an answer.
    #[getter]
    fn eos_token_ids(&self) -> Vec<u32> {
        self.opened.model.config().eos_token_ids.clone()
    }

    /// The tokens of a text, with those that the model wants around one.
    fn encode(&self, text: String) -> PyResult<Vec<u32>> {
        self.opened.ids(Prompt::Text(text), true)
    }

    /// The tokens of a conversation, a list of `(role, content)`, up to where the answer begins.
    fn encode_chat(&self, messages: Vec<(String, String)>) -> PyResult<Vec<u32>> {
        let messages = messages.into_iter().map(|(role, content)| Message::new(role, content));
        let messages: Vec<_> = messages.collect();
        self.opened.model.encode_chat(&messages).map_err(|error| wrong(&error))
    }

    /// The text of tokens.
    #[expect(clippy::needless_pass_by_value, reason = "a list of Python is read into one of Rust")]
    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        let Some(tokenizer) = self.opened.model.tokenizer() else {
            return Err(PyValueError::new_err("the model has no tokenizer"));
        };
        tokenizer.decode(&ids).map_err(|error| failed(&error))
    }

    /// Continues a text or a list of tokens: an iterator over the new tokens.
    #[pyo3(signature = (prompt, **options))]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: Prompt,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Generation> {
        let request = options::generate(self.opened.ids(prompt, true)?, options)?;
        self.answer(py, request)
    }

    /// The model's answer in a conversation, a list of `(role, content)`.
    #[pyo3(signature = (messages, **options))]
    fn chat(
        &self,
        py: Python<'_>,
        messages: Vec<(String, String)>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Generation> {
        let request = options::generate(self.encode_chat(messages)?, options)?;
        self.answer(py, Generate { continues: false, ..request })
    }

    /// Opens a session with room for so many tokens, whose cache several answers share.
    #[pyo3(signature = (tokens_max=2048, *, standby=false, wire="f32", cache="f32"))]
    fn session(
        &self,
        tokens_max: usize,
        standby: bool,
        wire: &str,
        cache: &str,
    ) -> PyResult<Session> {
        let options = options::session(standby, wire, cache)?;
        Ok(Session::new(self.opened.clone(), tokens_max, options))
    }

    /// What leaves the last block for each token, before the final norm: float32, `[tokens, hidden]`.
    fn hidden_states<'py>(&self, py: Python<'py>, prompt: Prompt) -> PyResult<Bound<'py, PyAny>> {
        let ids = self.opened.ids(prompt, true)?;
        let chain = self.opened.chain(py, (ids.len(), &[]), SessionOptions::default())?;
        let reading = umbel_client::hidden_states(&self.opened.model, chain, &ids);
        let hidden = wait(py, reading)?.map_err(not_generated)?;
        view(py, &hidden.to_values(), &[hidden.token_count(), hidden.hidden_size()])
    }

    /// What enters the first block for tokens: float32, `[tokens, hidden]`.
    fn embed<'py>(&self, py: Python<'py>, prompt: Prompt) -> PyResult<Bound<'py, PyAny>> {
        let ids = self.opened.ids(prompt, true)?;
        let hidden = self.opened.model.ends().embed(&ids).map_err(|error| wrong(&error))?;
        view(py, &hidden.to_values(), &[hidden.token_count(), hidden.hidden_size()])
    }

    /// A logit for each token of the vocabulary, for each row of what left the last block: float32,
    /// `[tokens, vocabulary]`.
    fn logits<'py>(
        &self,
        py: Python<'py>,
        hidden: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hidden = rows(hidden, self.opened.hidden_size())?.hidden;
        let logits = wait(py, self.opened.model.logits(hidden))?.map_err(|error| wrong(&error))?;
        let shape = [logits.len(), self.vocabulary_size()];
        view(py, &logits.concat(), &shape)
    }

    /// How badly what left the last block foretells tokens: the mean cross-entropy of each row with
    /// its target, `None` for a row that counts for nothing, and its gradient by the rows.
    fn loss<'py>(
        &self,
        py: Python<'py>,
        hidden: &Bound<'_, PyAny>,
        targets: Vec<Option<u32>>,
    ) -> PyResult<(f64, Bound<'py, PyAny>)> {
        let rows = rows(hidden, self.opened.hidden_size())?;
        let count = targets.iter().flatten().count();
        if count == 0 {
            return Err(PyValueError::new_err("no row has a target"));
        }
        let (model, hidden) = (Arc::clone(&self.opened.model), rows.hidden);
        #[expect(clippy::cast_possible_truncation, reason = "gradients are binary32")]
        let weight = (1.0 / count as f64) as f32;
        let loss = compute(py, move || model.ends().loss(&hidden, &targets, weight))?;
        let loss = loss.map_err(|error| wrong(&error))?;
        Ok((loss.sum / count as f64, view(py, &loss.gradient.to_values(), &rows.shape)?))
    }

    /// Opens the blocks from `start` up to `end` on servers, forward and back; no text can be longer
    /// than `tokens_max`. With the folder of an adapter they compute as it says.
    #[pyo3(signature = (start=0, end=None, *, tokens_max=1024, adapter=None))]
    fn blocks(
        &self,
        py: Python<'_>,
        start: u32,
        end: Option<u32>,
        tokens_max: u32,
        adapter: Option<PathBuf>,
    ) -> PyResult<Blocks> {
        let Opened { model, swarm } = &self.opened;
        let all = Span::new(0, model.config().block_count).map_err(|error| wrong(&error))?;
        let blocks = Span::new(start, end.unwrap_or(all.end())).map_err(|error| wrong(&error))?;
        let read = |folder: PathBuf| {
            PeftFiles::read(&folder, model.config())
                .and_then(|files| Adapter::from_peft(&files, model.config(), all))
                .map_err(|error| wrong(&error))
        };
        let adapter = adapter.map(read).transpose()?;
        let swarm = Arc::clone(swarm);
        let opening = FrozenBlocks::open(swarm, model, blocks, adapter.as_ref(), tokens_max);
        Ok(Blocks::new(wait(py, opening)?.map_err(not_passed)?))
    }
}

impl Model {
    pub(crate) const fn new(model: Arc<ClientModel>, swarm: Arc<Swarm>) -> Self {
        Self { opened: Opened { model, swarm } }
    }

    fn answer(&self, py: Python<'_>, request: Generate) -> PyResult<Generation> {
        let room = request.prompt.len().saturating_add(request.max_tokens as usize);
        let context = self.opened.model.config().context_tokens;
        if request.prompt.len() >= context {
            // Said before a server is asked for room that no session has.
            let tokens = request.prompt.len();
            return Err(not_generated(umbel_client::GenerateError::PromptTooLong {
                tokens,
                context,
            }));
        }
        let chain = self.opened.chain(py, (room, &request.prompt), SessionOptions::default())?;
        Generation::start(py, request, &self.opened, (chain, None), None)
    }
}
