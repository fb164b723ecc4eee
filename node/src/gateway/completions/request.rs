//! The body of a completion request.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::gateway::error::ApiError;
use crate::gateway::options::{self, Options, STOPS_MAX, StreamOptions, Texts};
use crate::gateway::prompts::{Prompt, Prompts};

/// Answers to all prompts of a request together.
const ANSWERS_MAX: usize = 64;

/// As OpenAI's reference has it, and `top_k`, `min_p` and `repetition_penalty` as others have them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CompletionRequest {
    pub(super) model: String,
    prompt: Prompts,
    n: Option<u32>,
    best_of: Option<u32>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    stop: Option<Texts>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

impl CompletionRequest {
    /// Whether the prompt comes back before the answer.
    pub(super) fn echo(&self) -> bool {
        self.echo.unwrap_or(false)
    }

    pub(super) fn prompts(&self) -> Result<Vec<Prompt>, ApiError> {
        let prompts = self.prompt.clone().into_vec();
        let answers = prompts.len().saturating_mul(self.n.unwrap_or(1) as usize);
        if prompts.is_empty() || answers > ANSWERS_MAX {
            let message = format!("a request has from 1 to {ANSWERS_MAX} answers, not {answers}");
            return Err(ApiError::invalid("prompt", message));
        }
        Ok(prompts)
    }

    pub(super) fn options(&self) -> Result<Options, ApiError> {
        if self.best_of.is_some_and(|best_of| best_of != self.n.unwrap_or(1)) {
            return Err(ApiError::unsupported("best_of", "a best_of other than n"));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "filling in before a suffix"));
        }
        if self.echo() && self.logprobs.is_some() {
            return Err(ApiError::unsupported("echo", "echo with logprobs"));
        }
        let options = Options {
            continues: true,
            max_tokens: Some(self.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT)),
            top_logprobs: self.logprobs,
            ..options::alike!(self)
        };
        options.check(STOPS_MAX)?;
        Ok(options)
    }
}

/// What OpenAI's reference has.
const MAX_TOKENS_DEFAULT: u32 = 16;
