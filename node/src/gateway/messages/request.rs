//! The body of a request for a message.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use umbel_client::text::chat_template::{Message, ToolCall};
use umbel_client::text::tools::Tools;

use crate::gateway::content::Content;
use crate::gateway::error::ApiError;
use crate::gateway::format::ResponseFormat;
use crate::gateway::options::{Options, Texts};

/// Texts at which an answer ends: Anthropic sets no limit, and each is looked for behind every token.
const STOP_SEQUENCES_MAX: usize = 64;

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
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    // What changes no answer here.
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
    content: Blocks,
}

/// What is said in a turn.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a string, or a list of blocks of type \"text\", \"tool_use\" or \"tool_result\""
)]
enum Blocks {
    Text(String),
    Several(Vec<Block>),
}

/// A piece of it.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Block {
    Text {
        text: String,
        #[serde(rename = "cache_control")]
        _cache_control: Option<IgnoredAny>,
        #[serde(rename = "citations")]
        _citations: Option<IgnoredAny>,
    },
    /// A function that the model asked for.
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
        #[serde(rename = "cache_control")]
        _cache_control: Option<IgnoredAny>,
        #[serde(rename = "caller")]
        _caller: Option<IgnoredAny>,
    },
    /// What came of it.
    ToolResult {
        tool_use_id: String,
        content: Option<Content>,
        is_error: Option<bool>,
        #[serde(rename = "cache_control")]
        _cache_control: Option<IgnoredAny>,
    },
}

/// A function that the model may ask for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    name: String,
    description: Option<String>,
    input_schema: Value,
    r#type: Option<String>,
    // Every call is held to its schema where it must come.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<IgnoredAny>,
}

/// Whether the model may, or must, ask for a function.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolChoice {
    r#type: ChoiceType,
    name: Option<String>,
    #[serde(rename = "disable_parallel_tool_use")]
    _disable_parallel_tool_use: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ChoiceType {
    Auto,
    Any,
    Tool,
    None,
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
        let mut messages: Vec<_> =
            self.system.iter().map(|content| Message::system(content.text())).collect();
        for (index, turn) in self.messages.iter().enumerate() {
            turn.add_to(&mut messages, index)?;
        }
        if self.begins_answer() && messages.last().is_some_and(|last| !last.calls.is_empty()) {
            let message = "the last turn asks for a function: tell its result";
            return Err(ApiError::invalid("messages", message));
        }
        Ok(messages)
    }

    /// Whether the last turn is the beginning of the answer.
    pub(super) fn begins_answer(&self) -> bool {
        self.messages.last().is_some_and(|turn| matches!(turn.role, Role::Assistant))
    }

    /// The functions that the model may ask for, and how an answer is held to asking for one.
    pub(super) fn tools(&self) -> Result<Option<(Tools, Option<ResponseFormat>)>, ApiError> {
        let choice = self.tool_choice.as_ref();
        let functions: Result<Vec<_>, _> =
            self.tools.iter().flatten().map(Tool::function).collect();
        let functions = functions?;
        let kind = choice.map_or(ChoiceType::Auto, |choice| choice.r#type);
        if functions.is_empty() {
            return match kind {
                ChoiceType::Auto | ChoiceType::None => Ok(None),
                ChoiceType::Any | ChoiceType::Tool => {
                    Err(ApiError::invalid("tool_choice", "there are no tools to choose from"))
                }
            };
        }
        let tools = Tools::new(functions);
        let tools = tools.map_err(|error| ApiError::invalid("tools", error.to_string()))?;
        let only = choice.and_then(|choice| choice.name.as_deref());
        let forced = match (kind, only) {
            (ChoiceType::None, _) => return Ok(None),
            (ChoiceType::Auto, _) => None,
            (ChoiceType::Any, _) => Some(tools.call_schema(None)),
            (ChoiceType::Tool, Some(name)) if tools.get(name).is_some() => {
                Some(tools.call_schema(Some(name)))
            }
            (ChoiceType::Tool, name) => {
                let message = format!("no tool is called {:?}", name.unwrap_or_default());
                return Err(ApiError::invalid("tool_choice", message));
            }
        };
        if forced.is_some() && self.format().is_some() {
            let message = "an answer cannot call a function and have a format";
            return Err(ApiError::invalid("output_config", message));
        }
        Ok(Some((tools, forced.map(ResponseFormat::of_schema))))
    }

    pub(super) fn options(&self) -> Result<Options, ApiError> {
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
        let checked = options.check(STOP_SEQUENCES_MAX);
        checked.map_err(|error| error.renamed("stop", "stop_sequences"))?;
        Ok(options)
    }
}

impl Tool {
    /// As OpenAI's interface describes it, which is how templates take it.
    fn function(&self) -> Result<Value, ApiError> {
        if self.r#type.as_deref().is_some_and(|kind| kind != "custom") {
            return Err(ApiError::unsupported("tools", "a tool that runs elsewhere"));
        }
        let Self { name, description, input_schema, .. } = self;
        Ok(json!({ "name": name, "description": description, "parameters": input_schema }))
    }
}

impl Turn {
    /// What the model is told of the turn: results of functions are turns of their own.
    fn add_to(&self, messages: &mut Vec<Message>, index: usize) -> Result<(), ApiError> {
        let said = |text: String| match self.role {
            Role::User => Message::user(text),
            Role::Assistant => Message::assistant(text),
        };
        let blocks = match &self.content {
            Blocks::Text(text) => {
                messages.push(said(text.clone()));
                return Ok(());
            }
            Blocks::Several(blocks) => blocks,
        };
        let (mut text, mut calls) = (String::new(), Vec::new());
        for block in blocks {
            match (block, self.role) {
                (Block::Text { text: more, .. }, _) => text.push_str(more),
                (Block::ToolUse { id, name, input, .. }, Role::Assistant) => {
                    let (id, name, arguments) = (Some(id.clone()), name.clone(), input.clone());
                    calls.push(ToolCall { id, name, arguments });
                }
                (Block::ToolResult { tool_use_id, content, is_error, .. }, Role::User) => {
                    if !text.is_empty() {
                        messages.push(said(std::mem::take(&mut text)));
                    }
                    let result = content.as_ref().map(Content::text).unwrap_or_default();
                    let failed = is_error.unwrap_or(false);
                    let result = if failed { format!("error: {result}") } else { result };
                    messages.push(Message::tool(Some(tool_use_id.clone()), result));
                }
                (Block::ToolUse { .. }, Role::User)
                | (Block::ToolResult { .. }, Role::Assistant) => {
                    let message =
                        "the assistant asks for functions, and the user tells the results";
                    return Err(ApiError::invalid(format!("messages[{index}].content"), message));
                }
            }
        }
        let only_results = matches!(blocks.last(), Some(Block::ToolResult { .. }));
        if !calls.is_empty() {
            messages.push(Message { calls, ..Message::assistant(text) });
        } else if !text.is_empty() || !only_results {
            messages.push(said(text));
        }
        Ok(())
    }
}
