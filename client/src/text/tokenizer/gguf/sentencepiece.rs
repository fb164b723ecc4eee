//! SentencePiece, the kind `llama`: byte pair encoding over characters, with bytes for the others.
//!
//! The file has scores and no merges. They are recovered from the vocabulary as
//! `generate_merges` of transformers does (`convert_slow_tokenizer.py`): every way to cut a token
//! into two tokens is a merge, the best score first.

use std::cmp::Reverse;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use umbel_shard::GgufTokenizer;

use super::super::Parts;
use super::super::decoding::Decoding;
use super::super::error::LoadTokenizerError;

/// What a space is written as.
const SPACE: &str = "▁";

/// Longest token whose merges are recovered, which takes time with the square of its length.
/// SentencePiece itself makes none of more than 16 characters unless asked, and runs of spaces
/// are the longest seen, with 31 characters of 3 bytes.
const TOKEN_BYTES_MAX: usize = 512;

/// A tokenizer of the kind `llama`.
pub(super) fn load(metadata: &GgufTokenizer) -> Result<Parts, LoadTokenizerError> {
    let build = |source| LoadTokenizerError::Build { source };
    let vocabulary = super::vocabulary(metadata);
    let merges = if metadata.merges.is_empty() {
        recovered_merges(metadata, &vocabulary)?
    } else {
        super::listed_merges(metadata, &vocabulary)?
    };
    let mut model =
        BPE::builder().vocab_and_merges(vocabulary, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown(metadata)? {
        model = model.unk_token(unknown);
    }
    let (mut pipeline, special) = super::pipeline(metadata, model.build().map_err(build)?)?;

    let space_prefix = metadata.add_space_prefix.unwrap_or(true);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if space_prefix {
        // Before each stretch of text between special tokens, as llama.cpp does, and as the models
        // of this kind were trained: each turn of a conversation was a text of its own.
        steps.push(Prepend::new(SPACE.to_owned()).into());
    }
    steps.push(Replace::new(" ", SPACE).map_err(build)?.into());
    pipeline.with_normalizer(Some(Sequence::new(steps))).map_err(build)?;

    let around = super::around(metadata, true)?;
    let decoding = Decoding::SentencePiece { strip_space: space_prefix };
    Ok(Parts { pipeline, decoding, special, around })
}

/// The token for characters that neither the vocabulary nor its bytes cover: the first, unless the
/// file names another.
fn unknown(metadata: &GgufTokenizer) -> Result<Option<String>, LoadTokenizerError> {
    let tokens = metadata.tokens.len();
    match metadata.unknown_id {
        Some(id) => match metadata.tokens.get(id as usize) {
            Some(token) => Ok(Some(token.clone())),
            None => Err(LoadTokenizerError::UnknownToken { id, tokens }),
        },
        None => Ok(metadata.tokens.first().cloned()),
    }
}

/// One way to make a token of two.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    score: f32,
}

fn recovered_merges(
    metadata: &GgufTokenizer,
    vocabulary: &Vocab,
) -> Result<Merges, LoadTokenizerError> {
    let (tokens, scores) = (&metadata.tokens, &metadata.scores);
    if tokens.len() != scores.len() {
        return Err(LoadTokenizerError::MissingScores {
            tokens: tokens.len(),
            scores: scores.len(),
        });
    }
    let mut merges = Vec::new();
    for (id, (token, &score)) in tokens.iter().zip(scores).enumerate() {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(LoadTokenizerError::TokenTooLong { id, bytes: token.len() });
        }
        if !vocabulary.contains_key(token) {
            continue;
        }
        let mut ways: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(left, right)| {
                Some((
                    (*vocabulary.get(left)?, *vocabulary.get(right)?),
                    Merge { left, right, score },
                ))
            })
            .collect();
        ways.sort_by_key(|(ids, _)| *ids);
        merges.extend(ways.into_iter().map(|(_, merge)| merge));
    }
    let characters = |text: &str| text.chars().count();
    // The sort is stable, so that equals stay in the order of their tokens.
    merges.sort_by(|a, b| {
        b.score.total_cmp(&a.score).then_with(|| {
            let lengths =
                |merge: &Merge<'_>| Reverse((characters(merge.left), characters(merge.right)));
            lengths(a).cmp(&lengths(b))
        })
    });
    let owned = |merge: Merge<'_>| (merge.left.to_owned(), merge.right.to_owned());
    Ok(merges.into_iter().map(owned).collect())
}
