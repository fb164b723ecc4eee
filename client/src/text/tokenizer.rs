//! Text to token ids and back.
//!
//! A tokenizer comes from a `tokenizer.json` or from the metadata of a GGUF file; both become one
//! pipeline of the `tokenizers` crate for the way from text to ids. The way back is our own, byte
//! by byte, so that a text may be shown while it is generated.

mod decoding;
mod error;
mod gguf;
mod hugging_face;
mod stream;

use std::collections::BTreeSet;
use std::sync::Arc;

use umbel_shard::TokenizerSource;

use decoding::Decoding;

pub use error::{DecodeError, EncodeError, LoadTokenizerError};
pub use stream::TextStream;

/// The tokenizer of one model. A clone shares it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Parts>);

struct Parts {
    pipeline: tokenizers::Tokenizer,
    decoding: Decoding,
    special: BTreeSet<u32>,
    around: Around,
}

/// What a model wants around a prompt.
enum Around {
    /// What the pipeline puts there.
    Pipeline,
    /// These tokens.
    Tokens {
        first: Option<u32>,
        last: Option<u32>,
        /// Whether a conversation begins with the first one too.
        first_of_chats: bool,
    },
}

/// What stands before a text in the middle of another where nothing else will do: no tokenizer of these
/// models joins it with a letter.
const ANOTHER_LINE: &str = "\n";

impl Tokenizer {
    /// The tokenizer that a model's files describe.
    ///
    /// # Errors
    /// [`LoadTokenizerError`] where the files are malformed or of a kind that is not supported.
    pub fn load(source: &TokenizerSource) -> Result<Self, LoadTokenizerError> {
        let parts = match source {
            TokenizerSource::HuggingFace { tokenizer_json, config_json } => {
                hugging_face::load(tokenizer_json, config_json.as_deref())?
            }
            TokenizerSource::Gguf(metadata) => gguf::load(metadata)?,
        };
        Ok(Self(Arc::new(parts)))
    }

    /// The token ids of `text`. Special tokens that are written out in it, such as `<|im_end|>`,
    /// become their ids.
    ///
    /// With `add_special` come those that the model wants around a text, as `<s>` before it; a chat
    /// template writes them itself.
    ///
    /// # Errors
    /// [`EncodeError`] where the tokenizer of the model's files fails on this text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, EncodeError> {
        let with_pipeline = add_special && matches!(self.0.around, Around::Pipeline);
        let encoding = self.0.pipeline.encode_fast(text, with_pipeline);
        let mut ids = encoding.map_err(|source| EncodeError { source })?.get_ids().to_vec();
        if let (true, Around::Tokens { first, last, .. }) = (add_special, &self.0.around) {
            ids.splice(0..0, *first);
            ids.extend(*last);
        }
        Ok(ids)
    }

    /// The token ids of a conversation as a chat template has written it.
    ///
    /// It writes the special tokens itself. The one that begins a text may be missing there in GGUF files
    /// that ask for it: it comes first, and once, as llama.cpp has it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_chat(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = self.encode(text, false)?;
        if let Around::Tokens { first: Some(first), first_of_chats: true, .. } = self.0.around
            && ids.first() != Some(&first)
        {
            ids.insert(0, first);
        }
        Ok(ids)
    }

    /// The token ids of `text` behind those of `before`: the ones that it has where the two are one text,
    /// unless a token reaches across. A space that the tokenizer puts before whatever stands alone is not
    /// among them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_behind(&self, before: &str, text: &str) -> Result<Vec<u32>, EncodeError> {
        for before in [before, ANOTHER_LINE] {
            let begun = self.encode(before, false)?;
            let mut whole = self.encode(&[before, text].concat(), false)?;
            if whole.starts_with(&begun) {
                return Ok(whole.split_off(begun.len()));
            }
        }
        self.encode(text, false)
    }

    /// The token ids of a text that the model is to continue, with the special tokens that it wants
    /// around one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.encode(text, true)
    }

    /// The text of `ids`, special tokens written out. Ids that do not exist have no text; bytes
    /// that are no UTF-8 become U+FFFD, as [`String::from_utf8_lossy`] has it.
    ///
    /// # Errors
    /// [`DecodeError`] where the tokenizer of the model's files fails on these ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DecodeError> {
        self.0.decoding.decode(&self.0, ids)
    }

    /// The bytes that a token adds to a text in the middle of it; none where only the text of all
    /// tokens is known.
    #[must_use]
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        self.bytes_of(id, false)
    }

    /// The same of the first token of a text.
    #[must_use]
    pub fn first_bytes(&self, id: u32) -> Vec<u8> {
        self.bytes_of(id, true)
    }

    fn bytes_of(&self, id: u32, mut at_start: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.decoding.append(&self.0, id, &mut at_start, &mut bytes);
        bytes
    }

    /// The text of tokens that come one at a time.
    #[must_use]
    pub fn stream(&self) -> TextStream {
        TextStream::new(Arc::clone(&self.0), true)
    }

    /// The same of tokens behind others: a space before the first word is part of the text.
    #[must_use]
    pub fn continued_stream(&self) -> TextStream {
        TextStream::new(Arc::clone(&self.0), false)
    }

    /// The ids of the tokens that are no text but a sign: the begin of a text, the end of a turn.
    #[must_use]
    pub fn special_ids(&self) -> &BTreeSet<u32> {
        &self.0.special
    }

    /// The first id that is spelled differently in `other`'s vocabulary, with both spellings.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(u32, Option<String>, Option<String>)> {
        let size = |tokenizer: &Self| tokenizer.0.pipeline.get_vocab_size(true);
        // Ids may have gaps, so that the last one is beyond their number.
        let end = u32::try_from(2 * size(self).max(size(other))).unwrap_or(u32::MAX);
        (0..end)
            .map(|id| (id, self.0.token(id), other.0.token(id)))
            .find(|(_, ours, theirs)| ours != theirs)
    }

    /// The id of the token that is spelled `token` in the vocabulary.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.pipeline.token_to_id(token)
    }
}

impl Parts {
    /// The spelling of a token in the vocabulary.
    fn token(&self, id: u32) -> Option<String> {
        self.pipeline.id_to_token(id)
    }

    /// Whether a token is matched in a text as it is spelled.
    fn is_added(&self, id: u32) -> bool {
        self.pipeline.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }
}

impl std::fmt::Debug for Tokenizer {
    /// How large it is; not its vocabulary.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens = self.0.pipeline.get_vocab_size(true);
        f.debug_struct("Tokenizer").field("tokens", &tokens).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
