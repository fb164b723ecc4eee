//! From a source to an opened model.

use std::path::Path;

use super::{Model, OpenModelError};
use crate::catalogue::{self, CatalogueModel};
use crate::fetch;
use crate::part::PartsNeeded;
use crate::progress::Progress;
use crate::source::ModelSource;
use crate::store::Cache;

mod checkpoint;
mod gguf;

impl Model {
    /// Opens a model: fetches what `parts` need and is not here, reads the configuration, lists every
    /// tensor and computes the id.
    ///
    /// Every header that is read is checked against its file and every tensor against the
    /// configuration. Digests of files are computed at the first opening, which reads each file once.
    ///
    /// # Errors
    /// [`OpenModelError`] where a file is missing, broken, not supported or cannot be fetched.
    pub fn open(
        source: &ModelSource,
        cache: &Cache,
        parts: PartsNeeded,
        progress: &dyn Progress,
    ) -> Result<Self, OpenModelError> {
        let file = |name: String, path: &Path| gguf::open(name, path, cache, parts, progress);
        match source {
            ModelSource::Folder(folder) => {
                let found = checkpoint::in_folder(folder, cache, progress)?;
                checkpoint::open(folder_name(folder), found, parts)
            }
            ModelSource::GgufFile(path) => file(gguf::model_name(path), path),
            ModelSource::Hub(repository) => {
                let found = fetch::checkpoint(repository, cache, parts, progress)?;
                checkpoint::open(repository.to_string(), found, parts)
            }
            ModelSource::Catalogue(entry) => {
                match catalogue::obtain(entry, cache, parts, progress)? {
                    CatalogueModel::GgufFile(path) => file(entry.name.to_owned(), &path),
                    CatalogueModel::Hub(repository, found) => {
                        checkpoint::open(repository.to_string(), *found, parts)
                    }
                }
            }
        }
    }
}

fn folder_name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or(folder.to_owned());
    whole.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}
