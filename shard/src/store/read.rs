//! Reading small files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    /// The system refuses.
    #[error("cannot read {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Too large for what it should be.
    #[error("{} has more than {max} bytes, which is too much for such a file", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes that are read at most.
        max: u64,
    },
    /// Not a text.
    #[error("{} is not a UTF-8 text", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

impl ReadFileError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// The text of a file of at most `max` bytes.
pub(crate) fn read_text(path: &Path, max: u64) -> Result<String, ReadFileError> {
    let io = |source| ReadFileError::io(path, source);
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(io)?
        .take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > max {
        return Err(ReadFileError::TooLarge { path: path.to_owned(), max });
    }
    String::from_utf8(bytes).map_err(|_| ReadFileError::NotText { path: path.to_owned() })
}
