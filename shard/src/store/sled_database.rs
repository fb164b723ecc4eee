//! sled, the database beneath the index.

use std::path::Path;

use super::index::{Database, OpenError};
use super::lock::FileLock;

/// Bytes that sled may keep in memory: the index has a few entries for each model.
const MEMORY_BYTES: u64 = 1 << 20;

/// Bytes of a file that sled writes at once: far above an entry's, far below sled's own 512 kB.
const SEGMENT_BYTES: usize = 1 << 16;

/// An open sled database. sled itself lets one process at a time open a folder.
pub(super) struct SledDatabase(sled::Db);

/// The file in its folder that sled locks.
const LOCKED_FILE: &str = "db";
/// How often a folder that is still locked is tried: two seconds in all. sled's threads let go of it
/// some milliseconds after it was closed.
const BUSY_ATTEMPTS: u32 = 100;

impl Database for SledDatabase {
    type Error = sled::Error;

    fn open(folder: &Path) -> Result<Self, OpenError<sled::Error>> {
        // sled says that a folder is busy in a text alone, so that is asked for beforehand; nobody
        // comes between, because whoever opens the index holds a lock of its own.
        let locked = folder.join(LOCKED_FILE);
        if locked.is_file() && matches!(FileLock::try_for(&locked, BUSY_ATTEMPTS), Ok(None)) {
            return Err(OpenError::Busy);
        }
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(MEMORY_BYTES)
            .segment_size(SEGMENT_BYTES)
            // What is written is flushed by `write`; a thread of its own would outlive the opening.
            .flush_every_ms(None);
        config.open().map(Self).map_err(OpenError::Damaged)
    }

    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, sled::Error> {
        Ok(self.0.get(key)?.map(|value| value.to_vec()))
    }

    fn write(&self, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<(), sled::Error> {
        let mut batch = sled::Batch::default();
        for (key, value) in entries {
            batch.insert(key.as_slice(), value.as_slice());
        }
        self.0.apply_batch(batch)?;
        self.0.flush()?;
        Ok(())
    }
}
