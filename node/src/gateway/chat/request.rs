//! The body of a chat request.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use umbel_client::text::chat_template::{InvalidTemplateValues, Message, TemplateValues, ToolCall};
use umbel_client::text::tools::Tools;

use crate::gateway::content::Content;
use crate::gateway::error::ApiError;
use crate::gateway::format::ResponseFormat;
use crate::gateway::options::{self, Options, STOPS_MAX, StreamOptions, Texts};

/// Turns of a conversation.
const MESSAGES_MAX: usize = 4096;

/// The functions of a conversation.
#[derive(Debug)]
pub(super) struct ChatTools {
    pub(super) tools: Tools,
    /// The form of an answer that must call one.
    pub(super) forced: Option<ResponseFormat>,
}

/// As OpenAI's reference has it, and `top_k`, `min_p` and `repetition_penalty` as others have them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<Turn>,
    n: Option<u32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    stop: Option<Texts>,
    #[serde(default)]
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    prediction: Option<Prediction>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether each chunk of a stream says where its time went: no part of OpenAI's interface.
    trace: Option<bool>,
    /// What the chat template is told beside the conversation, as vLLM and others have it.
    chat_template_kwargs: Option<Map<String, Value>>,
    // What changes no answer here.
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "store")]
    _store: Option<bool>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<String>,
    #[serde(rename = "parallel_tool_calls")]
    _parallel_tool_calls: Option<bool>,
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<String>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<String>,
}

/// One turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: Role,
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
    #[serde(rename = "name")]
    _name: Option<String>,
    // As answers have them that are sent back.
    #[serde(rename = "refusal")]
    _refusal: Option<String>,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    audio: Option<Value>,
    function_call: Option<Value>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A function that the model asked for.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Call {
    Function {
        id: String,
        function: CalledFunction,
        /// As calls have it that come in a stream.
        #[serde(rename = "index")]
        _index: Option<IgnoredAny>,
    },
}

/// Which, and with what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    /// An object of JSON as text.
    arguments: String,
}

/// A function that the model may ask for.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Tool {
    Function { function: Value },
}

/// Whether the model may, or must, ask for a function.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "\"none\", \"auto\", \"required\", or a function by its name")]
enum ToolChoice {
    Mode(Mode),
    Named(Named),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    None,
    Auto,
    Required,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Named {
    Function { function: FunctionName },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionName {
    name: String,
}

/// A text that the answer will repeat in part.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Prediction {
    Content { content: Content },
}

impl ChatRequest {
    pub(super) fn messages(&self) -> Result<Vec<Message>, ApiError> {
        if self.messages.is_empty() || self.messages.len() > MESSAGES_MAX {
            let message = format!("messages has from 1 to {MESSAGES_MAX} turns");
            return Err(ApiError::invalid("messages", message));
        }
        self.messages.iter().enumerate().map(|(index, turn)| turn.message(index)).collect()
    }

    /// The functions that the model may ask for, and how an answer is held to asking for one.
    pub(super) fn tools(&self) -> Result<Option<ChatTools>, ApiError> {
        let tools = self.tools.iter().flatten();
        let functions: Vec<_> = tools.map(|Tool::Function { function }| function.clone()).collect();
        if functions.is_empty() {
            if matches!(self.tool_choice, None | Some(ToolChoice::Mode(Mode::None | Mode::Auto))) {
                return Ok(None);
            }
            return Err(ApiError::invalid("tool_choice", "there are no tools to choose from"));
        }
        let tools = Tools::new(functions);
        let tools = tools.map_err(|error| ApiError::invalid("tools", error.to_string()))?;
        let forced = match &self.tool_choice {
            Some(ToolChoice::Mode(Mode::None)) => return Ok(None),
            None | Some(ToolChoice::Mode(Mode::Auto)) => None,
            Some(ToolChoice::Mode(Mode::Required)) => Some(tools.call_schema(None)),
            Some(ToolChoice::Named(Named::Function { function: FunctionName { name } })) => {
                if tools.get(name).is_none() {
                    let message = format!("no tool is called {name:?}");
                    return Err(ApiError::invalid("tool_choice", message));
                }
                Some(tools.call_schema(Some(name)))
            }
        };
        if forced.is_some() && self.response_format.is_some() {
            let message = "an answer cannot call a function and have a response_format";
            return Err(ApiError::invalid("response_format", message));
        }
        Ok(Some(ChatTools { tools, forced: forced.map(ResponseFormat::of_schema) }))
    }

    pub(super) fn options(&self) -> Result<Options, ApiError> {
        let max_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                let message = "max_tokens and max_completion_tokens differ: give one of them";
                return Err(ApiError::invalid("max_completion_tokens", message));
            }
            (old, new) => new.or(old),
        };
        let top_logprobs = match (self.logprobs, self.top_logprobs) {
            (Some(true), count) => Some(count.unwrap_or(0)),
            (_, Some(count)) if count > 0 => {
                let message = "top_logprobs is for requests with logprobs: true";
                return Err(ApiError::invalid("top_logprobs", message));
            }
            _ => None,
        };
        let options = Options { max_tokens, top_logprobs, ..options::alike!(self) };
        options.check(STOPS_MAX)?;
        if self.traces() && !options.stream {
            return Err(ApiError::invalid("trace", "trace is for requests with stream: true"));
        }
        Ok(options)
    }

    /// Whether chunks say where their time went.
    pub(super) fn traces(&self) -> bool {
        self.trace.unwrap_or(false)
    }

    /// What the chat template is told beside the conversation.
    pub(super) fn template_values(&self) -> Result<TemplateValues, ApiError> {
        let values = self.chat_template_kwargs.clone().unwrap_or_default();
        let invalid = |error: InvalidTemplateValues| {
            ApiError::invalid("chat_template_kwargs", error.to_string())
        };
        TemplateValues::from_json(values).map_err(invalid)
    }

    /// The form of the answer, if one was asked for.
    pub(super) fn response_format(&self) -> Option<ResponseFormat> {
        self.response_format.clone()
    }

    /// A text that the answer will repeat in part, if one was given.
    pub(super) fn prediction(&self) -> Option<String> {
        self.prediction.as_ref().map(|Prediction::Content { content }| content.text())
    }
}

impl Turn {
    fn message(&self, index: usize) -> Result<Message, ApiError> {
        let field = |name: &str| format!("messages[{index}].{name}");
        for (name, what, said) in [
            ("audio", "sound", &self.audio),
            ("function_call", "a call outside tool_calls", &self.function_call),
        ] {
            if said.is_some() {
                return Err(ApiError::unsupported(&field(name), what));
            }
        }
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        let content = match &self.content {
            Some(content) => content.text(),
            None if !calls.is_empty() => String::new(),
            None => return Err(ApiError::invalid(field("content"), "the turn says nothing")),
        };
        if !calls.is_empty() && !matches!(self.role, Role::Assistant) {
            let message = "only the assistant asks for functions";
            return Err(ApiError::invalid(field("tool_calls"), message));
        }
        Ok(match self.role {
            Role::System | Role::Developer => Message::system(content),
            Role::User => Message::user(content),
            Role::Tool => Message::tool(self.tool_call_id.clone(), content),
            Role::Assistant => {
                let call = |Call::Function { id, function, .. }: &Call| {
                    let arguments = serde_json::from_str(&function.arguments).map_err(|error| {
                        let message = format!("the arguments are no object of JSON: {error}");
                        ApiError::invalid(field("tool_calls"), message)
                    })?;
                    Ok(ToolCall { id: Some(id.clone()), name: function.name.clone(), arguments })
                };
                let calls: Result<_, ApiError> = calls.iter().map(call).collect();
                Message { calls: calls?, ..Message::assistant(content) }
            }
        })
    }
}
