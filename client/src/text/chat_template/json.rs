//! Descriptions of tools: JSON whose keys stay in their order, as a model was trained on them.

use std::fmt;

use minijinja::Value;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// A function that the model may ask for, described by a JSON schema.
#[derive(Clone)]
pub struct Tool {
    value: Value,
    text_bytes: usize,
}

/// A text that describes no tool.
#[derive(Debug, thiserror::Error)]
#[error("a tool is described by a JSON object")]
pub struct InvalidTool {
    /// What is wrong with it.
    #[source]
    source: serde_json::Error,
}

impl Tool {
    /// The tool that a JSON object describes, for example
    /// `{"type": "function", "function": {"name": "now", "parameters": {}}}`.
    ///
    /// # Errors
    /// [`InvalidTool`] where it is no JSON object.
    pub fn from_json(text: &str) -> Result<Self, InvalidTool> {
        let invalid = |source| InvalidTool { source };
        let Ordered(value) = serde_json::from_str(text).map_err(invalid)?;
        if value.kind() != minijinja::value::ValueKind::Map {
            return Err(invalid(serde_json::Error::custom("not an object")));
        }
        Ok(Self { value, text_bytes: text.len() })
    }

    pub(super) fn to_value(&self) -> Value {
        self.value.clone()
    }

    /// How long the text was.
    pub(super) const fn text_bytes(&self) -> usize {
        self.text_bytes
    }
}

impl fmt::Debug for Tool {
    /// How long it is; not what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tool").field("text_bytes", &self.text_bytes).finish_non_exhaustive()
    }
}

/// Anything of JSON as a value of a template.
pub(super) fn value(json: serde_json::Value) -> Value {
    let Ordered(value) =
        Ordered::deserialize(json).expect("all that JSON can say is a value of a template");
    value
}

/// How long an object is as text.
pub(super) fn json_bytes(object: &serde_json::Map<String, serde_json::Value>) -> usize {
    serde_json::to_string(object).map_or(0, |text| text.len())
}

/// A value of a template, read from JSON.
struct Ordered(Value);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OrderedVisitor).map(Self)
    }
}

struct OrderedVisitor;

impl<'de> Visitor<'de> for OrderedVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::from(()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Ordered(value)) = sequence.next_element()? {
            values.push(value);
        }
        Ok(Value::from(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut pairs: Vec<(String, Value)> = Vec::new();
        while let Some((key, Ordered(value))) = map.next_entry()? {
            pairs.push((key, value));
        }
        Ok(Value::from_pairs(pairs))
    }
}
