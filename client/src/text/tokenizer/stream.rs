//! Text that is shown while its tokens come.

use std::sync::Arc;

use super::Parts;
use super::decoding::Decoding;

/// The text of tokens that come one at a time, in whole characters.
///
/// What [`push`](Self::push) and then [`finish`](Self::finish) return is, put together, what
/// [`Tokenizer::decode`](super::Tokenizer::decode) makes of all the tokens.
pub struct TextStream {
    parts: Arc<Parts>,
    /// Bytes that may be the beginning of a character: at most three between two calls.
    pending: Vec<u8>,
    /// Whether there has been no token of the text yet.
    at_start: bool,
    /// All tokens, where the tokenizer can only write out all at once.
    ids: Vec<u32>,
}

impl TextStream {
    /// Of a text that begins here, or of one that goes on.
    pub(super) fn new(parts: Arc<Parts>, at_start: bool) -> Self {
        Self { parts, pending: Vec::new(), at_start, ids: Vec::new() }
    }

    /// Takes a token, and returns the characters that are complete with it.
    pub fn push(&mut self, id: u32) -> String {
        match &self.parts.decoding {
            decoding @ (Decoding::ByteLevel | Decoding::SentencePiece { .. }) => {
                decoding.append(&self.parts, id, &mut self.at_start, &mut self.pending);
                take_complete(&mut self.pending)
            }
            Decoding::Pipeline => {
                self.ids.push(id);
                String::new()
            }
        }
    }

    /// The text has ended: what was held back, U+FFFD in place of a character that is not complete.
    ///
    /// The stream begins anew after it.
    pub fn finish(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        let ids = std::mem::take(&mut self.ids);
        self.at_start = true;
        match self.parts.decoding {
            Decoding::ByteLevel | Decoding::SentencePiece { .. } => {
                String::from_utf8_lossy(&pending).into_owned()
            }
            // It fails only on tokens that its decoder cannot take: they have no text.
            Decoding::Pipeline => self.parts.pipeline.decode(&ids, false).unwrap_or_default(),
        }
    }
}

/// Takes everything out of `bytes` but the beginning of a character at their end.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let open = match bytes.utf8_chunks().last() {
        // The last chunk ends either with the text or with bytes that are no UTF-8; those are the
        // beginning of a character if more could still complete them.
        Some(chunk) if is_open(chunk.invalid()) => chunk.invalid().len(),
        Some(_) | None => 0,
    };
    let tail = bytes.split_off(bytes.len() - open);
    let complete = std::mem::replace(bytes, tail);
    String::from_utf8_lossy(&complete).into_owned()
}

/// Whether these bytes, which are no UTF-8, could become a character with more bytes.
fn is_open(bytes: &[u8]) -> bool {
    !bytes.is_empty() && str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
