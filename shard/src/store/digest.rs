//! SHA-256 of files, computed once.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use super::{Cache, ReadFileError};
use crate::manifest::Sha256Digest;
use crate::progress::{Progress, Work};

/// Bytes that are read at once: large enough that the calls do not count.
const CHUNK_BYTES: usize = 1 << 20;

impl Cache {
    /// SHA-256 of each file; those that were hashed before and have not changed are not read.
    ///
    /// Files are read, not mapped: what is hashed must not become resident.
    pub(crate) fn digests(
        &self,
        paths: &[PathBuf],
        progress: &dyn Progress,
    ) -> Result<Vec<Sha256Digest>, ReadFileError> {
        let keys = paths.iter().map(|path| key(path)).collect::<Result<Vec<_>, _>>()?;
        let known = self.index().read_all(&keys);
        let mut digests = Vec::with_capacity(paths.len());
        let mut new = Vec::new();
        for ((path, key), known) in paths.iter().zip(keys).zip(known) {
            let known = known.and_then(|bytes| Sha256Digest::try_from(bytes).ok());
            let digest = match known {
                Some(digest) => digest,
                None => {
                    let digest = hash_file(path, progress)
                        .map_err(|source| ReadFileError::io(path, source))?;
                    new.push((key, digest.to_vec()));
                    digest
                }
            };
            digests.push(digest);
        }
        self.index().write_all(&new);
        Ok(digests)
    }

    /// Notes the digest of a file that was just written, so that it is not read again.
    pub(crate) fn remember_digest(&self, path: &Path, digest: Sha256Digest) {
        if let Ok(key) = key(path) {
            self.index().write_all(&[(key, digest.to_vec())]);
        }
    }
}

/// SHA-256 of a file's bytes, read in order.
pub(crate) fn hash_file(path: &Path, progress: &dyn Progress) -> io::Result<Sha256Digest> {
    let mut file = File::open(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let work = Work::start(progress, Some(file.metadata()?.len()), &format!("verifying {name}"));
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&chunk[..count]);
        work.advance(count as u64);
    }
}

/// What a digest is filed under: the file's place, length and time of change.
fn key(path: &Path) -> Result<Vec<u8>, ReadFileError> {
    let io = |source| ReadFileError::io(path, source);
    let place = fs::canonicalize(path).map_err(io)?;
    let metadata = fs::metadata(&place).map_err(io)?;
    let changed = metadata.modified().map_err(io)?;
    let nanoseconds = match changed.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos(),
        // A clock that was wrong when the file was written: any distinct value will do.
        Err(before) => u128::MAX - before.duration().as_nanos(),
    };
    let mut key = b"sha256\0".to_vec();
    key.extend(metadata.len().to_le_bytes());
    key.extend(nanoseconds.to_le_bytes());
    key.extend(place.as_os_str().as_encoded_bytes());
    Ok(key)
}
