//! Why a configuration cannot be used.

use std::fmt::{self, Display};

use super::Family;

/// A configuration that is broken, or of a model that Umbel does not know.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field of the wrong type.
    #[error("the configuration is not the JSON that a model's config.json has")]
    Json(#[source] serde_json::Error),
    /// The same of the file beside it that says what ends an answer.
    #[error("the file is not the JSON that a model's generation_config.json has")]
    GenerationJson(#[source] serde_json::Error),
    /// A field that is needed is absent.
    #[error("the configuration has no {field}")]
    Missing {
        /// The field.
        field: String,
    },
    /// A number that no model has.
    #[error("{field} is {found}; it must be {expected}")]
    Invalid {
        /// The field.
        field: String,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
    /// A model whose blocks are computed in another way.
    #[error("the architecture {found} is not supported; supported are {}", Families)]
    UnknownArchitecture {
        /// The name as the file has it.
        found: String,
    },
    /// The two names of the architecture are of different models.
    #[error(
        "model_type is {model_type}, but the architecture is {architecture}: one of them is wrong"
    )]
    Contradiction {
        /// `model_type`.
        model_type: String,
        /// The first of `architectures`.
        architecture: String,
    },
    /// Another function inside the MLP.
    #[error("the activation {found} is not supported; supported is silu")]
    UnknownActivation {
        /// The name as the file has it.
        found: String,
    },
    /// Weights that were quantized in a way that only other programs read.
    #[error(
        "the weights are quantized with {method}, which is not supported; use the original \
         checkpoint, or a GGUF file of this model"
    )]
    Quantized {
        /// `quant_method`.
        method: String,
    },
    /// Another scaling of the rotary embedding.
    #[error(
        "the rope type {found} is not supported; supported are default, linear, llama3 and yarn"
    )]
    UnknownRopeType {
        /// The name as the file has it.
        found: String,
    },
    /// Something that changes the arithmetic in a way that is not implemented.
    #[error("{field} is {found}, which is not supported")]
    Unsupported {
        /// The field.
        field: String,
        /// What it holds.
        found: String,
    },
}

impl ConfigError {
    pub(super) fn missing(field: impl Into<String>) -> Self {
        Self::Missing { field: field.into() }
    }

    pub(super) fn invalid(
        field: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { field: field.into(), found: found.to_string(), expected: expected.into() }
    }

    pub(super) fn unsupported(field: impl Into<String>, found: impl Display) -> Self {
        Self::Unsupported { field: field.into(), found: found.to_string() }
    }
}

/// The names of the families, for a message.
struct Families;

impl Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Family::ALL.map(Family::name);
        f.write_str(&names.join(", "))
    }
}
