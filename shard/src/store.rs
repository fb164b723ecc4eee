//! The cache on disk: fetched files, and an index of what need not be computed twice.
//!
//! ```text
//! ROOT/index/                              digests of files and answers of the hub (sled)
//! ROOT/catalogue/NAME/FILE                 models of the catalogue
//! ROOT/hub/OWNER--NAME/refs/REVISION       the commit that a revision was last seen at
//! ROOT/hub/OWNER--NAME/COMMIT/FILE         files of that commit
//! ```
//!
//! A file under its own name is complete and verified: it is fetched into `FILE.part` and renamed
//! when its digest is right. `FILE.lock` is held meanwhile, so that processes that start together
//! fetch it once. Nothing here is worth keeping but time: the folder may be deleted.

use std::path::{Path, PathBuf};

use crate::fetch::HubConfig;

mod digest;
mod index;
mod lock;
mod read;
mod sled_database;

pub(crate) use digest::hash_file;
pub(crate) use index::Index;
pub(crate) use lock::{FileLock, beside};
pub use read::ReadFileError;
pub(crate) use read::read_text;

#[cfg(test)]
mod tests;

/// A folder for fetched files, shared by all processes of a user, and where to fetch them.
///
/// Making one touches no file; folders are made when something is stored.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    hub: HubConfig,
}

impl Cache {
    /// The cache in the folder `root`, which fetches from the public hub without a token.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), hub: HubConfig::default() }
    }

    /// The same cache with another hub, or with a token for it.
    #[must_use]
    pub fn with_hub(self, hub: HubConfig) -> Self {
        Self { hub, ..self }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The hub that files are fetched from.
    #[must_use]
    pub const fn hub(&self) -> &HubConfig {
        &self.hub
    }

    /// The index of this cache.
    pub(crate) fn index(&self) -> Index {
        Index::new(self.root.join("index"))
    }

    /// The folder of a model of the catalogue.
    pub(crate) fn catalogue_folder(&self, name: &str) -> PathBuf {
        self.root.join("catalogue").join(name)
    }

    /// The folder of a repository of the hub.
    pub(crate) fn hub_folder(&self, owner: &str, name: &str) -> PathBuf {
        self.root.join("hub").join(format!("{owner}--{name}"))
    }
}
