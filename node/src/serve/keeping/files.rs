//! The files of kept adapters: a folder for each, with whose it is beside it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use umbel_engine::train::PeftFiles;
use umbel_protocol::{AdapterId, PeerId};
use umbel_shard::ModelConfig;

/// Who asked to keep it.
const OWNER: &str = "owner";

/// There where somebody else has asked for it.
const WANTED: &str = "wanted";

/// The folder.
pub(super) struct Files(PathBuf);

/// One that lies there.
pub(super) struct KeptFiles {
    pub(super) id: AdapterId,
    pub(super) owner: PeerId,
    pub(super) bytes: u64,
    pub(super) wanted: bool,
    used: SystemTime,
}

impl Files {
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self(folder.to_owned()))
    }

    /// What is there whole, the oldest first.
    pub(super) fn kept(&self) -> Vec<KeptFiles> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let mut kept: Vec<_> = entries.flatten().filter_map(|entry| kept(&entry.path())).collect();
        kept.sort_by_key(|kept| kept.used);
        kept
    }

    /// Writes one, whole or not at all.
    pub(super) async fn write(&self, files: PeftFiles, owner: PeerId) -> Result<(), String> {
        let (coming, folder) = (self.0.join(format!("{}.new", files.id())), self.at(files.id()));
        let write = move || {
            files.write(&coming).map_err(|error| error.to_string())?;
            let written = fs::write(coming.join(OWNER), owner.to_string());
            written.and_then(|()| fs::rename(&coming, folder)).map_err(|error| {
                // What is left is written over, or removed at the next start.
                error.to_string()
            })
        };
        tokio::task::spawn_blocking(write).await.expect("writing does not panic")
    }

    /// Reads one that is what its name says.
    pub(super) async fn read(&self, id: AdapterId, model: ModelConfig) -> Option<PeftFiles> {
        let folder = self.at(id);
        let read = move || PeftFiles::read(&folder, &model).ok().filter(|files| files.id() == id);
        tokio::task::spawn_blocking(read).await.expect("reading does not panic")
    }

    pub(super) fn note_wanted(&self, id: AdapterId) {
        if let Err(error) = fs::write(self.at(id).join(WANTED), []) {
            tracing::debug!(%error, "that an adapter was asked for is not noted");
        }
    }

    pub(super) fn remove(&self, id: AdapterId) {
        if let Err(error) = fs::remove_dir_all(self.at(id)) {
            tracing::warn!(%error, %id, "an adapter that is kept no more stays on the disk");
        }
    }

    fn at(&self, id: AdapterId) -> PathBuf {
        self.0.join(id.to_string())
    }
}

/// What a folder holds; what a process that was killed has left of one is removed.
fn kept(folder: &Path) -> Option<KeptFiles> {
    let name = folder.file_name()?.to_str()?;
    let Ok(id) = name.parse() else {
        if name.ends_with(".new") {
            let _stays = fs::remove_dir_all(folder);
        }
        return None;
    };
    let owner = fs::read_to_string(folder.join(OWNER)).ok()?.parse().ok()?;
    let (mut bytes, mut used) = (0, SystemTime::UNIX_EPOCH);
    for file in fs::read_dir(folder).ok()?.flatten() {
        let file = file.metadata().ok()?;
        bytes += file.len();
        used = used.max(file.modified().unwrap_or(used));
    }
    Some(KeptFiles { id, owner, bytes, wanted: folder.join(WANTED).exists(), used })
}
