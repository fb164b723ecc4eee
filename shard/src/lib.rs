//! The part of a model that one server of Umbel holds: from files to tensors.
//!
//! A [`ModelSource`] names a model; [`Model::open`] finds its files (fetching what is missing into
//! the [`Cache`]), reads the [`ModelConfig`] and lists every tensor in a [`Manifest`], whose hash is
//! the [`ModelId`](umbel_protocol::ModelId). [`Model::weights`] then maps the tensors of one
//! [`Part`], and only those, into memory.
//!
//! | module | what it holds |
//! |---|---|
//! | [`source`] | what a person types to name a model |
//! | [`config`] | `config.json` and GGUF metadata as one typed configuration |
//! | [`layout`] | which tensors a configuration asks for, with their names and shapes |
//! | [`safetensors`], [`gguf`] | the two file formats; decoders that meet hostile bytes with `Result` |
//! | [`tokenizer`] | where the tokenizer and the chat template are |
//! | [`manifest`], [`plan`], [`budget`] | which tensor is where, what a span needs, what fits |
//! | [`weight`], [`model`] | tensors in memory maps; an opened model |
//! | [`store`] | the cache on disk and its index |
//! | [`fetch`], [`catalogue`] | the Hugging Face hub; models known by name |
//!
//! The crate is synchronous, reads no environment variable and writes nowhere but in the cache.

pub mod budget;
pub mod catalogue;
mod checkpoint;
pub mod config;
pub mod fetch;
pub mod gguf;
pub mod layout;
pub mod manifest;
mod mapping;
pub mod model;
pub mod part;
pub mod plan;
pub mod progress;
pub mod safetensors;
pub mod source;
pub mod store;
pub mod tokenizer;
pub mod weight;

pub use budget::blocks_that_fit;
pub use config::{ConfigError, Experts, Family, ModelConfig, Rope, RopeScaling};
pub use fetch::HubConfig;
pub use manifest::Manifest;
pub use model::{LoadError, Model, OpenModelError};
pub use part::{BlocksNeeded, Part, PartsNeeded};
pub use progress::{Progress, Silent};
pub use source::ModelSource;
pub use store::Cache;
pub use tokenizer::{GgufTokenizer, SpecialTokens, TokenizerSource};
pub use weight::{MissingTensor, Weight, WeightType, Weights};
