//! Why a model cannot be opened.

use std::path::PathBuf;

use crate::catalogue::CatalogueError;
use crate::config::ConfigError;
use crate::fetch::FetchError;
use crate::gguf::GgufError;
use crate::manifest::ManifestError;
use crate::plan::SpanOutside;
use crate::safetensors::{IndexError, SafetensorsError};
use crate::store::ReadFileError;
use crate::tokenizer::OpenTokenizerError;

/// A model that could not be opened; the message names the file, its source what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum OpenModelError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// The configuration is broken, or the model is not supported.
    #[error("cannot use the configuration in {}", .path.display())]
    Config {
        /// `config.json` or the GGUF file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// The GGUF file is broken or not supported.
    #[error("cannot use the GGUF file {}", .path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: GgufError,
    },
    /// A part of a GGUF model is not beside the one that was named.
    #[error(
        "there is no {}, one of the {count} parts of the model in {}: put them all into one folder",
        .part.display(), .named.display()
    )]
    MissingPart {
        /// The part that is missing.
        part: PathBuf,
        /// The one that was named.
        named: PathBuf,
        /// How many there are.
        count: u64,
    },
    /// A part of a GGUF model whose name does not lead to the others.
    #[error(
        "{} is one of several parts of a model, but is not called NAME-00001-of-00003.gguf, by which the \
         others would be found: give the parts their names back", .path.display()
    )]
    PartName {
        /// The part.
        path: PathBuf,
    },
    /// Files whose names say that they are parts of one GGUF model, and which are not.
    #[error(
        "{} is not the part of its model that its name says, or the parts are of several models: get \
         them once more", .path.display()
    )]
    OtherPart {
        /// The file.
        path: PathBuf,
    },
    /// A safetensors file is broken.
    #[error("cannot use the safetensors file {}", .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SafetensorsError,
    },
    /// The list of the safetensors files is broken.
    #[error("cannot use the index {}", .path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: IndexError,
    },
    /// The folder is no checkpoint.
    #[error(
        "{} has no config.json, so it is no Hugging Face checkpoint; a GGUF file is named by itself",
        .folder.display()
    )]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder has no weights that can be read.
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json; other formats of \
         weights are not supported",
        .folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// The files do not hold the tensors of the configuration.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Blocks were asked for that the model does not have.
    #[error(transparent)]
    SpanOutside(#[from] SpanOutside),
    /// The tokenizer's files are broken.
    #[error(transparent)]
    Tokenizer(#[from] OpenTokenizerError),
    /// The files could not be fetched from the hub.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The model of the catalogue could not be had.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}
