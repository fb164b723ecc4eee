//! The tokenizer of a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`,
//! `chat_template.jinja`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{SpecialTokens, TextParts, TokenizerSource};
use crate::store::{ReadFileError, read_text};

/// Largest `tokenizer_config.json`; those that list a thousand added tokens have 200 kB.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// Largest chat template; the longest known have 20 kB.
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;

/// The tokenizer's files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenTokenizerError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// `tokenizer_config.json` is not the JSON that it should be.
    #[error("{} is not the JSON that a tokenizer has", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads what there is: a checkpoint without a tokenizer is no error.
pub(crate) fn read_folder(folder: &Path) -> Result<TextParts, OpenTokenizerError> {
    let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    let config_json = file("tokenizer_config.json");
    let config = match &config_json {
        Some(path) => read_config(path)?,
        None => WireConfig::default(),
    };
    // A template in a file of its own wins over one in the configuration, as in transformers.
    let (chat_template, tool_template) = match file("chat_template.jinja") {
        Some(path) => (Some(read_text(&path, TEMPLATE_BYTES_MAX)?), None),
        None => config.chat_template.map(WireTemplate::into_parts).unwrap_or_default(),
    };
    let text = |token: Option<WireToken>| token.map(WireToken::into_text);
    let special_tokens = SpecialTokens {
        bos: text(config.bos_token),
        eos: text(config.eos_token),
        unknown: text(config.unk_token),
        padding: text(config.pad_token),
    };
    let tokenizer = file("tokenizer.json")
        .map(|tokenizer_json| TokenizerSource::HuggingFace { tokenizer_json, config_json });
    Ok(TextParts { tokenizer, chat_template, tool_template, special_tokens })
}

fn read_config(path: &Path) -> Result<WireConfig, OpenTokenizerError> {
    let text = read_text(path, CONFIG_BYTES_MAX)?;
    serde_json::from_str(&text)
        .map_err(|source| OpenTokenizerError::Json { path: path.to_owned(), source })
}

#[derive(Deserialize, Default)]
struct WireConfig {
    chat_template: Option<WireTemplate>,
    bos_token: Option<WireToken>,
    eos_token: Option<WireToken>,
    unk_token: Option<WireToken>,
    pad_token: Option<WireToken>,
}

/// A template, or several with names.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireTemplate {
    One(String),
    Named(Vec<WireNamedTemplate>),
}

#[derive(Deserialize)]
struct WireNamedTemplate {
    name: String,
    template: String,
}

impl WireTemplate {
    /// The template for a plain chat, and the one for a chat with functions.
    fn into_parts(self) -> (Option<String>, Option<String>) {
        match self {
            Self::One(template) => (Some(template), None),
            Self::Named(named) => {
                let find = |name: &str| named.iter().find(|one| one.name == name);
                let template = |one: &WireNamedTemplate| one.template.clone();
                let default = find("default").or(named.first()).map(template);
                (default, find("tool_use").map(template))
            }
        }
    }
}

/// A token, as a text or as an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireToken {
    Text(String),
    Object { content: String },
}

impl WireToken {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn templates_and_tokens_are_read_in_all_their_forms() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
            "unk_token": null, "chat_template": [{"name": "tool_use", "template": "T"},
            {"name": "default", "template": "D"}]}"#;
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let read = read_folder(folder.path()).unwrap();
        assert_eq!(read.chat_template.as_deref(), Some("D"));
        assert_eq!(read.tool_template.as_deref(), Some("T"));
        assert_eq!(read.special_tokens.bos.as_deref(), Some("<s>"));
        assert_eq!(read.special_tokens.eos.as_deref(), Some("</s>"));
        assert_eq!(read.special_tokens.unknown, None);
        assert!(read.tokenizer.is_none(), "there is no tokenizer.json");

        fs::write(folder.path().join("chat_template.jinja"), "J").unwrap();
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let read = read_folder(folder.path()).unwrap();
        assert_eq!(read.chat_template.as_deref(), Some("J"));
        assert_eq!(read.tool_template, None, "the file stands for all that is said elsewhere");
        assert!(read.tokenizer.is_some());
    }

    #[test]
    fn a_broken_configuration_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
        let error = read_folder(folder.path()).err().unwrap();
        assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
    }
}
