//! One line of a data set.

use serde::Deserialize;
use serde_json::Value;

use super::Example;
use crate::model::ClientModel;
use crate::text::chat_template::{ChatTemplate, Message, RenderChatError};
use crate::text::tokenizer::{EncodeError, Tokenizer};

/// Who says what is learned of a conversation.
const LEARNED_ROLE: &str = "assistant";

#[derive(Deserialize)]
struct Line {
    messages: Option<Vec<Turn>>,
    prompt: Option<String>,
    completion: Option<String>,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

/// The text of a line.
pub(super) fn parse(bytes: &[u8], model: &ClientModel) -> Result<Example, LineError> {
    let value: Value = serde_json::from_slice(bytes).map_err(LineError::Json)?;
    let line: Line = serde_json::from_value(value).map_err(LineError::Fields)?;
    let tokenizer = model.tokenizer().ok_or(LineError::NoTokenizer)?;
    let end = model.config().eos_token_ids.first().copied();
    match line {
        Line { messages: Some(turns), prompt: None, completion: None, text: None } => {
            let template = model.chat_template().ok_or(LineError::NoChatTemplate)?;
            let message = |Turn { role, content }| Message { role, content };
            conversation(turns.into_iter().map(message).collect(), template, tokenizer)
        }
        Line { messages: None, prompt: Some(prompt), completion: Some(completion), text: None } => {
            let mut learned = tokenizer.encode(&completion, false)?;
            learned.extend(end);
            Ok(Example::of_parts([(tokenizer.encode_prompt(&prompt)?, false), (learned, true)]))
        }
        Line { messages: None, prompt: None, completion: None, text: Some(text) } => {
            let mut ids = tokenizer.encode_prompt(&text)?;
            ids.extend(end);
            Ok(Example::of_text(ids))
        }
        Line { .. } => Err(LineError::Kind),
    }
}

/// A conversation as its template writes it, cut where the model's answers begin and end: there it is
/// cut too when the model is asked.
fn conversation(
    messages: Vec<Message>,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
) -> Result<Example, LineError> {
    let mut parts = Vec::new();
    let mut written = String::new();
    for (index, message) in messages.iter().enumerate() {
        if message.role != LEARNED_ROLE {
            continue;
        }
        let before = template.render(&messages[..index], true)?;
        let behind = template.render(&messages[..=index], false)?;
        let asked = before.strip_prefix(&written).ok_or(LineError::Template)?;
        let answered = behind.strip_prefix(&before).ok_or(LineError::Template)?;
        parts.push((tokenizer.encode(asked, false)?, false));
        parts.push((tokenizer.encode(answered, false)?, true));
        written = behind;
    }
    if parts.is_empty() {
        return Err(LineError::NoAnswer);
    }
    Ok(Example::of_parts(parts))
}

/// A line that makes no text.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is no JSON.
    #[error("no JSON: {0}")]
    Json(serde_json::Error),
    /// A field is of another kind.
    #[error("{0}")]
    Fields(serde_json::Error),
    /// It has none, or several, of the three kinds.
    #[error("give messages, or prompt and completion, or text")]
    Kind,
    /// Nobody answers in the conversation.
    #[error("no message of the role assistant")]
    NoAnswer,
    /// It has no end.
    #[error("longer than {max} bytes")]
    TooLong {
        /// Bytes of the longest line.
        max: u64,
    },
    /// The template writes what was said before otherwise, once more is said.
    #[error("the model's chat template rewrites earlier messages: give prompt and completion")]
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
