//! Conversations as the text that a model was trained on, by the Jinja template in its files.
//!
//! Templates are rendered as transformers renders them (`utils/chat_template_utils.py`): the same
//! variables, filters and functions, blocks trimmed, loop controls on. A template is a program from
//! a stranger: it sees nothing but the conversation, and the work that it may do is bounded.

mod json;
mod tag;
mod time;
mod tojson;
mod values;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use sha2::{Digest as _, Sha256};
use umbel_shard::SpecialTokens;

use json::json_bytes;
pub use json::{InvalidTool, Tool};
pub use values::{InvalidTemplateValues, TemplateValues};

/// Largest template; the longest known have 20 kB.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// Fuel that every rendering has: one unit is an instruction, or 64 bytes written. The longest
/// known templates take some 10,000 for a short conversation.
const FUEL_BASE: u64 = 1_000_000;
/// Fuel for each message and tool beyond that; known templates take 60 to 500 for a message.
const FUEL_PER_ITEM: u64 = 10_000;
/// Fuel for each byte of what is said beyond that: it may be copied 64 times. Templates that search
/// and split an answer copy it some ten times.
const FUEL_PER_BYTE: u64 = 1;

/// Letters and digits of a call's id: Mistral's templates refuse longer and shorter ones.
const CALL_ID_CHARACTERS: usize = 9;

/// What is written behind a message, to find where it ends in what the template makes of it.
const GOES_ON: &str = "umbel-goes-on-here";

/// The name under which the template is kept, and which its errors show.
const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Functions that the model asks for with it.
    pub calls: Vec<ToolCall>,
    /// Of a function's result, the call that it answers.
    pub call_id: Option<String>,
}

/// A model asks for a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// What the call is called by its result.
    pub id: Option<String>,
    /// The function.
    pub name: String,
    /// What it is given.
    pub arguments: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// `role` says `content`.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let (role, content) = (role.into(), content.into());
        Self { role, content, calls: Vec::new(), call_id: None }
    }

    /// What the model is told before the conversation.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the person says.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// What a function gave that the model asked for.
    #[must_use]
    pub fn tool(call_id: Option<String>, content: impl Into<String>) -> Self {
        Self { call_id, ..Self::new("tool", content) }
    }

    fn to_value(&self) -> Value {
        let mut pairs = vec![
            ("role", Value::from(self.role.as_str())),
            ("content", Value::from(self.content.as_str())),
        ];
        if !self.calls.is_empty() {
            pairs.push(("tool_calls", self.calls.iter().map(ToolCall::to_value).collect()));
        }
        if let Some(id) = &self.call_id {
            pairs.push(("tool_call_id", Value::from(call_id(id))));
        }
        Value::from_pairs(pairs)
    }

    fn text_bytes(&self) -> usize {
        let calls = self.calls.iter().map(|call| call.name.len() + json_bytes(&call.arguments));
        self.role.len() + self.content.len() + calls.sum::<usize>()
    }
}

impl ToolCall {
    fn to_value(&self) -> Value {
        let arguments = json::value(serde_json::Value::Object(self.arguments.clone()));
        let function = [("name", Value::from(self.name.as_str())), ("arguments", arguments)];
        Value::from_pairs([
            ("id", Value::from(self.id.as_deref().map(call_id))),
            ("type", Value::from("function")),
            ("function", Value::from_pairs(function)),
        ])
    }
}

/// An id that every template takes, the same for a call and for its result: to a model it says no more
/// than which belongs to which.
fn call_id(id: &str) -> String {
    if id.len() == CALL_ID_CHARACTERS && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    let digest = Sha256::digest(id);
    let character = |byte: &u8| char::from_digit(u32::from(*byte) % 36, 36);
    digest.iter().filter_map(character).take(CALL_ID_CHARACTERS).collect()
}

/// Everything that a template is given.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The turns so far.
    pub messages: &'a [Message],
    /// Functions that the model may ask for; none for most conversations.
    pub tools: &'a [Tool],
    /// Whether to end with what begins the model's answer.
    pub add_generation_prompt: bool,
    /// What else it is told; nothing for most conversations.
    pub values: &'a TemplateValues,
    /// What the template's `strftime_now` shows, in UTC.
    pub now: SystemTime,
}

/// The chat template of one model.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like, as the template sees them.
    specials: Vec<(&'static str, Value)>,
    takes_tools: bool,
}

impl ChatTemplate {
    /// The template with this source.
    ///
    /// # Errors
    /// [`InvalidChatTemplate`] where it is no template that can be rendered.
    pub fn new(source: &str, specials: &SpecialTokens) -> Result<Self, InvalidChatTemplate> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(InvalidChatTemplate::TooLarge { bytes: source.len() });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson::filter);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, tag::without_generation(source))
            .map_err(|source| InvalidChatTemplate::Syntax { source })?;
        let takes_tools = environment.get_template(NAME).is_ok_and(|template| {
            // This reads the whole template again.
            template.undeclared_variables(false).contains("tools")
        });
        let tokens = [
            ("bos_token", &specials.bos),
            ("eos_token", &specials.eos),
            ("unk_token", &specials.unknown),
            ("pad_token", &specials.padding),
        ];
        let present = |(name, token): (&'static str, &Option<String>)| {
            Some((name, Value::from(token.as_deref()?)))
        };
        let specials = tokens.into_iter().filter_map(present).collect();
        Ok(Self { environment, specials, takes_tools })
    }

    /// Whether it says anything of functions that the model may ask for.
    #[must_use]
    pub const fn takes_tools(&self) -> bool {
        self.takes_tools
    }

    /// The text of a conversation without tools, at this time.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_conversation`].
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, RenderChatError> {
        self.render_conversation(Conversation {
            messages,
            tools: &[],
            add_generation_prompt,
            values: &TemplateValues::default(),
            now: SystemTime::now(),
        })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`RenderChatError`] where the template refuses the conversation, fails, or does too much.
    pub fn render_conversation(
        &self,
        conversation: Conversation<'_>,
    ) -> Result<String, RenderChatError> {
        let Conversation { messages, tools, add_generation_prompt, values, now } = conversation;
        // Only the limit differs between renderings; the compiled template is shared.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel(&conversation)));
        let strftime_now = move |format: &str| time::format(now, format);
        let tools = if tools.is_empty() {
            Value::from(())
        } else {
            tools.iter().map(Tool::to_value).collect()
        };
        let variables = [
            ("messages", messages.iter().map(Message::to_value).collect()),
            ("tools", tools),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("strftime_now", Value::from_function(strftime_now)),
        ];
        let variables = variables.into_iter().chain(self.specials.iter().cloned());
        let variables = variables.chain(values.iter());
        environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(variables)))
            .map_err(RenderChatError::from)
    }

    /// The text of a conversation up to the end of its last message, which is the beginning of the
    /// model's answer; what the template would close it with is left out.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_conversation`], and where the template does not show this message.
    pub fn render_begun(&self, conversation: Conversation<'_>) -> Result<String, RenderChatError> {
        let mut messages = conversation.messages.to_vec();
        let last = messages.last_mut().ok_or(RenderChatError::NotShown)?;
        last.content.push_str(GOES_ON);
        let mut text = self.render_conversation(Conversation {
            messages: &messages,
            add_generation_prompt: false,
            ..conversation
        })?;
        let end = text.rfind(GOES_ON).ok_or(RenderChatError::NotShown)?;
        text.truncate(end);
        Ok(text)
    }

    /// The text of a conversation behind its message at `index`, unless the template does not show this
    /// message.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_conversation`].
    pub(crate) fn render_behind(
        &self,
        messages: &[Message],
        index: usize,
        add_generation_prompt: bool,
    ) -> Result<Option<String>, RenderChatError> {
        let mut messages = messages.to_vec();
        messages[index].content.push_str(GOES_ON);
        let text = self.render(&messages, add_generation_prompt)?;
        Ok(text.rsplit_once(GOES_ON).map(|(_, behind)| behind.to_owned()))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("specials", &self.specials).finish_non_exhaustive()
    }
}

fn fuel(conversation: &Conversation<'_>) -> u64 {
    let Conversation { messages, tools, values, .. } = conversation;
    let said = messages.iter().map(Message::text_bytes);
    let said = said.chain(tools.iter().map(Tool::text_bytes)).chain([values.text_bytes()]);
    let bytes = said.sum::<usize>() as u64;
    let items = (messages.len() + tools.len()) as u64;
    FUEL_BASE + FUEL_PER_ITEM * items + FUEL_PER_BYTE * bytes
}

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(Refusal(message)))
}

/// A text that is no chat template.
#[derive(Debug, thiserror::Error)]
pub enum InvalidChatTemplate {
    /// Longer than any template.
    #[error("the chat template has {bytes} bytes; the most is {TEMPLATE_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// It cannot be parsed.
    #[error("the model's chat template is not valid")]
    Syntax {
        /// What is wrong, and where.
        #[source]
        source: Error,
    },
}

/// A conversation that the template does not render.
#[derive(Debug, thiserror::Error)]
pub enum RenderChatError {
    /// The template says that it cannot have this conversation, for example a role twice in a row.
    #[error("the model's chat template refuses this conversation: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template does more work than any that is known.
    #[error("the model's chat template was stopped: it does more than any conversation needs")]
    TooMuchWork,
    /// The template leaves the last message out, so that no answer can go on with it.
    #[error(
        "the model's chat template does not show the last message, with which the answer begins"
    )]
    NotShown,
    /// The template fails.
    #[error("the model's chat template failed on this conversation")]
    Failed {
        /// What is wrong, and where.
        #[source]
        source: Error,
    },
}

impl From<Error> for RenderChatError {
    fn from(source: Error) -> Self {
        // What a macro or a block raises is wrapped once for each level.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(Refusal(message)) = error.downcast_ref() {
                return Self::Refused { message: message.clone() };
            }
            let out_of_fuel = |error: &Error| error.kind() == ErrorKind::OutOfFuel;
            if error.downcast_ref().is_some_and(out_of_fuel) {
                return Self::TooMuchWork;
            }
            cause = error.source();
        }
        Self::Failed { source }
    }
}

#[cfg(test)]
pub(crate) mod tests;
