//! How likely tokens were, in the two forms of OpenAI's interface.

use serde_json::{Value, json};
use umbel_client::Token;

use super::Gateway;

/// What stands for the logarithm of nothing, which JSON cannot say.
const IMPOSSIBLE: f32 = -9999.0;

/// An entry of `logprobs.content`, where they were asked for.
pub(super) fn of_chat(gateway: &Gateway, token: &Token) -> Option<Value> {
    let logprobs = token.logprobs.as_ref()?;
    let entry = |id: u32, logprob: f32| {
        let text = gateway.token_text(id);
        json!({ "token": text, "logprob": logprob.max(IMPOSSIBLE), "bytes": text.as_bytes() })
    };
    let mut chosen = entry(token.id, logprobs.chosen);
    chosen["top_logprobs"] =
        logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
    Some(chosen)
}

/// The lists of `logprobs` of a completion, as they grow.
#[derive(Debug, Default)]
pub(super) struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    characters: usize,
}

impl Lists {
    /// Of an answer whose text begins so many characters into what is sent.
    pub(super) fn beginning_at(characters: usize) -> Self {
        Self { characters, ..Self::default() }
    }

    pub(super) fn push(&mut self, gateway: &Gateway, token: &Token) {
        let Some(logprobs) = &token.logprobs else {
            return;
        };
        let text = gateway.token_text(token.id);
        self.text_offset.push(self.characters);
        self.characters += text.chars().count();
        self.tokens.push(text);
        self.token_logprobs.push(logprobs.chosen.max(IMPOSSIBLE));
        let named =
            |(id, logprob): &(u32, f32)| (gateway.token_text(*id), json!(logprob.max(IMPOSSIBLE)));
        self.top_logprobs.push(Value::Object(logprobs.top.iter().map(named).collect()));
    }

    /// What has been pushed since the last time; nothing where nothing was asked for.
    pub(super) fn take(&mut self) -> Value {
        let Self { characters, .. } = *self;
        let Self { tokens, token_logprobs, top_logprobs, text_offset, .. } =
            std::mem::replace(self, Self::beginning_at(characters));
        if tokens.is_empty() {
            return Value::Null;
        }
        json!({
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": text_offset,
        })
    }
}
