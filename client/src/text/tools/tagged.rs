//! Calls in tags: `<function=NAME>`, arguments, `</function>`.
//!
//! Qwen3-Coder says each argument between `<parameter=NAME>` and `</parameter>`, as text, whatever its type
//! is; what the function's schema does not have for a text is read as JSON. Llama's models say one object of
//! JSON. The tags in which calls end are sometimes forgotten.

use serde_json::{Map, Value};

use super::{CLOSE, Tools};
use crate::text::chat_template::ToolCall;

/// How a call begins.
pub(super) const OPEN: &str = "<function=";
const END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// The calls that a text consists of; `None` where it has something else, or a function that there is not.
pub(super) fn calls(tools: &Tools, text: &str) -> Option<Vec<ToolCall>> {
    let (mut calls, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let (name, inside) = rest.strip_prefix(OPEN)?.split_once('>')?;
        let function = tools.get(name)?;
        let (arguments, behind) = match inside.trim_start() {
            inside if inside.starts_with('{') => object(inside)?,
            inside => parameters(function, inside)?,
        };
        calls.push(ToolCall { id: None, name: name.to_owned(), arguments });
        rest = without(behind, END);
        rest = without(rest, CLOSE);
    }
    Some(calls)
}

/// What stands behind a tag, where it is there.
fn without<'a>(text: &'a str, tag: &str) -> &'a str {
    let text = text.trim_start();
    text.strip_prefix(tag).unwrap_or(text).trim_start()
}

/// Arguments as one object, and what stands behind it.
fn object(text: &str) -> Option<(Map<String, Value>, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let arguments = values.next()?.ok()?;
    Some((arguments, &text[values.byte_offset()..]))
}

/// Arguments one after the other, and what stands behind the last.
fn parameters<'a>(function: &Value, text: &'a str) -> Option<(Map<String, Value>, &'a str)> {
    let (mut arguments, mut rest) = (Map::new(), text.trim_start());
    while let Some(parameter) = rest.strip_prefix(PARAMETER) {
        let (name, inside) = parameter.split_once('>')?;
        // What is said between the tags may have any others in it.
        let end = inside.find(PARAMETER_END).or_else(|| {
            let others = [PARAMETER, END].into_iter().filter_map(|tag| inside.find(tag));
            others.min()
        });
        let end = end.unwrap_or(inside.len());
        let value = inside[..end].strip_prefix('\n').unwrap_or(&inside[..end]);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments
            .insert(name.to_owned(), typed(&function["parameters"]["properties"][name], value));
        rest = without(&inside[end..], PARAMETER_END);
    }
    Some((arguments, rest))
}

/// A value as its schema wants it.
fn typed(schema: &Value, text: &str) -> Value {
    let is_text = match &schema["type"] {
        Value::String(kind) => kind == "string",
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "string"),
        // A schema that names no type may still not be one of texts, as where it lists its values.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            !["anyOf", "oneOf", "allOf", "enum", "$ref"].iter().any(|key| schema.get(key).is_some())
        }
    };
    let as_text = || Value::String(text.to_owned());
    if is_text { as_text() } else { serde_json::from_str(text).unwrap_or_else(|_| as_text()) }
}
