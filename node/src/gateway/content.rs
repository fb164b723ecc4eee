//! What a turn of a conversation says: a text, or parts that are texts.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// What is said.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string, or a list of parts of type \"text\"")]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A piece of what is said.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Part {
    // The interface of responses calls the parts of a question and of an answer by names of their own.
    #[serde(alias = "input_text", alias = "output_text")]
    Text {
        text: String,
        /// Where others would keep what they have computed; servers here keep it anyway.
        #[serde(rename = "cache_control")]
        _cache_control: Option<IgnoredAny>,
        #[serde(rename = "annotations")]
        _annotations: Option<IgnoredAny>,
        #[serde(rename = "logprobs")]
        _logprobs: Option<IgnoredAny>,
    },
}

impl Content {
    /// All of it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => {
                parts.iter().map(|Part::Text { text, .. }| text.as_str()).collect()
            }
        }
    }
}
