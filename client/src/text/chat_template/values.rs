//! What else a template is told, by the names that it has for it.

use std::fmt;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::json::{self, json_bytes};

/// Most values; templates that take some know one or two.
const VALUES_MAX: usize = 32;
/// Most bytes of all of them as JSON: they steer, and are not what is talked about.
const VALUES_BYTES_MAX: usize = 16 << 10;

/// What a template is given anyhow.
const RESERVED: [&str; 10] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "strftime_now",
    "raise_exception",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
];

/// Values that steer a template, by name: with `enable_thinking` false Qwen 3 answers at once. A template
/// that does not know a name takes no notice of it.
#[derive(Clone, Default)]
pub struct TemplateValues {
    values: Vec<(String, Value)>,
    text_bytes: usize,
}

impl TemplateValues {
    /// The fields of a JSON object.
    ///
    /// # Errors
    /// [`InvalidTemplateValues`] where they are many or long, or one has the name of something else.
    pub fn from_json(fields: Map<String, Json>) -> Result<Self, InvalidTemplateValues> {
        if fields.len() > VALUES_MAX {
            return Err(InvalidTemplateValues::TooMany { found: fields.len() });
        }
        let text_bytes = json_bytes(&fields);
        if text_bytes > VALUES_BYTES_MAX {
            return Err(InvalidTemplateValues::TooLong { bytes: text_bytes });
        }
        if let Some(name) = RESERVED.into_iter().find(|&name| fields.contains_key(name)) {
            return Err(InvalidTemplateValues::Reserved { name });
        }
        let values = fields.into_iter().map(|(name, value)| (name, json::value(value)));
        Ok(Self { values: values.collect(), text_bytes })
    }

    /// Those that ask a model that thinks before it answers for the answer alone.
    #[must_use]
    pub fn without_thinking() -> Self {
        let name = "enable_thinking".to_owned();
        let text_bytes = name.len();
        Self { values: vec![(name, Value::from(false))], text_bytes }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Value)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.clone()))
    }

    /// How long they are as text.
    pub(super) const fn text_bytes(&self) -> usize {
        self.text_bytes
    }
}

impl fmt::Debug for TemplateValues {
    /// How many there are; not what they say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.values.len();
        f.debug_struct("TemplateValues").field("count", &count).finish_non_exhaustive()
    }
}

/// Values that no template is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplateValues {
    /// More than any template knows.
    #[error("a chat template is given {VALUES_MAX} values at most, not {found}")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// More than steers a template.
    #[error(
        "the values for the chat template have {bytes} bytes as JSON; the most is {VALUES_BYTES_MAX}"
    )]
    TooLong {
        /// Their length.
        bytes: usize,
    },
    /// A name that stands for something that the template is given anyhow.
    #[error("the chat template is given {name} by other means: leave it out of the values for it")]
    Reserved {
        /// The name.
        name: &'static str,
    },
}
