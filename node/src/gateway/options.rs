//! What requests of all kinds ask of an answer, checked once.

use std::collections::BTreeMap;

use serde::Deserialize;
use umbel_client::text::grammar::Grammar;
use umbel_client::{Adjust, Generate, Sampling};

use super::Gateway;
use super::error::ApiError;

/// Answers to one prompt.
const ANSWERS_MAX: u32 = 8;

/// Texts at which an answer ends, as OpenAI has it.
pub(super) const STOPS_MAX: usize = 4;

/// Tokens of an answer whose request sets no limit: servers keep room for them from the start.
const TOKENS_DEFAULT: u32 = 1024;

/// Likeliest tokens that may be reported with each token, as OpenAI has it.
const TOP_LOGPROBS_MAX: usize = 20;

/// One text or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub(super) enum Texts {
    One(String),
    Several(Vec<String>),
}

impl Texts {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Several(texts) => texts,
        }
    }
}

/// How a stream is to end.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
    /// Padding against those who watch the lengths of chunks, which a loopback address does not need.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

/// Tokens whose logits a request may change, and how far.
const BIASES_MAX: usize = 1024;
const BIAS_MAX: f32 = 100.0;

/// What requests say of penalties and of single tokens, the latter by ids that are written as text.
pub(super) fn adjust(
    presence: Option<f32>,
    frequency: Option<f32>,
    bias: Option<&BTreeMap<String, f32>>,
) -> Result<Adjust, ApiError> {
    let refuse = |message: String| Err(ApiError::invalid("logit_bias", message));
    let mut adjust = Adjust {
        presence: presence.unwrap_or(0.0),
        frequency: frequency.unwrap_or(0.0),
        ..Adjust::default()
    };
    for (id, bias) in bias.into_iter().flatten() {
        let Ok(id) = id.parse() else {
            return refuse(format!("{id:?} is no token id"));
        };
        if !(-BIAS_MAX..=BIAS_MAX).contains(bias) {
            return refuse(format!("a bias is from -{BIAS_MAX} to {BIAS_MAX}, not {bias}"));
        }
        adjust.bias.insert(id, *bias);
    }
    if adjust.bias.len() > BIASES_MAX {
        return refuse(format!("at most {BIASES_MAX} tokens have a bias"));
    }
    Ok(adjust)
}

/// What requests of chats and of completions say alike, in fields of the same names. They are not one
/// struct within both, since serde then could not say which field is wrong.
macro_rules! alike {
    ($request:expr) => {
        $crate::gateway::options::Options {
            n: $request.n,
            temperature: $request.temperature,
            top_p: $request.top_p,
            top_k: $request.top_k,
            min_p: $request.min_p,
            repetition_penalty: $request.repetition_penalty,
            adjust: $crate::gateway::options::adjust(
                $request.presence_penalty,
                $request.frequency_penalty,
                $request.logit_bias.as_ref(),
            )?,
            seed: $request.seed,
            stop: $request.stop.clone(),
            stream: $request.stream.unwrap_or(false),
            stream_options: $request.stream_options,
            ..$crate::gateway::options::Options::default()
        }
    };
}
pub(super) use alike;

/// What a request says of its answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    /// Whether the answer goes on with a text, and begins none.
    pub(super) continues: bool,
    pub(super) n: Option<u32>,
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<usize>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) adjust: Adjust,
    pub(super) grammar: Option<Grammar>,
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<Texts>,
    pub(super) top_logprobs: Option<usize>,
    pub(super) stream: bool,
    pub(super) stream_options: Option<StreamOptions>,
}

impl Options {
    /// How many answers.
    pub(super) fn answers(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Whether a stream ends with what it cost.
    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    /// # Errors
    /// Where a value is out of its range, two contradict each other, or more than so many texts end it.
    pub(super) fn check(&self, stops_max: usize) -> Result<(), ApiError> {
        let between = |name: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(value) if !(low..=high).contains(&value) => {
                let message = format!("{name} is {value}; it is from {low} to {high}");
                Err(ApiError::invalid(name, message))
            }
            _ => Ok(()),
        };
        between("temperature", self.temperature, 0.0, 2.0)?;
        between("top_p", self.top_p, 0.0, 1.0)?;
        between("min_p", self.min_p, 0.0, 1.0)?;
        between("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?;
        between("presence_penalty", Some(self.adjust.presence), -2.0, 2.0)?;
        between("frequency_penalty", Some(self.adjust.frequency), -2.0, 2.0)?;
        if self.top_p == Some(0.0) {
            return Err(ApiError::invalid("top_p", "top_p is 0; it is above 0"));
        }
        if self.n.is_some_and(|n| !(1..=ANSWERS_MAX).contains(&n)) {
            return Err(ApiError::invalid("n", format!("n is from 1 to {ANSWERS_MAX}")));
        }
        if self.max_tokens == Some(0) {
            return Err(ApiError::invalid("max_tokens", "max_tokens is 0; it is at least 1"));
        }
        if self.top_logprobs.is_some_and(|count| count > TOP_LOGPROBS_MAX) {
            let message = format!("at most {TOP_LOGPROBS_MAX} logprobs are reported for a token");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        if self.stream_options.is_some() && !self.stream {
            let message = "stream_options are for requests with stream: true";
            return Err(ApiError::invalid("stream_options", message));
        }
        let stops = self.stop.clone().map_or_else(Vec::new, Texts::into_vec);
        if stops.len() > stops_max || stops.iter().any(String::is_empty) {
            let message = format!("stop has at most {stops_max} texts, none of them empty");
            return Err(ApiError::invalid("stop", message));
        }
        Ok(())
    }

    /// The answers to one prompt, each with a seed of its own.
    ///
    /// # Errors
    /// Where the prompt leaves no room, or the system has no randomness.
    pub(super) fn requests(
        &self,
        gateway: &Gateway,
        prompt: &[u32],
    ) -> Result<Vec<Generate>, ApiError> {
        let context = gateway.context();
        let room = context.saturating_sub(prompt.len());
        if room == 0 {
            let tokens = prompt.len();
            return Err(umbel_client::GenerateError::PromptTooLong { tokens, context }.into());
        }
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let max_tokens = self.max_tokens.unwrap_or(TOKENS_DEFAULT).min(room);
        let seed = match self.seed {
            Some(seed) => seed.cast_unsigned(),
            None => getrandom::u64().map_err(|error| ApiError::unavailable(&error.into()))?,
        };
        let plain = Sampling::greedy();
        let request = |answer: u32| Generate {
            continues: self.continues,
            max_tokens,
            sampling: Sampling {
                // What OpenAI draws with unless it is told otherwise.
                temperature: self.temperature.unwrap_or(1.0),
                top_p: self.top_p.unwrap_or(plain.top_p),
                top_k: self.top_k.unwrap_or(plain.top_k),
                min_p: self.min_p.unwrap_or(plain.min_p),
                repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
                seed: seed.wrapping_add(answer.into()),
            },
            adjust: self.adjust.clone(),
            grammar: self.grammar.clone(),
            stop: self.stop.clone().map_or_else(Vec::new, Texts::into_vec),
            top_logprobs: self.top_logprobs,
            speculate: gateway.speculate(),
            ..Generate::new(prompt.to_vec())
        };
        Ok((0..self.answers()).map(request).collect())
    }
}
