//! One line of a data set.

use serde::Deserialize;
use serde_json::Value;

use super::Example;
use super::conversation::{LEARNED_ROLE, Told};
use crate::model::ClientModel;
use crate::text::chat_template::{ChatTemplate, Message, RenderChatError};
use crate::text::tokenizer::{EncodeError, Tokenizer};

/// A field that is not known here, such as `tools`, would change what the model is asked: it is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    messages: Option<Vec<Turn>>,
    prompt: Option<String>,
    completion: Option<String>,
    text: Option<String>,
    token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: String,
    content: String,
    weight: Option<Weight>,
}

/// Whether a message is learned, as OpenAI has it: 0 or 1.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(try_from = "Value")]
enum Weight {
    Context,
    Learned,
}

impl TryFrom<Value> for Weight {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        match value.as_u64() {
            Some(0) => Ok(Self::Context),
            Some(1) => Ok(Self::Learned),
            Some(_) | None => Err(format!("a weight is 0 or 1, and not {value}")),
        }
    }
}

/// Reads lines as texts of one model.
#[derive(Debug, Clone, Copy)]
pub struct TextReader<'a> {
    /// Its tokenizer.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Its chat template.
    pub chat_template: Option<&'a ChatTemplate>,
    /// What ends a text.
    pub end: Option<u32>,
    /// Ids below this one are in the vocabulary.
    pub vocabulary_size: usize,
}

impl<'a> TextReader<'a> {
    /// For texts of this model.
    #[must_use]
    pub fn of(model: &'a ClientModel) -> Self {
        Self {
            tokenizer: model.tokenizer(),
            chat_template: model.chat_template(),
            end: model.config().eos_token_ids.first().copied(),
            vocabulary_size: model.config().vocabulary_size,
        }
    }

    /// The text of a line, or the texts of a conversation that cannot be one. Where these are longer than
    /// `tokens_max`, those of which nothing would be left to learn are empty.
    pub(super) fn parse(&self, bytes: &[u8], tokens_max: usize) -> Result<Vec<Example>, LineError> {
        let line: Line = serde_json::from_slice(bytes).map_err(LineError::Json)?;
        let Line { messages, prompt, completion, text, token_ids } = line;
        let tokenizer = self.tokenizer.ok_or(LineError::NoTokenizer);
        let example = match (messages, prompt, completion, text, token_ids) {
            (Some(turns), None, None, None, None) => {
                let template = self.chat_template.ok_or(LineError::NoChatTemplate)?;
                return conversation(turns, template, tokenizer?)?.examples(tokens_max);
            }
            (None, Some(prompt), Some(completion), None, None) => {
                let tokenizer = tokenizer?;
                let mut learned = tokenizer.encode_behind(&prompt, &completion)?;
                learned.extend(self.end);
                let prompt = tokenizer.encode_prompt(&prompt)?;
                Example::of_parts([(prompt, false), (learned, true)])
            }
            (None, None, None, Some(text), None) => {
                let mut ids = tokenizer?.encode_prompt(&text)?;
                ids.extend(self.end);
                Example::of_text(ids)
            }
            (None, None, None, None, Some(ids)) => {
                let max = self.vocabulary_size;
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= max) {
                    return Err(LineError::UnknownToken { id, max });
                }
                Example::of_text(ids)
            }
            (_, _, _, _, _) => return Err(LineError::Kind),
        };
        Ok(vec![example])
    }
}

fn conversation<'a>(
    turns: Vec<Turn>,
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
) -> Result<Told<'a>, LineError> {
    let (mut messages, mut learned) = (Vec::new(), Vec::new());
    for Turn { role, content, weight } in turns {
        if role != LEARNED_ROLE && weight == Some(Weight::Learned) {
            return Err(LineError::NotLearned { role });
        }
        learned.push(weight != Some(Weight::Context));
        messages.push(Message::new(role, content));
    }
    Ok(Told { messages, learned, template, tokenizer })
}

/// A line that makes no text.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is no JSON object with such fields.
    #[error("{}", without_line(.0))]
    Json(serde_json::Error),
    /// It has none, or several, of the kinds.
    #[error("give messages, or prompt and completion, or text, or token_ids")]
    Kind,
    /// Nobody answers in the conversation.
    #[error("no message of the role assistant")]
    NoAnswer,
    /// A message of another role has a weight of 1.
    #[error("a message of the role {role} has a weight of 1, but only the assistant's are learned")]
    NotLearned {
        /// Whose it is.
        role: String,
    },
    /// A token that the model does not know.
    #[error("token {id} is not in the model's vocabulary of {max}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// How many the model knows.
        max: usize,
    },
    /// It has no end.
    #[error("longer than {max} bytes")]
    TooLong {
        /// Bytes of the longest line.
        max: u64,
    },
    /// In what the template writes an answer does not stand behind what asks for it.
    #[error(
        "the model's chat template does not show where an answer begins: give prompt and completion"
    )]
    Template,
    /// The model's files hold none.
    #[error("the model has no tokenizer")]
    NoTokenizer,
    /// The model's files hold none.
    #[error("the model has no chat template: give prompt and completion")]
    NoChatTemplate,
    /// The template refuses the conversation.
    #[error(transparent)]
    Render(#[from] RenderChatError),
    /// The tokenizer failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// What is wrong with a line of JSON. The parser was given nothing else and calls each the first line,
/// which would stand beside the number in the file.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{what} at column {}", error.column()),
        None => text,
    }
}
