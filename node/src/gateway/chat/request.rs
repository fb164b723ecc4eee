//! The body of a chat request.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use umbel_client::text::chat_template::Message;

use crate::gateway::content::Content;
use crate::gateway::error::ApiError;
use crate::gateway::format::ResponseFormat;
use crate::gateway::options::{self, Options, StreamOptions, Texts};

/// Turns of a conversation.
const MESSAGES_MAX: usize = 4096;

/// As OpenAI's reference has it, and `top_k`, `min_p` and `repetition_penalty` as others have them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<Turn>,
    n: Option<u32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
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
    #[serde(default)]
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    prediction: Option<Prediction>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    // What changes no answer here.
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "store")]
    _store: Option<bool>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<String>,
    #[serde(rename = "parallel_tool_calls")]
    _parallel_tool_calls: Option<bool>,
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<String>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<String>,
}

/// One turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: Role,
    content: Content,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "refusal")]
    _refusal: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
}

/// A text that the answer will repeat in part.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Prediction {
    Content { content: Content },
}

impl ChatRequest {
    pub(super) fn messages(&self) -> Result<Vec<Message>, ApiError> {
        if self.messages.is_empty() || self.messages.len() > MESSAGES_MAX {
            let message = format!("messages has from 1 to {MESSAGES_MAX} turns");
            return Err(ApiError::invalid("messages", message));
        }
        let message = |turn: &Turn| match turn.role {
            Role::System | Role::Developer => Message::system(turn.content.text()),
            Role::User => Message::user(turn.content.text()),
            Role::Assistant => Message::assistant(turn.content.text()),
        };
        Ok(self.messages.iter().map(message).collect())
    }

    pub(super) fn options(&self) -> Result<Options, ApiError> {
        let max_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                let message = "max_tokens and max_completion_tokens differ: give one of them";
                return Err(ApiError::invalid("max_completion_tokens", message));
            }
            (old, new) => new.or(old),
        };
        let top_logprobs = match (self.logprobs, self.top_logprobs) {
            (Some(true), count) => Some(count.unwrap_or(0)),
            (_, Some(count)) if count > 0 => {
                let message = "top_logprobs is for requests with logprobs: true";
                return Err(ApiError::invalid("top_logprobs", message));
            }
            _ => None,
        };
        self.refuse_what_is_missing()?;
        let options = Options {
            n: self.n,
            max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            adjust: options::adjust(
                self.presence_penalty,
                self.frequency_penalty,
                self.logit_bias.as_ref(),
            )?,
            grammar: None,
            seed: self.seed,
            stop: self.stop.clone(),
            top_logprobs,
            stream: self.stream.unwrap_or(false),
            stream_options: self.stream_options,
        };
        options.check()?;
        Ok(options)
    }

    fn refuse_what_is_missing(&self) -> Result<(), ApiError> {
        let none = self.tool_choice.as_ref().is_some_and(|choice| choice == "none");
        if self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) && !none {
            return Err(ApiError::unsupported("tools", "calling functions"));
        }
        Ok(())
    }

    /// The form of the answer, if one was asked for.
    pub(super) fn response_format(&self) -> Option<ResponseFormat> {
        self.response_format.clone()
    }

    /// A text that the answer will repeat in part, if one was given.
    pub(super) fn prediction(&self) -> Option<String> {
        self.prediction.as_ref().map(|Prediction::Content { content }| content.text())
    }
}
