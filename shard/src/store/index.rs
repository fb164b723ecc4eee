//! The index: small facts that took long to find out, each of which can be found out again.
//!
//! Several server processes share one cache and sled lets one process open it, so the index is
//! opened for an instant, under a lock of its own, and closed again. A damaged index is deleted. An
//! index that cannot be used costs time and never an answer: what goes wrong is logged, and the
//! facts are found out again.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use super::lock::FileLock;
use super::sled_database::SledDatabase;

/// How often a process asks for the index before it goes on without: five seconds in all, where an
/// opening takes some ten milliseconds.
const LOCK_ATTEMPTS: u32 = 250;

/// What the index needs of a database.
pub(super) trait Database: Sized {
    /// Why it cannot be used.
    type Error: std::fmt::Display;

    /// Opens the database in `folder`, making it where there is none.
    fn open(folder: &Path) -> Result<Self, OpenError<Self::Error>>;

    /// The value of `key`.
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;

    /// Stores all `entries` or none, on disk when this returns.
    fn write(&self, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Self::Error>;
}

/// A database that could not be opened.
pub(super) enum OpenError<E> {
    /// Another handle is open.
    Busy,
    /// Its files are not what they should be.
    Damaged(E),
}

/// The index of one cache, opened anew for each question.
#[derive(Debug)]
pub(crate) struct Index {
    folder: PathBuf,
}

impl Index {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The values of `keys`, in order.
    pub(crate) fn read_all(&self, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        if keys.is_empty() || !self.folder.exists() {
            return vec![None; keys.len()];
        }
        self.with(|database: &SledDatabase| keys.iter().map(|key| database.read(key)).collect())
            .unwrap_or_else(|| vec![None; keys.len()])
    }

    /// Stores `entries`.
    pub(crate) fn write_all(&self, entries: &[(Vec<u8>, Vec<u8>)]) {
        if !entries.is_empty() {
            self.with(|database: &SledDatabase| database.write(entries));
        }
    }

    /// Asks an open database; where it turns out to be damaged, asks a new, empty one.
    fn with<D: Database, T>(&self, ask: impl Fn(&D) -> Result<T, D::Error>) -> Option<T> {
        let lock = self.folder.with_extension("lock");
        let _lock = match FileLock::try_for(&lock, LOCK_ATTEMPTS) {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                warn!(path = %lock.display(), "the cache's index is busy; going on without it");
                return None;
            }
            Err(error) => {
                warn!(path = %lock.display(), %error, "the cache's index cannot be locked");
                return None;
            }
        };
        match open_and_ask(&self.folder, &ask) {
            Answer::Given(answer) => return Some(answer),
            Answer::Busy => {
                warn!(path = %self.folder.display(), "the cache's index is busy; going on without it");
                return None;
            }
            Answer::Damaged(error) => {
                warn!(path = %self.folder.display(), error, "the cache's index is damaged; starting a new one");
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            debug!(%error, "the damaged index cannot be deleted");
        }
        match open_and_ask(&self.folder, &ask) {
            Answer::Given(answer) => Some(answer),
            Answer::Busy => None,
            Answer::Damaged(error) => {
                warn!(error, "the cache's index cannot be made anew");
                None
            }
        }
    }
}

/// What came of asking a database.
enum Answer<T> {
    Given(T),
    Busy,
    Damaged(String),
}

/// sled 0.34 panics on some damaged files where it should return an error.
fn open_and_ask<D: Database, T>(
    folder: &Path,
    ask: impl Fn(&D) -> Result<T, D::Error>,
) -> Answer<T> {
    let attempt = || match D::open(folder) {
        Ok(database) => match ask(&database) {
            Ok(answer) => Answer::Given(answer),
            Err(error) => Answer::Damaged(error.to_string()),
        },
        Err(OpenError::Busy) => Answer::Busy,
        Err(OpenError::Damaged(error)) => Answer::Damaged(error.to_string()),
    };
    catch_unwind(AssertUnwindSafe(attempt))
        .unwrap_or_else(|_| Answer::Damaged("the database panicked".to_owned()))
}
