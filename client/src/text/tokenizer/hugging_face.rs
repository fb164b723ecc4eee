//! The tokenizer of a Hugging Face checkpoint.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::decoding::Decoding;
use super::error::LoadTokenizerError;
use super::{Around, Parts};

/// Largest file that is read. The largest known `tokenizer.json`, of a vocabulary of 262,144 with
/// its merges, has 33 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads `tokenizer.json`, and from `tokenizer_config.json` what wins over it.
pub(super) fn load(
    tokenizer_json: &Path,
    config_json: Option<&Path>,
) -> Result<Parts, LoadTokenizerError> {
    let bytes = read(tokenizer_json)?;
    let path = || tokenizer_json.to_owned();
    // The crate indexes by what the file says in places, and then panics.
    let parsed = catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes))
        .map_err(|_| LoadTokenizerError::Malformed { path: path() })?;
    let mut pipeline =
        parsed.map_err(|source| LoadTokenizerError::TokenizerJson { path: path(), source })?;
    // Some checkpoints were saved while they cut and padded texts for training.
    pipeline
        .with_truncation(None)
        .map_err(|source| LoadTokenizerError::TokenizerJson { path: path(), source })?;
    pipeline.with_padding(None);

    let config = config_json.map(read_config).transpose()?.unwrap_or_default();
    let decoding = decoding(&pipeline);
    let around = around(&pipeline, &config);
    let special = pipeline.get_added_tokens_decoder();
    let special = special.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
    Ok(Parts { pipeline, decoding, special, around })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadTokenizerError> {
    let failed = |source| LoadTokenizerError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(LoadTokenizerError::TooLarge { path: path.to_owned(), bytes });
    }
    fs::read(path).map_err(failed)
}

fn read_config(path: &Path) -> Result<WireConfig, LoadTokenizerError> {
    serde_json::from_slice(&read(path)?)
        .map_err(|source| LoadTokenizerError::ConfigJson { path: path.to_owned(), source })
}

/// What of `tokenizer_config.json` changes the ids of a text.
#[derive(Deserialize, Default)]
struct WireConfig {
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    bos_token: Option<WireToken>,
    eos_token: Option<WireToken>,
}

/// A token, as a text or as an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireToken {
    Text(String),
    Object { content: String },
}

/// As transformers 5 has it: where the configuration says anything of the tokens around a text, it
/// replaces what `tokenizer.json` says.
fn around(pipeline: &tokenizers::Tokenizer, config: &WireConfig) -> Around {
    if config.add_bos_token.is_none() && config.add_eos_token.is_none() {
        return Around::Pipeline;
    }
    let id = |wanted: Option<bool>, token: &Option<WireToken>| {
        let (WireToken::Text(text) | WireToken::Object { content: text }) = token.as_ref()?;
        if wanted == Some(true) { pipeline.token_to_id(text) } else { None }
    };
    Around::Tokens {
        first: id(config.add_bos_token, &config.bos_token),
        last: id(config.add_eos_token, &config.eos_token),
        // As `apply_chat_template` of transformers has it.
        first_of_chats: false,
    }
}

/// Recognises the two decoders that nearly every model has, as they are written in the file.
fn decoding(pipeline: &tokenizers::Tokenizer) -> Decoding {
    let decoder = pipeline.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok());
    let Some(decoder) = decoder else {
        return Decoding::Pipeline;
    };
    if decoder["type"] == "ByteLevel" {
        return Decoding::ByteLevel;
    }
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let bytes = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    match decoder["decoders"].as_array().map(Vec::as_slice) {
        Some([first, second, third, rest @ ..])
            if *first == replace && *second == bytes && *third == fuse =>
        {
            match rest {
                [] => Decoding::SentencePiece { strip_space: false },
                [only] if *only == strip => Decoding::SentencePiece { strip_space: true },
                _ => Decoding::Pipeline,
            }
        }
        Some(_) | None => Decoding::Pipeline,
    }
}
