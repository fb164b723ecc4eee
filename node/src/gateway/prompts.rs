//! Texts to go on with or to read, as text or as token ids.

use std::sync::Arc;

use serde::Deserialize;

use super::error::ApiError;
use super::{Gateway, Turn};

/// One prompt or several, as text or as token ids.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub(super) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

impl Prompts {
    pub(super) fn into_vec(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::Ids(ids) => vec![Prompt::Ids(ids)],
            Self::Lists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
        }
    }
}

/// One of them.
#[derive(Debug, Clone)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Prompt {
    /// Its token ids and its text.
    pub(super) async fn encode(
        self,
        gateway: &Arc<Gateway>,
        turn: Turn,
    ) -> Result<(Vec<u32>, String), ApiError> {
        let work = move |gateway: &Gateway| match self {
            Self::Text(text) => Ok((gateway.encode_prompt(&text)?, text)),
            Self::Ids(ids) => {
                let text = gateway.decode(&ids)?;
                Ok((ids, text))
            }
        };
        gateway.prepare(turn, work).await
    }
}
