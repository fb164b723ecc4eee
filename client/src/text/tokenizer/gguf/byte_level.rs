//! Byte-level byte pair encoding, the kind `gpt2`.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tracing::warn;
use umbel_shard::GgufTokenizer;

use super::super::decoding::Decoding;
use super::super::error::LoadTokenizerError;
use super::super::{Around, Parts};

/// How Llama 3 splits text into words: `pre_tokenizer` of its `tokenizer.json`.
const LLAMA3_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// How Qwen 2 and 3 split text: as Llama 3, but each digit is a word of its own.
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// How Mistral's tokenizer Tekken splits text: capital letters begin a word.
const TEKKEN_WORDS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// What happens to a text before pairs are merged.
struct Before {
    words: Words,
    /// Whether characters are composed first (Unicode's form C), which a GGUF file does not say.
    compose: bool,
    /// Whether a word that is a token stays whole, whatever the merges would make of it.
    whole_words: bool,
    /// Whether a text begins with the begin-of-text token where the file does not say.
    add_bos: bool,
}

/// How a text is split into words.
enum Words {
    /// As GPT-2 does.
    Gpt2,
    /// As GPT-2 does, but each digit is a word of its own.
    Gpt2Digits,
    /// By a regular expression.
    Pattern(&'static str),
}

impl Before {
    const PLAIN: Self =
        Self { words: Words::Gpt2, compose: false, whole_words: false, add_bos: false };

    /// What a file says of it. In files from before there was a word for it the model tells, where its
    /// family splits text in one way; llama.cpp takes a way of its own there, and warns.
    fn of(metadata: &GgufTokenizer) -> Result<Self, LoadTokenizerError> {
        match metadata.pre.as_deref().or_else(|| implied(metadata)) {
            Some(name) => Self::named(name),
            None => {
                warn!(
                    architecture = metadata.architecture,
                    "the file does not say how its text is split into words (tokenizer.ggml.pre); taking \
                     GPT-2's way, which is wrong for most models: a newer file of this model says it"
                );
                Ok(Self::PLAIN)
            }
        }
    }

    /// What a name in `tokenizer.ggml.pre` means.
    fn named(name: &str) -> Result<Self, LoadTokenizerError> {
        Ok(match name {
            "default" | "gpt-2" => Self::PLAIN,
            "smollm" | "starcoder" | "refact" | "command-r" => {
                Self { words: Words::Gpt2Digits, ..Self::PLAIN }
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" => Self {
                words: Words::Pattern(LLAMA3_WORDS),
                whole_words: true,
                add_bos: true,
                ..Self::PLAIN
            },
            "qwen2" => Self { words: Words::Pattern(QWEN2_WORDS), compose: true, ..Self::PLAIN },
            "deepseek-r1-qwen" => Self { words: Words::Pattern(QWEN2_WORDS), ..Self::PLAIN },
            "tekken" => Self {
                words: Words::Pattern(TEKKEN_WORDS),
                whole_words: true,
                add_bos: true,
                ..Self::PLAIN
            },
            name => return Err(LoadTokenizerError::UnknownPreTokenizer { name: name.to_owned() }),
        })
    }
}

/// The name that a file would have if it were newer. Of those of the architecture `llama` only Llama 3's
/// has this token.
fn implied(metadata: &GgufTokenizer) -> Option<&'static str> {
    match metadata.architecture.as_deref()? {
        "qwen2" | "qwen3" | "qwen3moe" => Some("qwen2"),
        "llama" if metadata.tokens.iter().any(|token| token == "<|begin_of_text|>") => {
            Some("llama-bpe")
        }
        _ => None,
    }
}

/// A tokenizer of the kind `gpt2`.
pub(super) fn load(metadata: &GgufTokenizer) -> Result<Parts, LoadTokenizerError> {
    let before = Before::of(metadata)?;
    let build = |source| LoadTokenizerError::Build { source };
    let vocabulary = super::vocabulary(metadata);
    let merges = super::listed_merges(metadata, &vocabulary)?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(before.whole_words)
        .build()
        .map_err(build)?;
    let (mut pipeline, special) = super::pipeline(metadata, model)?;
    if before.compose {
        pipeline.with_normalizer(Some(NFC)).map_err(build)?;
    }
    pipeline.with_pre_tokenizer(Some(words(&before.words).map_err(build)?));
    let around: Around = super::around(metadata, before.add_bos)?;
    Ok(Parts { pipeline, decoding: Decoding::ByteLevel, special, around })
}

/// Splits into words, then writes each byte as a character.
fn words(words: &Words) -> tokenizers::Result<Sequence> {
    let bytes = |use_regex| ByteLevel::new(false, true, use_regex).into();
    let steps: Vec<PreTokenizerWrapper> = match words {
        Words::Gpt2 => vec![bytes(true)],
        Words::Gpt2Digits => vec![Digits::new(true).into(), bytes(true)],
        Words::Pattern(pattern) => {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            vec![split.into(), bytes(false)]
        }
    };
    Ok(Sequence::new(steps))
}
