//! How likely tokens were, in the two forms of OpenAI's interface.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use umbel_client::Token;
use umbel_client::text::tokenizer::Tokenizer;

/// What stands for the logarithm of nothing, which JSON cannot say.
const IMPOSSIBLE: f32 = -9999.0;

/// An entry of `logprobs.content`, where they were asked for; `at_start` of the first token of an answer.
pub(super) fn of_chat(
    tokenizer: Option<&Tokenizer>,
    at_start: bool,
    token: &Token,
) -> Option<Value> {
    let logprobs = token.logprobs.as_ref()?;
    let entry = |id: u32, logprob: f32| {
        let bytes = bytes(tokenizer, at_start, id);
        let text = text(&bytes).unwrap_or_else(|spelled| spelled);
        json!({ "token": text, "logprob": logprob.max(IMPOSSIBLE), "bytes": bytes })
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

    pub(super) fn push(&mut self, tokenizer: Option<&Tokenizer>, token: &Token) {
        let Some(logprobs) = &token.logprobs else {
            return;
        };
        let named = |bytes: &[u8]| text(bytes).unwrap_or_else(|spelled| format!("bytes:{spelled}"));
        let bytes_of = |id: u32| bytes(tokenizer, false, id);
        let bytes = bytes_of(token.id);
        self.text_offset.push(self.characters);
        // Each character is counted where it begins: its other bytes may be of the next token.
        self.characters += bytes.iter().filter(|byte| !is_continuation(**byte)).count();
        self.tokens.push(named(&bytes));
        self.token_logprobs.push(logprobs.chosen.max(IMPOSSIBLE));
        let mut top = Map::new();
        for (id, logprob) in &logprobs.top {
            // Of tokens that are written alike, the likeliest comes first.
            top.entry(named(&bytes_of(*id))).or_insert_with(|| json!(logprob.max(IMPOSSIBLE)));
        }
        self.top_logprobs.push(top.into());
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

/// What a token adds to the text.
fn bytes(tokenizer: Option<&Tokenizer>, at_start: bool, id: u32) -> Vec<u8> {
    let Some(tokenizer) = tokenizer else { return Vec::new() };
    let bytes = if at_start { tokenizer.first_bytes(id) } else { tokenizer.bytes(id) };
    if bytes.is_empty() {
        // Some tokenizers know no bytes of a token, but the text of one alone.
        return tokenizer.decode(&[id]).unwrap_or_default().into_bytes();
    }
    bytes
}

/// These bytes as text; as an error, where they hold a part of a character, with it written as OpenAI's
/// interface does: `\xe2\x80`.
fn text(bytes: &[u8]) -> Result<String, String> {
    if let Ok(text) = str::from_utf8(bytes) {
        return Ok(text.to_owned());
    }
    let mut spelled = String::new();
    for chunk in bytes.utf8_chunks() {
        spelled.push_str(chunk.valid());
        for byte in chunk.invalid() {
            write!(spelled, "\\x{byte:02x}").expect("a string takes all text");
        }
    }
    Err(spelled)
}

/// Whether a byte goes on with a character of UTF-8, and begins none.
const fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

#[cfg(test)]
mod tests {
    use umbel_client::{Logprobs, StepTime};
    use umbel_shard::{GgufTokenizer, TokenizerSource};

    use super::*;

    /// A small vocabulary as Llama 2's, with a token for each byte.
    fn sentencepiece() -> Tokenizer {
        #[derive(serde::Deserialize)]
        struct Vocabulary {
            tokens: Vec<String>,
            scores: Vec<f32>,
            token_types: Vec<i32>,
        }
        let text = include_str!("../../../tests/fixtures/tokenizers/sentencepiece.json");
        let Vocabulary { tokens, scores, token_types } = serde_json::from_str(text).unwrap();
        let metadata = GgufTokenizer {
            model: "llama".to_owned(),
            tokens,
            scores,
            token_types,
            bos_id: Some(1),
            eos_id: Some(2),
            unknown_id: Some(0),
            ..GgufTokenizer::default()
        };
        Tokenizer::load(&TokenizerSource::Gguf(Box::new(metadata))).unwrap()
    }

    /// A token that was drawn, with the likeliest.
    fn token(id: u32, top: &[(u32, f32)]) -> Token {
        let logprobs = Some(Logprobs { chosen: -0.5, top: top.to_vec() });
        let (text, top_logits) = (String::new(), Vec::new());
        Token { id, text, top_logits, logprobs, time: StepTime::default() }
    }

    #[test]
    fn the_bytes_of_all_tokens_are_the_text() {
        let tokenizer = sentencepiece();
        let said = "one 😀 server";
        let ids = tokenizer.encode(said, false).unwrap();
        let entries: Vec<_> = (0..)
            .zip(&ids)
            .map(|(index, &id)| of_chat(Some(&tokenizer), index == 0, &token(id, &[])).unwrap())
            .collect();
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry["bytes"].as_array().unwrap())
            .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
            .collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), said);
        assert!(entries.iter().any(|entry| entry["token"] == "\\xf0"), "{entries:?}");

        // Behind a prompt, with the space before the first word.
        let mut lists = Lists::beginning_at(3);
        ids.iter().for_each(|&id| lists.push(Some(&tokenizer), &token(id, &[])));
        let lists = lists.take();
        let tokens: Vec<_> = lists["tokens"].as_array().unwrap().iter().collect();
        assert!(tokens.iter().any(|token| **token == "bytes:\\x98"), "{tokens:?}");
        let written = format!("... {said}");
        for (token, offset) in tokens.iter().zip(lists["text_offset"].as_array().unwrap()) {
            let token = token.as_str().unwrap();
            let offset = usize::try_from(offset.as_u64().unwrap()).unwrap();
            let behind: String = written.chars().skip(offset).collect();
            assert!(behind.starts_with(token) || token.starts_with("bytes:"), "{token} {behind}");
        }
    }

    #[test]
    fn of_tokens_that_are_written_alike_the_likeliest_counts() {
        let tokenizer = sentencepiece();
        let (a, byte) = (tokenizer.id("s").unwrap(), tokenizer.id("<0x73>").unwrap());
        let (first, last) = (tokenizer.id("<0xF0>").unwrap(), tokenizer.id("<0x98>").unwrap());
        let top = [(a, -0.5), (first, -1.0), (byte, -2.0), (last, -3.0)];
        let mut lists = Lists::default();
        lists.push(Some(&tokenizer), &token(a, &top));
        let expected = json!({ "s": -0.5, "bytes:\\xf0": -1.0, "bytes:\\x98": -3.0 });
        assert_eq!(lists.take()["top_logprobs"][0], expected);
    }
}
