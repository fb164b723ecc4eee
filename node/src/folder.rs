//! Folders that one process at a time may use.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::bail;

/// The file in a folder that is locked while a process uses it.
const LOCK_FILE: &str = "lock";

/// Keeps others out of a folder as long as what is returned is open.
///
/// # Errors
/// Where another uses it, or the file cannot be made.
pub(crate) fn lock(folder: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(folder.join(LOCK_FILE))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another process uses the folder: stop it, or name another folder")
        }
        // As some of clusters.
        Err(TryLockError::Error(error)) => {
            let folder = folder.display();
            tracing::warn!(%error, "nothing keeps other processes out of {folder}: its file system locks no files");
            Ok(file)
        }
    }
}
