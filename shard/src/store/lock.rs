//! Locks between processes: the operating system lets go of them when a process dies.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::progress::{Progress, Work};

/// How long a process sleeps before it asks for a lock again.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// A lock that is held until it goes out of scope.
#[derive(Debug)]
pub(crate) struct FileLock(#[expect(dead_code, reason = "held for its lock")] File);

impl FileLock {
    /// Waits for the lock for as long as another process holds it.
    ///
    /// The file stays when the lock is gone: to delete it would let two processes hold two locks.
    pub(crate) fn wait(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        file.lock()?;
        Ok(Self(file))
    }

    /// Waits as [`Self::wait`] does, and says so where another process holds the lock: it fetches `name`,
    /// which may take it an hour.
    pub(crate) fn wait_for_fetch(
        path: &Path,
        name: &str,
        progress: &dyn Progress,
    ) -> io::Result<Self> {
        if let Some(lock) = Self::try_for(path, 1)? {
            return Ok(lock);
        }
        let label = format!("waiting for {name}, which another process fetches");
        let _work = Work::start(progress, None, &label);
        Self::wait(path)
    }

    /// Asks for the lock up to `attempts` times; `None` where another process holds it all along.
    pub(crate) fn try_for(path: &Path, attempts: u32) -> io::Result<Option<Self>> {
        let file = open(path)?;
        for attempt in 1..=attempts {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self(file))),
                Err(TryLockError::WouldBlock) if attempt < attempts => thread::sleep(RETRY_EVERY),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// `FILE.extension` beside `FILE`.
pub(crate) fn beside(file: &Path, extension: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    file.with_file_name(name)
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    File::options().create(true).truncate(false).write(true).open(path)
}
