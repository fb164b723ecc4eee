//! The bytes that a token stands for.

use super::error::DecodeError;
use super::{Parts, gguf::alphabet};

/// How the spelling of a token in the vocabulary becomes bytes of text.
pub(super) enum Decoding {
    /// Each character of the spelling stands for one byte, as in GPT-2.
    ByteLevel,
    /// `▁` stands for a space, `<0x0A>` for a byte.
    SentencePiece {
        /// Whether the space before the first word was put there by the tokenizer.
        strip_space: bool,
    },
    /// Something else, which is left to the `tokenizers` crate and must have all tokens at once.
    Pipeline,
}

impl Decoding {
    /// The text of all `ids`.
    pub(super) fn decode(&self, parts: &Parts, ids: &[u32]) -> Result<String, DecodeError> {
        match self {
            Self::ByteLevel | Self::SentencePiece { .. } => {
                let mut bytes = Vec::new();
                let mut at_start = true;
                for &id in ids {
                    self.append(parts, id, &mut at_start, &mut bytes);
                }
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::Pipeline => {
                parts.pipeline.decode(ids, false).map_err(|source| DecodeError { source })
            }
        }
    }

    /// Appends the bytes of one token to `bytes`; `at_start` holds until there was a token.
    ///
    /// A token that is matched in the text as it is spelled is written out as it is spelled.
    pub(super) fn append(&self, parts: &Parts, id: u32, at_start: &mut bool, bytes: &mut Vec<u8>) {
        let Some(token) = parts.token(id).filter(|token| !token.is_empty()) else {
            return;
        };
        let first = std::mem::replace(at_start, false);
        match self {
            Self::ByteLevel if parts.is_added(id) => bytes.extend_from_slice(token.as_bytes()),
            Self::ByteLevel => {
                let decoded: Option<Vec<u8>> = token.chars().map(alphabet::byte_of).collect();
                bytes.extend(decoded.unwrap_or_else(|| token.into_bytes()));
            }
            Self::SentencePiece { strip_space } => {
                if let Some(byte) = spelled_byte(&token) {
                    bytes.push(byte);
                    return;
                }
                let text = token.replace('▁', " ");
                let stripped = if first && *strip_space { text.strip_prefix(' ') } else { None };
                bytes.extend_from_slice(stripped.unwrap_or(&text).as_bytes());
            }
            Self::Pipeline => {}
        }
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn spelled_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if hexadecimal { u8::from_str_radix(digits, 16).ok() } else { None }
}
