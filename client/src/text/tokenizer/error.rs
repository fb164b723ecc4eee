//! What can go wrong with a tokenizer.

use std::path::PathBuf;

/// An error of the `tokenizers` crate.
type PipelineError = Box<dyn std::error::Error + Send + Sync>;

/// A tokenizer that cannot be had from a model's files.
#[derive(Debug, thiserror::Error)]
pub enum LoadTokenizerError {
    /// A file could not be read.
    #[error("{} could not be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is larger than any tokenizer.
    #[error("{} has {bytes} bytes, more than any tokenizer: is it another file?", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// `tokenizer.json` describes no tokenizer.
    #[error("{} describes no tokenizer that the `tokenizers` crate knows", .path.display())]
    TokenizerJson {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PipelineError,
    },
    /// `tokenizer.json` is so malformed that the parser gave up.
    #[error("{} is malformed: fetch it again", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// `tokenizer_config.json` is not what it should be.
    #[error("{} is not the JSON that a tokenizer has", .path.display())]
    ConfigJson {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The GGUF file's tokenizer is of a kind that is not supported.
    #[error("tokenizers of the kind `{kind}` are not supported: `gpt2` and `llama` are")]
    UnknownKind {
        /// `tokenizer.ggml.model`.
        kind: String,
    },
    /// The GGUF file's text is split in a way that is not supported.
    #[error("the pre-tokenizer `{name}` is not supported, and another would give wrong tokens")]
    UnknownPreTokenizer {
        /// `tokenizer.ggml.pre`.
        name: String,
    },
    /// A merge makes no token of the vocabulary out of two.
    #[error("merge {index} of the tokenizer does not join two tokens into a third")]
    InvalidMerge {
        /// Its place in `tokenizer.ggml.merges`.
        index: usize,
    },
    /// As many scores as tokens are needed.
    #[error("the tokenizer has {tokens} tokens but {scores} scores")]
    MissingScores {
        /// How many tokens there are.
        tokens: usize,
        /// How many scores there are.
        scores: usize,
    },
    /// A token is longer than any word.
    #[error("token {id} has {bytes} bytes: the tokenizer is malformed")]
    TokenTooLong {
        /// Its id.
        id: usize,
        /// Its length.
        bytes: usize,
    },
    /// A special token is none of the vocabulary.
    #[error("the tokenizer's special token {id} does not exist: there are {tokens} tokens")]
    UnknownToken {
        /// Its id.
        id: u32,
        /// How many tokens there are.
        tokens: usize,
    },
    /// The vocabulary could not be put together.
    #[error("the tokenizer could not be built from its vocabulary")]
    Build {
        /// Why.
        #[source]
        source: PipelineError,
    },
}

/// A text that the model's tokenizer cannot take.
#[derive(Debug, thiserror::Error)]
#[error("the model's tokenizer cannot take this text")]
pub struct EncodeError {
    /// Why.
    #[source]
    pub(super) source: PipelineError,
}

/// Token ids that the model's tokenizer cannot write out.
#[derive(Debug, thiserror::Error)]
#[error("the model's tokenizer cannot write out these tokens")]
pub struct DecodeError {
    /// Why.
    #[source]
    pub(super) source: PipelineError,
}
