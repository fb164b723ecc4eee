//! The tokenizer inside a GGUF file.

use std::collections::BTreeMap;

use super::{GgufTokenizer, SpecialTokens, TextParts, TokenizerSource};
use crate::gguf::{Array, Value};

/// The tokenizer, the chat templates and the special tokens that the metadata has.
pub(crate) fn read_gguf(metadata: &BTreeMap<String, Value>) -> TextParts {
    let template = |key: &str| metadata.get(key).and_then(Value::as_text).map(str::to_owned);
    let templates = TextParts {
        chat_template: template("tokenizer.chat_template"),
        tool_template: template("tokenizer.chat_template.tool_use"),
        ..TextParts::default()
    };
    let Some(tokenizer) = read_tokenizer(metadata) else {
        return templates;
    };
    let text = |id: Option<u32>| tokenizer.tokens.get(usize::try_from(id?).ok()?).cloned();
    let special_tokens = SpecialTokens {
        bos: text(tokenizer.bos_id),
        eos: text(tokenizer.eos_id),
        unknown: text(tokenizer.unknown_id),
        padding: text(tokenizer.padding_id),
    };
    let tokenizer = Some(TokenizerSource::Gguf(Box::new(tokenizer)));
    TextParts { tokenizer, special_tokens, ..templates }
}

/// `None` where the file has no tokenizer, as tiny checkpoints have none.
fn read_tokenizer(metadata: &BTreeMap<String, Value>) -> Option<GgufTokenizer> {
    let model = metadata.get("tokenizer.ggml.model")?.as_text()?.to_owned();
    let text = |key: &str| metadata.get(key).and_then(Value::as_text).map(str::to_owned);
    let get = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}"));
    let id = |name: &str| u32::try_from(get(name)?.as_unsigned()?).ok();
    let flag = |name: &str| get(name)?.as_flag();
    let texts = |name: &str| {
        let texts = get(name)?.as_texts()?;
        Some(texts.iter().map(str::to_owned).collect::<Vec<_>>())
    };
    Some(GgufTokenizer {
        model,
        pre: text("tokenizer.ggml.pre"),
        architecture: text("general.architecture"),
        tokens: texts("tokens")?,
        scores: scores(get("scores")),
        token_types: token_types(get("token_type")),
        merges: texts("merges").unwrap_or_default(),
        bos_id: id("bos_token_id"),
        eos_id: id("eos_token_id"),
        unknown_id: id("unknown_token_id"),
        padding_id: id("padding_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
    })
}

#[allow(clippy::cast_possible_truncation, reason = "the file has them as binary32")]
fn scores(value: Option<&Value>) -> Vec<f32> {
    match value {
        Some(Value::Array(Array::Floats(scores))) => scores.iter().map(|&s| s as f32).collect(),
        Some(_) | None => Vec::new(),
    }
}

fn token_types(value: Option<&Value>) -> Vec<i32> {
    let numbers = value.and_then(Value::as_numbers).unwrap_or_default();
    numbers.into_iter().map(|number| i32::try_from(number).unwrap_or(0)).collect()
}
