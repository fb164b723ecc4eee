//! The tokenizer inside a GGUF file, put together as llama.cpp reads it.
//!
//! The format: `tokenizer.ggml.*` in <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//! What the keys mean where they are silent is taken from `src/llama-vocab.cpp` of
//! <https://github.com/ggml-org/llama.cpp> and from the `tokenizer.json` of the models themselves.

pub(super) mod alphabet;
mod byte_level;
mod sentencepiece;

use std::collections::BTreeSet;
use std::iter;

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use umbel_shard::GgufTokenizer;
use umbel_shard::config::END_TEXTS;

use super::error::LoadTokenizerError;
use super::{Around, Parts};

/// Token types, as `tokenizer.ggml.token_type` has them.
const TYPE_NORMAL: i32 = 1;
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_USER_DEFINED: i32 = 4;
const TYPE_UNUSED: i32 = 5;

/// The tokenizer that the metadata describes.
pub(super) fn load(metadata: &GgufTokenizer) -> Result<Parts, LoadTokenizerError> {
    match metadata.model.as_str() {
        "gpt2" => byte_level::load(metadata),
        "llama" => sentencepiece::load(metadata),
        kind => Err(LoadTokenizerError::UnknownKind { kind: kind.to_owned() }),
    }
}

/// Each token with its id and type. One that ends an answer is known by its spelling and is a sign, as
/// llama.cpp has it: some files call it text.
fn typed_tokens(metadata: &GgufTokenizer) -> impl Iterator<Item = (u32, &str, i32)> {
    let kinds = metadata.token_types.iter().copied().chain(iter::repeat(TYPE_NORMAL));
    (0..).zip(&metadata.tokens).zip(kinds).map(|((id, token), kind)| {
        let ends = END_TEXTS.contains(&token.as_str());
        (id, token.as_str(), if ends { TYPE_CONTROL } else { kind })
    })
}

/// Each token's id, but for those with which a converter fills up to the rows of the embedding: they are
/// no text, and models of one family have different numbers of them.
fn vocabulary(metadata: &GgufTokenizer) -> Vocab {
    typed_tokens(metadata)
        .filter(|&(_, _, kind)| kind != TYPE_UNUSED)
        .map(|(id, token, _)| (token.to_owned(), id))
        .collect()
}

/// The merges that the file lists.
///
/// Each is checked, since the `tokenizers` crate would panic on some that are none.
fn listed_merges(
    metadata: &GgufTokenizer,
    vocabulary: &Vocab,
) -> Result<Merges, LoadTokenizerError> {
    let kinds = typed_tokens(metadata);
    let left_out: BTreeSet<_> =
        kinds.filter(|&(_, _, kind)| kind == TYPE_UNUSED).map(|(_, token, _)| token).collect();
    let parse = |(index, merge): (usize, &String)| {
        // The space that separates is not the first character: that may be a token itself.
        let space = merge.char_indices().skip(1).find(|&(_, character)| character == ' ');
        let (left, right) = space
            .and_then(|(at, _)| Some((merge.get(..at)?, merge.get(at + 1..)?)))
            .filter(|&(left, right)| {
                let known =
                    |token: &str| vocabulary.contains_key(token) || left_out.contains(token);
                known(left) && known(right) && known(&[left, right].concat())
            })
            .ok_or(LoadTokenizerError::InvalidMerge { index })?;
        Ok((left.to_owned(), right.to_owned()))
    };
    // What is no token is made of nothing, and nothing is made of it.
    let is_of_tokens = |(left, right): &(String, String)| {
        let of = [left.clone(), right.clone(), [left.as_str(), right].concat()];
        of.iter().all(|token| vocabulary.contains_key(token))
    };
    let merges = metadata.merges.iter().enumerate().map(parse);
    merges.filter(|merge| merge.as_ref().ok().is_none_or(is_of_tokens)).collect()
}

/// A pipeline of nothing but the model, with the tokens that are matched in a text as they stand.
fn pipeline(
    metadata: &GgufTokenizer,
    model: BPE,
) -> Result<(tokenizers::Tokenizer, BTreeSet<u32>), LoadTokenizerError> {
    let mut pipeline = tokenizers::Tokenizer::new(model);
    let mut special = BTreeSet::new();
    let mut added = Vec::new();
    for (id, token, kind) in typed_tokens(metadata) {
        let is_special = matches!(kind, TYPE_UNKNOWN | TYPE_CONTROL);
        if is_special {
            special.insert(id);
        }
        if is_special || kind == TYPE_USER_DEFINED {
            added.push(AddedToken::from(token, is_special).normalized(false));
        }
    }
    pipeline.add_tokens(added).map_err(|source| LoadTokenizerError::Build { source })?;
    Ok((pipeline, special))
}

/// What the file wants around a text; `bos_default` where it does not say whether it begins with
/// the begin-of-text token.
fn around(metadata: &GgufTokenizer, bos_default: bool) -> Result<Around, LoadTokenizerError> {
    let tokens = metadata.tokens.len();
    let checked = |wanted: bool, id: Option<u32>| match id {
        Some(id) if wanted && id as usize >= tokens => {
            Err(LoadTokenizerError::UnknownToken { id, tokens })
        }
        Some(id) if wanted => Ok(Some(id)),
        Some(_) | None => Ok(None),
    };
    Ok(Around::Tokens {
        first: checked(metadata.add_bos.unwrap_or(bos_default), metadata.bos_id)?,
        last: checked(metadata.add_eos.unwrap_or(false), metadata.eos_id)?,
        first_of_chats: true,
    })
}
