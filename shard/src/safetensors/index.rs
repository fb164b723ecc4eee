//! `model.safetensors.index.json`: which file holds which tensor.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Most files of one checkpoint: five times those of the largest.
const FILES_MAX: usize = 1024;

/// The file of each tensor of a checkpoint that is spread over several files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightIndex {
    files: BTreeMap<String, String>,
}

impl WeightIndex {
    /// Reads the text of a `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`IndexError`] where the text is broken, or a file name could lead out of the folder.
    pub fn from_json(text: &str) -> Result<Self, IndexError> {
        let wire: Wire = serde_json::from_str(text).map_err(IndexError::Json)?;
        let mut names: Vec<&String> = wire.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        if let Some(name) = names.iter().find(|name| !is_weight_file_name(name)) {
            return Err(IndexError::FileName { name: (*name).clone() });
        }
        if names.len() > FILES_MAX {
            return Err(IndexError::TooManyFiles { found: names.len(), max: FILES_MAX });
        }
        Ok(Self { files: wire.weight_map })
    }

    /// The file that holds this tensor.
    #[must_use]
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        self.files.get(tensor).map(String::as_str)
    }
}

#[derive(Deserialize)]
struct Wire {
    weight_map: BTreeMap<String, String>,
}

/// An index that is broken, or that names a file outside of the folder.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not the JSON of an index.
    #[error("the index is not the JSON that a sharded checkpoint has")]
    Json(#[source] serde_json::Error),
    /// A name with a path in it, or of another kind of file.
    #[error("the index names the file {name:?}, which is no plain name of a safetensors file")]
    FileName {
        /// The name.
        name: String,
    },
    /// More files than any checkpoint has.
    #[error("the index names {found} files; at most {max} are read")]
    TooManyFiles {
        /// How many it names.
        found: usize,
        /// How many are allowed.
        max: usize,
    },
}

/// Whether a name is that of a weight file beside the index: one path component on every system.
fn is_weight_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(plain)
        && name.ends_with(".safetensors")
}
