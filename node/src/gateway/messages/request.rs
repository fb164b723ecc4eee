//! The body of a request for a message.

use serde::Deserialize;
use serde_json::Value;
use umbel_client::text::chat_template::Message;

use crate::gateway::content::Content;
use crate::gateway::error::ApiError;
use crate::gateway::format::ResponseFormat;
use crate::gateway::options::{Options, Texts};

/// As Anthropic's reference has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessagesRequest {
    pub(super) model: String,
    max_tokens: u32,
    messages: Vec<Turn>,
    system: Option<Content>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    tools: Option<Vec<Value>>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    // What changes no answer here.
    #[serde(rename = "tool_choice")]
    _tool_choice: Option<Value>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<String>,
}

/// One turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: Role,
    content: Content,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

/// Whether the model is to think first.
#[derive(Debug, Deserialize)]
struct Thinking {
    r#type: String,
}

/// What the answer is to be like.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputConfig {
    format: Option<OutputFormat>,
    #[serde(rename = "effort")]
    _effort: Option<String>,
}

/// The form of the answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum OutputFormat {
    JsonSchema { schema: Value },
}

impl MessagesRequest {
    /// The form of the answer, if one was asked for.
    pub(super) fn format(&self) -> Option<ResponseFormat> {
        let format = self.output_config.as_ref()?.format.clone();
        format.map(|OutputFormat::JsonSchema { schema }| ResponseFormat::of_schema(schema))
    }

    pub(super) fn messages(&self) -> Result<Vec<Message>, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid("messages", "messages: there is no turn"));
        }
        let turn = |turn: &Turn| match turn.role {
            Role::User => Message::user(turn.content.text()),
            Role::Assistant => Message::assistant(turn.content.text()),
        };
        let system = self.system.iter().map(|content| Message::system(content.text()));
        Ok(system.chain(self.messages.iter().map(turn)).collect())
    }

    pub(super) fn options(&self) -> Result<Options, ApiError> {
        if self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
            return Err(ApiError::unsupported("tools", "calling functions"));
        }
        if self.thinking.as_ref().is_some_and(|thinking| thinking.r#type != "disabled") {
            return Err(ApiError::unsupported("thinking", "thinking"));
        }
        let options = Options {
            max_tokens: Some(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: self.stop_sequences.clone().map(Texts::Several),
            stream: self.stream.unwrap_or(false),
            ..Options::default()
        };
        options.check()?;
        Ok(options)
    }
}
