//! A folder of adapters, each in a folder of its own with its id for a name, that does not grow without end.

use std::fs::{self, File};
use std::path::Path;
use std::time::SystemTime;

use umbel_protocol::AdapterId;

/// The file whose time says when an adapter was used last.
const USED: &str = "adapter_config.json";

/// Takes note that an adapter was used.
pub(super) fn touch(folder: &Path) {
    let touched = File::options().append(true).open(folder.join(USED));
    let touched = touched.and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        // It only goes earlier for that.
        tracing::debug!(%error, "when an adapter was used is not noted");
    }
}

/// Removes those used longest ago until the rest takes no more than `bytes_max`, but not `kept`. What is no
/// adapter is left alone.
pub(super) fn prune(shelf: &Path, kept: AdapterId, bytes_max: u64) {
    let Ok(entries) = fs::read_dir(shelf) else { return };
    let mut adapters: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id: AdapterId = entry.file_name().to_str()?.parse().ok()?;
            let used = fs::metadata(entry.path().join(USED)).and_then(|file| file.modified());
            let size = |file: fs::DirEntry| file.metadata().map_or(0, |file| file.len());
            let bytes: u64 = fs::read_dir(entry.path()).ok()?.flatten().map(size).sum();
            Some((id, used.unwrap_or(SystemTime::UNIX_EPOCH), bytes, entry.path()))
        })
        .collect();
    adapters.sort_by_key(|(id, used, ..)| (*id != kept, std::cmp::Reverse(*used)));
    let mut sum = 0_u64;
    for (id, _, bytes, folder) in adapters {
        sum = sum.saturating_add(bytes);
        if sum <= bytes_max || id == kept {
            continue;
        }
        match fs::remove_dir_all(&folder) {
            Ok(()) => tracing::debug!(%id, "an adapter used long ago makes room"),
            Err(error) => tracing::warn!(%error, folder = %folder.display(), "no room is made"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn put(shelf: &Path, number: u8, used: u64) -> AdapterId {
        let id = AdapterId::from_bytes([number; 32]);
        let folder = shelf.join(id.to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), [0; 90]).unwrap();
        let config = folder.join(USED);
        fs::write(&config, [0; 10]).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(used);
        File::options().append(true).open(config).unwrap().set_modified(time).unwrap();
        id
    }

    #[test]
    fn those_used_longest_ago_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = folder.path();
        let [first, second, third] = [put(shelf, 1, 10), put(shelf, 2, 20), put(shelf, 3, 30)];
        fs::write(shelf.join("notes"), [0; 1_000]).unwrap();
        let are_there = |ids: &[AdapterId]| -> Vec<bool> {
            ids.iter().map(|id| shelf.join(id.to_string()).exists()).collect()
        };
        prune(shelf, third, 300);
        assert_eq!(are_there(&[first, second, third]), [true, true, true]);
        touch(&shelf.join(first.to_string()));
        prune(shelf, third, 299);
        assert_eq!(are_there(&[first, second, third]), [true, false, true]);
        prune(shelf, third, 50);
        assert_eq!(are_there(&[first, third]), [false, true], "the newest stays in any case");
        assert!(shelf.join("notes").exists(), "it is no adapter");
    }
}
