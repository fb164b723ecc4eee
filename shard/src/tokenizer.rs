//! Where a model's tokenizer is, and the texts that belong to it: chat template, special tokens.
//!
//! Nothing here tokenizes: the client builds the tokenizer from these.

use std::path::PathBuf;

mod folder;
mod gguf;

pub use folder::OpenTokenizerError;
pub(crate) use folder::read_folder;
pub(crate) use gguf::read_gguf;

/// What a model's files say of text.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextParts {
    pub(crate) tokenizer: Option<TokenizerSource>,
    pub(crate) chat_template: Option<String>,
    /// The template for a chat in which the model may ask for functions, where that is another one.
    pub(crate) tool_template: Option<String>,
    pub(crate) special_tokens: SpecialTokens,
}

/// A tokenizer as the model's files have it.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// The files of a Hugging Face checkpoint.
    HuggingFace {
        /// `tokenizer.json`, which the `tokenizers` crate reads.
        tokenizer_json: PathBuf,
        /// `tokenizer_config.json`, where there is one.
        config_json: Option<PathBuf>,
    },
    /// The vocabulary inside a GGUF file.
    Gguf(Box<GgufTokenizer>),
}

/// A tokenizer as the metadata of a GGUF file has it under `tokenizer.ggml.*`, unchanged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufTokenizer {
    /// The kind: `gpt2` is byte-level byte pair encoding, `llama` is SentencePiece.
    pub model: String,
    /// How text is split before byte pair encoding: `smollm`, `llama-bpe`, `qwen2`.
    pub pre: Option<String>,
    /// The model's `general.architecture`: `llama`, `qwen2`, `qwen3`.
    pub architecture: Option<String>,
    /// The text of each token, by id.
    pub tokens: Vec<String>,
    /// The score of each token; empty for byte pair encoding.
    pub scores: Vec<f32>,
    /// What each token is: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// The merges of byte pair encoding, two texts with a space between them, best first.
    pub merges: Vec<String>,
    /// The token that begins a text.
    pub bos_id: Option<u32>,
    /// The token that ends a text.
    pub eos_id: Option<u32>,
    /// The token for what no token covers.
    pub unknown_id: Option<u32>,
    /// The token that fills up.
    pub padding_id: Option<u32>,
    /// Whether a text begins with [`Self::bos_id`]; where it is not said, SentencePiece does.
    pub add_bos: Option<bool>,
    /// Whether a text ends with [`Self::eos_id`]; where it is not said, it does not.
    pub add_eos: Option<bool>,
    /// Whether SentencePiece puts a space before a text; where it is not said, it does.
    pub add_space_prefix: Option<bool>,
}

/// The texts of the special tokens, which chat templates use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    /// Begins a text: `bos_token`.
    pub bos: Option<String>,
    /// Ends a text: `eos_token`.
    pub eos: Option<String>,
    /// Stands for what no token covers: `unk_token`.
    pub unknown: Option<String>,
    /// Fills up: `pad_token`.
    pub padding: Option<String>,
}
