//! The form that an answer is held to.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use umbel_client::text::grammar::Grammar;

use super::error::ApiError;
use super::{Gateway, Turn};

/// The form of the answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ResponseFormat {
    /// Any text.
    Text,
    /// Any JSON object.
    JsonObject,
    /// What a schema describes.
    JsonSchema { json_schema: NamedSchema },
}

/// A schema and what it is called.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedSchema {
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    pub(super) schema: Value,
    // Every schema is kept to.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl ResponseFormat {
    /// What `schema` describes.
    pub(super) const fn of_schema(schema: Value) -> Self {
        let json_schema = NamedSchema { _name: None, _description: None, schema, _strict: None };
        Self::JsonSchema { json_schema }
    }
}

impl Gateway {
    /// What holds an answer to a form, which `param` of the request asks for; nothing where any text
    /// will do.
    pub(super) async fn grammar(
        self: &Arc<Self>,
        format: ResponseFormat,
        param: &'static str,
    ) -> Result<Option<Grammar>, ApiError> {
        let work = move |gateway: &Self| {
            let made = match &format {
                ResponseFormat::Text => return Ok(None),
                ResponseFormat::JsonObject => {
                    gateway.opened.model.grammars().and_then(|grammars| grammars.json_object())
                }
                ResponseFormat::JsonSchema { json_schema } => {
                    let grammars = gateway.opened.model.grammars();
                    grammars.and_then(|grammars| grammars.json_schema(&json_schema.schema))
                }
            };
            made.map(Some).map_err(|error| ApiError::invalid(param, error.to_string()))
        };
        self.prepare(Turn::First, work).await
    }
}
