//! The files of kept adapters: a folder for each, with whose it is beside it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use umbel_coordinator::shelf::Kept;
use umbel_engine::train::PeftFiles;
use umbel_engine::train::adapter::{PEFT_CONFIG_FILE, PEFT_WEIGHTS_FILE};
use umbel_protocol::{AdapterId, PeerId};
use umbel_shard::ModelConfig;

/// Who asked to keep it. It was changed when the adapter was used last.
const OWNER: &str = "owner";

/// There where somebody else has asked for it.
const WANTED: &str = "wanted";

/// The folder.
pub(super) struct Files(PathBuf);

impl Files {
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self(folder.to_owned()))
    }

    /// What is there whole, that used longest ago first. What is there in part is removed.
    pub(super) fn kept(&self) -> Vec<Kept> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let mut kept: Vec<_> = entries.flatten().filter_map(|entry| kept(&entry.path())).collect();
        kept.sort_by_key(|(used, _)| *used);
        kept.into_iter().map(|(_, kept)| kept).collect()
    }

    /// Writes one that is not kept, whole or not at all.
    pub(super) async fn write(&self, files: PeftFiles, owner: PeerId) -> Result<(), String> {
        let (coming, folder) = (self.0.join(format!("{}.new", files.id())), self.at(files.id()));
        let write = move || {
            files.write(&coming).map_err(|error| error.to_string())?;
            let written = write_owner(&coming, owner).and_then(|()| {
                // Of an earlier one there may be files that could not be removed.
                remove_all(&folder)?;
                fs::rename(&coming, folder)
            });
            // What is left is written over, or removed at the next start.
            written.map_err(|error| error.to_string())
        };
        tokio::task::spawn_blocking(write).await.expect("writing does not panic")
    }

    /// Reads one that is what its name says.
    pub(super) async fn read(&self, id: AdapterId, model: ModelConfig) -> Option<PeftFiles> {
        let folder = self.at(id);
        let read = move || PeftFiles::read(&folder, &model).ok().filter(|files| files.id() == id);
        tokio::task::spawn_blocking(read).await.expect("reading does not panic")
    }

    /// That one is used now outlives a restart, and that somebody else has asked for it.
    pub(super) fn note_used(&self, id: AdapterId, wanted: bool) {
        let note = || -> io::Result<()> {
            let folder = self.at(id);
            if wanted {
                File::create(folder.join(WANTED))?;
            }
            let owner = File::options().write(true).open(folder.join(OWNER))?;
            owner.set_modified(SystemTime::now())
        };
        if let Err(error) = note() {
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

/// Whole on the disk before anything is named as an adapter that is kept.
fn write_owner(folder: &Path, owner: PeerId) -> io::Result<()> {
    let mut file = File::create(folder.join(OWNER))?;
    file.write_all(owner.to_string().as_bytes())?;
    file.sync_all()
}

/// Removes a folder, if it is there.
fn remove_all(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// What a folder holds, and when it was used last; what is left of one by a process that was killed, by a
/// machine without power or by a disk with errors is removed.
fn kept(folder: &Path) -> Option<(SystemTime, Kept)> {
    let name = folder.file_name()?.to_str()?;
    let Ok(id) = name.parse() else {
        if name.ends_with(".new") {
            let _stays = fs::remove_dir_all(folder);
        }
        return None;
    };
    let error = match whole(folder, id) {
        Ok(kept) => return Some(kept),
        Err(error) => error,
    };
    // Of one that cannot be read today nothing is known.
    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) {
        tracing::warn!(%id, %error, "an adapter that is not whole any more is removed");
        let _stays = fs::remove_dir_all(folder);
    }
    None
}

fn whole(folder: &Path, id: AdapterId) -> io::Result<(SystemTime, Kept)> {
    let owner = fs::read_to_string(folder.join(OWNER))?;
    let owner = owner.parse::<PeerId>();
    let owner = owner.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    let used = fs::metadata(folder.join(OWNER))?.modified()?;
    // As many as were offered: what is beside them is the server's own.
    let bytes = |file| fs::metadata(folder.join(file)).map(|file| file.len());
    let bytes = bytes(PEFT_CONFIG_FILE)? + bytes(PEFT_WEIGHTS_FILE)?;
    Ok((used, Kept { owner, id, bytes, wanted: folder.join(WANTED).exists() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of which some files are gone, or empty as after the power was.
    #[tokio::test]
    async fn what_is_not_whole_is_removed_and_can_be_kept_anew() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path()).unwrap();
        let owner = PeerId::from_public_key([7; 32]);
        let adapter = || PeftFiles { config: vec![1; 5], weights: vec![1; 9] };
        let (id, at) = (adapter().id(), files.at(adapter().id()));
        let expected = [Kept { owner, id, bytes: 14, wanted: false }];
        let spoil: [&dyn Fn(); 3] = [
            &|| fs::write(at.join(OWNER), "").unwrap(),
            &|| fs::remove_file(at.join(OWNER)).unwrap(),
            &|| fs::remove_file(at.join(PEFT_WEIGHTS_FILE)).unwrap(),
        ];
        for spoil in spoil {
            files.write(adapter(), owner).await.unwrap();
            assert_eq!(files.kept(), expected);
            spoil();
            // Whoever offers it before the next start is not refused.
            files.write(adapter(), owner).await.unwrap();
            assert_eq!(files.kept(), expected);
            spoil();
            assert!(files.kept().is_empty());
            assert!(!at.exists(), "it takes no room that nobody counts");
        }
    }

    #[tokio::test]
    async fn what_was_used_last_comes_last_and_has_the_bytes_of_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path()).unwrap();
        let owner = PeerId::from_public_key([7; 32]);
        let adapter = |number| PeftFiles { config: vec![number; 5], weights: vec![number; 9] };
        let ids = [1, 2, 3].map(|number| adapter(number).id());
        for (number, seconds) in (1..).zip([10, 20, 30]) {
            let adapter = adapter(number);
            let owner_file = files.at(adapter.id()).join(OWNER);
            files.write(adapter, owner).await.unwrap();
            let past = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            File::options().write(true).open(owner_file).unwrap().set_modified(past).unwrap();
        }
        files.note_used(ids[0], true);
        let kept = |id, wanted| Kept { owner, id, bytes: 14, wanted };
        let expected = [kept(ids[1], false), kept(ids[2], false), kept(ids[0], true)];
        assert_eq!(files.kept(), expected);
        files.note_used(ids[1], false);
        assert_eq!(files.kept().last(), Some(&kept(ids[1], false)));
    }
}
