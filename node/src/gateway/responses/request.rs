//! The body of a request for a response.

use serde::Deserialize;
use serde_json::{Value, json};
use umbel_client::text::chat_template::Message;

use crate::gateway::content::Content;
use crate::gateway::error::ApiError;
use crate::gateway::format::ResponseFormat;
use crate::gateway::options::{Options, STOPS_MAX};

/// Items of a request.
const ITEMS_MAX: usize = 4096;

/// As OpenAI's reference has it, as far as it is about text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResponsesRequest {
    pub(super) model: String,
    input: Input,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    seed: Option<i64>,
    stream: Option<bool>,
    text: Option<Text>,
    pub(super) metadata: Option<Value>,
    // What is not built.
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    background: Option<bool>,
    tools: Option<Vec<Value>>,
    reasoning: Option<Reasoning>,
    top_logprobs: Option<usize>,
    include: Option<Vec<Value>>,
    truncation: Option<String>,
    // What changes no answer here.
    #[serde(rename = "tool_choice")]
    _tool_choice: Option<Value>,
    #[serde(rename = "parallel_tool_calls")]
    _parallel_tool_calls: Option<bool>,
    #[serde(rename = "max_tool_calls")]
    _max_tool_calls: Option<u32>,
    #[serde(rename = "store")]
    _store: Option<bool>,
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<String>,
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<String>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<String>,
    #[serde(rename = "stream_options")]
    _stream_options: Option<Value>,
}

/// A question, or what was said before it as well.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string, or a list of messages")]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// A turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    #[serde(rename = "type")]
    _type: Option<ItemType>,
    role: Role,
    content: Content,
    // As answers have them that are sent back.
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ItemType {
    Message,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
}

/// What the text of the answer is to be like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: Option<Format>,
    #[serde(rename = "verbosity")]
    _verbosity: Option<String>,
}

/// The form of the answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Format {
    Text,
    JsonObject,
    JsonSchema {
        name: String,
        schema: Value,
        description: Option<String>,
        // Every schema is kept to.
        #[serde(rename = "strict")]
        _strict: Option<bool>,
    },
}

/// Whether the model is to think first.
#[derive(Debug, Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

impl ResponsesRequest {
    pub(super) fn messages(&self) -> Result<Vec<Message>, ApiError> {
        let system = self.instructions.iter().map(Message::system);
        let turns: Vec<_> = match &self.input {
            Input::Text(text) => vec![Message::user(text)],
            Input::Items(items) if items.is_empty() || items.len() > ITEMS_MAX => {
                let message = format!("input has from 1 to {ITEMS_MAX} messages");
                return Err(ApiError::invalid("input", message));
            }
            Input::Items(items) => items.iter().map(Item::message).collect(),
        };
        Ok(system.chain(turns).collect())
    }

    /// The form of the answer, if one was asked for.
    pub(super) fn format(&self) -> Option<ResponseFormat> {
        match self.text.clone()?.format? {
            Format::Text => None,
            Format::JsonObject => Some(ResponseFormat::JsonObject),
            Format::JsonSchema { schema, .. } => Some(ResponseFormat::of_schema(schema)),
        }
    }

    /// The same as the answer repeats it.
    pub(super) fn format_to_json(&self) -> Value {
        match self.text.clone().and_then(|text| text.format) {
            None | Some(Format::Text) => json!({ "type": "text" }),
            Some(Format::JsonObject) => json!({ "type": "json_object" }),
            Some(Format::JsonSchema { name, schema, description, .. }) => json!({
                "type": "json_schema", "name": name, "schema": schema,
                "description": description, "strict": true,
            }),
        }
    }

    pub(super) fn options(&self) -> Result<Options, ApiError> {
        self.refuse_what_is_not_built()?;
        let options = Options {
            max_tokens: self.max_output_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            stream: self.stream.unwrap_or(false),
            ..Options::default()
        };
        let checked = options.check(STOPS_MAX);
        checked.map_err(|error| error.renamed("max_tokens", "max_output_tokens"))?;
        Ok(options)
    }

    fn refuse_what_is_not_built(&self) -> Result<(), ApiError> {
        let reasons = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        let truncates = self.truncation.as_deref();
        let not_built = [
            ("previous_response_id", self.previous_response_id.is_some(), "keeping responses"),
            ("conversation", self.conversation.is_some(), "keeping conversations"),
            ("background", self.background == Some(true), "answering in the background"),
            (
                "tools",
                self.tools.as_ref().is_some_and(|tools| !tools.is_empty()),
                "calling functions",
            ),
            ("reasoning", reasons.is_some_and(|effort| effort != "none"), "reasoning"),
            ("top_logprobs", self.top_logprobs.is_some_and(|count| count > 0), "logprobs"),
            (
                "include",
                self.include.as_ref().is_some_and(|more| !more.is_empty()),
                "including more",
            ),
            ("truncation", truncates.is_some_and(|how| how != "disabled"), "truncating"),
        ];
        match not_built.into_iter().find(|(_, is_asked, _)| *is_asked) {
            Some((param, _, what)) => Err(ApiError::unsupported(param, what)),
            None => Ok(()),
        }
    }
}

impl Item {
    fn message(&self) -> Message {
        let text = self.content.text();
        match self.role {
            Role::System | Role::Developer => Message::system(text),
            Role::User => Message::user(text),
            Role::Assistant => Message::assistant(text),
        }
    }
}
