//! Functions that a model may ask for: how it is told of them, and its calls in what it says.
//!
//! Models that were trained for it have a chat template that takes the functions, and say their calls
//! in one of a few forms. Most are JSON with a name and arguments: between `<tool_call>` and
//! `</tool_call>`, behind `[TOOL_CALLS]` or `<|python_tag|>`, or as all that they say. Others are tags,
//! `<function=NAME>` and what belongs to it. To models without such a template it is explained in the
//! system's turn, in the first of these forms.

mod tagged;

use serde_json::{Map, Value, json};

use super::chat_template::{Message, ToolCall};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Behind these all is calls: Mistral's models say the first, Llama's from 3.1 on the second.
const LISTS: [&str; 2] = ["[TOOL_CALLS]", "<|python_tag|>"];

/// Functions of one conversation.
const TOOLS_MAX: usize = 128;

/// Functions that the model may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools(Vec<Value>);

impl Tools {
    /// Functions as OpenAI's interface describes them: objects with a `name`, and mostly with a
    /// `description` and a JSON schema as `parameters`.
    ///
    /// # Errors
    /// [`InvalidTools`] where one has no usable name, or there are too many.
    pub fn new(functions: Vec<Value>) -> Result<Self, InvalidTools> {
        if functions.len() > TOOLS_MAX {
            return Err(InvalidTools::TooMany { count: functions.len() });
        }
        for (index, function) in functions.iter().enumerate() {
            let name = function["name"].as_str().ok_or(InvalidTools::NoName { index })?;
            let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
                return Err(InvalidTools::Name { name: name.to_owned() });
            }
            if functions[..index].iter().any(|other| other["name"] == name) {
                return Err(InvalidTools::Twice { name: name.to_owned() });
            }
        }
        Ok(Self(functions))
    }

    /// Each as a chat template takes it.
    pub(crate) fn described(&self) -> impl Iterator<Item = Value> + '_ {
        self.0.iter().map(|function| json!({ "type": "function", "function": function }))
    }

    /// The function of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|function| function["name"] == name)
    }

    /// The schema of a call of any of them, or of the one that is named.
    #[must_use]
    pub fn call_schema(&self, only: Option<&str>) -> Value {
        let calls =
            self.0.iter().filter(|function| only.is_none_or(|name| function["name"] == name));
        let call = |(index, function): (usize, &Value)| {
            let arguments = function.get("parameters").filter(|schema| schema.is_object());
            let mut arguments = arguments.cloned().unwrap_or_else(|| json!({ "type": "object" }));
            move_schema(&mut arguments, &format!("/anyOf/{index}/properties/arguments"));
            json!({
                "type": "object",
                "properties": {
                    "name": { "const": function["name"] },
                    "arguments": arguments,
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        json!({ "anyOf": calls.enumerate().map(call).collect::<Vec<_>>() })
    }

    /// The conversation for a model whose template takes no functions: calls and results, which have a
    /// role that it may not know, are said as text, and the functions, where there are any, are explained
    /// in the system's turn.
    pub(crate) fn as_text(tools: Option<&Self>, messages: &[Message]) -> Vec<Message> {
        let mut turns = turns_as_text(messages);
        let Some(tools) = tools else { return turns };
        let list: Vec<_> = tools.described().map(|tool| tool.to_string()).collect();
        let explained = format!(
            "You can call these functions, each described by a line of JSON:\n<tools>\n{}\n</tools>\n\
             To call one, answer with nothing but\n{OPEN}\n{{\"name\": \"NAME\", \"arguments\": \
             {{...}}}}\n{CLOSE}\nand you will be told its result between <tool_response> and \
             </tool_response>.",
            list.join("\n")
        );
        match turns.first_mut().filter(|first| first.role == "system") {
            Some(system) => system.content = format!("{}\n\n{explained}", system.content),
            None => turns.insert(0, Message::system(explained)),
        }
        turns
    }

    /// What is said, and the calls in it; all of it is said where it holds no call of these
    /// functions.
    #[must_use]
    pub fn parse(&self, text: &str) -> (String, Vec<ToolCall>) {
        let found = if let Some(start) = text.find(OPEN) {
            let inside = text[start..].split(OPEN).skip(1);
            let calls = inside.map(|call| call.split(CLOSE).next().unwrap_or(call).to_owned());
            Some((&text[..start], calls.collect()))
        } else if let Some((before, list)) = LISTS.iter().find_map(|sign| text.split_once(*sign)) {
            Some((before, vec![list.to_owned()]))
        } else if let Some(start) = text.find(tagged::OPEN) {
            Some((&text[..start], vec![text[start..].to_owned()]))
        } else {
            text.trim_start().starts_with(['{', '[']).then(|| ("", vec![text.to_owned()]))
        };
        let calls = found.and_then(|(before, calls): (&str, Vec<String>)| {
            let calls: Option<Vec<_>> = calls.iter().map(|call| self.calls(call)).collect();
            Some((before.trim_end().to_owned(), calls?.into_iter().flatten().collect()))
        });
        calls
            .filter(|(_, calls): &(_, Vec<_>)| !calls.is_empty())
            .unwrap_or_else(|| (text.to_owned(), Vec::new()))
    }

    /// The calls of one piece of JSON, or of several: Llama's models put a semicolon or a new line between
    /// calls that are said at once. Or those in tags.
    fn calls(&self, text: &str) -> Option<Vec<ToolCall>> {
        if text.trim_start().starts_with(tagged::OPEN) {
            return tagged::calls(self, text);
        }
        let (mut calls, mut rest) = (Vec::new(), text);
        loop {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let value = values.next()?.ok()?;
            let found = match value.as_array() {
                Some(found) => found.clone(),
                None => vec![value],
            };
            for call in found {
                calls.push(self.call(call)?);
            }
            let between = |character: char| character == ';' || character.is_whitespace();
            rest = rest[values.byte_offset()..].trim_start_matches(between);
            if rest.is_empty() {
                return Some(calls);
            }
        }
    }

    fn call(&self, call: Value) -> Option<ToolCall> {
        let Value::Object(mut call) = call else {
            return None;
        };
        let name = call.get("name")?.as_str()?.to_owned();
        self.get(&name)?;
        let arguments = call.remove("arguments").or_else(|| call.remove("parameters"));
        let arguments = match arguments {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            // Some models write the arguments as a text of JSON.
            Some(Value::String(text)) => serde_json::from_str(&text).ok()?,
            Some(_) => return None,
        };
        Some(ToolCall { id: None, name, arguments })
    }
}

/// Makes the references of a schema to parts of itself hold where it is a part of another, at `place`.
fn move_schema(schema: &mut Value, place: &str) {
    match schema {
        // A document with a name of its own is what references within it begin at, wherever it is.
        Value::Object(fields) if fields.get("$id").is_some_and(Value::is_string) => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    ("$ref", Value::String(reference)) => {
                        // Others are names or addresses, which mean the same everywhere.
                        if reference == "#" || reference.starts_with("#/") {
                            reference.insert_str(1, place);
                        }
                    }
                    // These hold values, which may look like schemas.
                    ("enum" | "const" | "default" | "example" | "examples", _) => {}
                    // The keys in these are names, which may be spelled as anything.
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions"
                        | "dependentSchemas",
                        Value::Object(named),
                    ) => named.values_mut().for_each(|schema| move_schema(schema, place)),
                    (_, value) => move_schema(value, place),
                }
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(|schema| move_schema(schema, place)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The turns with calls and results as text. Results that follow each other are one turn of the user, with
/// what the user says next: many templates refuse a role twice in a row.
fn turns_as_text(messages: &[Message]) -> Vec<Message> {
    let mut turns: Vec<Message> = Vec::new();
    let mut is_behind_result = false;
    for message in messages {
        let turn = turn_as_text(message);
        match turns.last_mut().filter(|_| is_behind_result && turn.role == "user") {
            Some(results) => results.content.push_str(&format!("\n{}", turn.content)),
            None => turns.push(turn),
        }
        is_behind_result = message.role == "tool";
    }
    turns
}

/// A turn with its calls, or with the result of one, as text.
fn turn_as_text(message: &Message) -> Message {
    let mut content = message.content.clone();
    for call in &message.calls {
        let call = json!({ "name": call.name, "arguments": call.arguments });
        let line = if content.is_empty() { "" } else { "\n" };
        content.push_str(&format!("{line}{OPEN}\n{call}\n{CLOSE}"));
    }
    if message.role == "tool" {
        return Message::user(format!("<tool_response>\n{content}\n</tool_response>"));
    }
    Message { content, calls: Vec::new(), call_id: None, ..message.clone() }
}

/// Shows what a model says as it comes, but for what may be a call.
#[derive(Debug, Clone)]
pub struct CallStream {
    tools: Tools,
    said: String,
    /// Bytes of it that have been shown.
    shown: usize,
}

impl CallStream {
    /// Of an answer that may call these.
    #[must_use]
    pub const fn new(tools: Tools) -> Self {
        Self { tools, said: String::new(), shown: 0 }
    }

    /// Takes a piece of the text, and gives what can be shown.
    pub fn push(&mut self, piece: &str) -> String {
        self.said.push_str(piece);
        let begun = self.said.trim_start();
        if begun.is_empty() || begun.starts_with(['{', '[']) {
            // It may be nothing but a call.
            return String::new();
        }
        let text = &self.said[self.shown..];
        let opening = openings().filter_map(|opening| text.find(opening)).min();
        let end = opening.unwrap_or_else(|| text.len() - open_tail_bytes(text));
        let shown = text[..end].to_owned();
        self.shown += end;
        shown
    }

    /// The text has ended: what of it is still to be shown, and the calls.
    pub fn finish(self) -> (String, Vec<ToolCall>) {
        let (text, calls) = self.tools.parse(&self.said);
        // Space before a call may have been shown, which is no part of the text any more.
        (text.get(self.shown..).unwrap_or("").to_owned(), calls)
    }
}

/// How many bytes at the end may become the sign of a call.
fn open_tail_bytes(text: &str) -> usize {
    let ends = |opening: &str| {
        (1..opening.len()).rev().find(|&bytes| text.ends_with(&opening[..bytes])).unwrap_or(0)
    };
    openings().map(ends).max().unwrap_or(0)
}

/// The signs of calls.
fn openings() -> impl Iterator<Item = &'static str> {
    [OPEN, tagged::OPEN].into_iter().chain(LISTS)
}

/// Functions that a model cannot be told of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTools {
    /// More than any conversation needs.
    #[error("{count} functions; at most {TOOLS_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A function without a name.
    #[error("function {index} has no name")]
    NoName {
        /// Which.
        index: usize,
    },
    /// A name that cannot be one.
    #[error("{name:?} is no name: up to 64 letters, digits, dots, dashes and underscores")]
    Name {
        /// The name.
        name: String,
    },
    /// Two functions of one name.
    #[error("two functions are called {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
}

#[cfg(test)]
mod tests;
