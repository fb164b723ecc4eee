//! What a person types to name a model.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::catalogue::{self, CatalogueEntry};
use crate::fetch::{HubRepository, InvalidRepository};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A model that is known by name.
    Catalogue(&'static CatalogueEntry),
    /// A repository of the Hugging Face hub.
    Hub(HubRepository),
    /// A folder with `config.json` and safetensors files.
    Folder(PathBuf),
    /// A GGUF file.
    GgufFile(PathBuf),
}

impl ModelSource {
    /// Reads a model's name, which may be a path.
    ///
    /// # Errors
    /// [`InvalidSource`] where it names nothing that is there.
    pub fn parse(text: &str) -> Result<Self, InvalidSource> {
        if let Some(entry) = catalogue::find(text) {
            return Ok(Self::Catalogue(entry));
        }
        if let Some(repository) = text.strip_prefix("hf:") {
            let invalid = |source| InvalidSource::Repository { text: text.to_owned(), source };
            return HubRepository::parse(repository).map(Self::Hub).map_err(invalid);
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        let is_gguf = extension.is_some_and(|name| name.eq_ignore_ascii_case("gguf"));
        match (path.is_file(), is_gguf) {
            (true, true) => Ok(Self::GgufFile(path.to_owned())),
            (true, false) => Err(InvalidSource::OtherFile { path: path.to_owned() }),
            (false, true) => Err(InvalidSource::NoSuchPath { path: path.to_owned() }),
            (false, false) if looks_like_path(text) => {
                Err(InvalidSource::NoSuchPath { path: path.to_owned() })
            }
            (false, false) => Err(InvalidSource::Unknown { text: text.to_owned() }),
        }
    }
}

/// `owner/name` may be a repository as well, so that a path must say so by how it begins.
fn looks_like_path(text: &str) -> bool {
    text.starts_with(['/', '.', '~', '\\']) || text.matches('/').count() > 1
}

impl FromStr for ModelSource {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        Self::parse(text)
    }
}

impl fmt::Display for ModelSource {
    /// What [`ModelSource::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalogue(entry) => f.write_str(entry.name),
            Self::Hub(repository) => write!(f, "hf:{repository}"),
            Self::Folder(path) | Self::GgufFile(path) => path.display().fmt(f),
        }
    }
}

/// A text that names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSource {
    /// Neither a known name nor a path nor a repository.
    #[error("unknown model {text:?}; {}", Forms)]
    Unknown {
        /// What was typed.
        text: String,
    },
    /// A path at which there is nothing.
    #[error("there is no file or folder {}; {}", .path.display(), Forms)]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// A file of another kind.
    #[error(
        "{} is no .gguf file; a model of safetensors files is named by their folder", .path.display()
    )]
    OtherFile {
        /// The file.
        path: PathBuf,
    },
    /// `hf:` and no repository behind it.
    #[error("{text:?} names no repository of the hub")]
    Repository {
        /// What was typed.
        text: String,
        /// What is wrong with it.
        #[source]
        source: InvalidRepository,
    },
}

/// The forms that a name may have, for a message.
struct Forms;

impl fmt::Display for Forms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = catalogue::ENTRIES.iter().map(|entry| entry.name).collect();
        write!(
            f,
            "a model is one of the catalogue ({}), hf:OWNER/NAME[@REVISION] on the Hugging Face \
             hub, a folder with config.json and safetensors files, or a .gguf file",
            names.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_form_is_read_and_shown_as_it_was_typed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.GGUF");
        fs::write(&file, "GGUF").unwrap();
        let texts = [
            "smollm2-135m",
            "hf:owner/name",
            "hf:owner/name@v1.0",
            folder.path().to_str().unwrap(),
            file.to_str().unwrap(),
        ];
        for text in texts {
            assert_eq!(ModelSource::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_unknown_model_is_told_what_there_is() {
        let error = ModelSource::parse("smollm3").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("smollm2-135m") && text.contains("hf:OWNER/NAME"), "{text}");
        let missing = ModelSource::parse("./nowhere/model.gguf").unwrap_err();
        assert!(matches!(missing, InvalidSource::NoSuchPath { .. }));
        assert!(matches!(ModelSource::parse("hf:../x"), Err(InvalidSource::Repository { .. })));
        assert!(matches!(ModelSource::parse("owner/name"), Err(InvalidSource::Unknown { .. })));
    }

    #[test]
    fn a_weight_file_is_told_to_name_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        fs::write(&file, "").unwrap();
        let error = ModelSource::parse(file.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("folder"), "{error}");
    }
}
