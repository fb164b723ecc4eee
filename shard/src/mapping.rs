//! Read-only memory maps of weight files.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A file in memory: only the pages that are touched become resident.
pub(crate) struct Mapping(Mmap);

impl Mapping {
    /// Maps the whole file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        #[allow(unsafe_code, reason = "mapping a file is the one way to hold only a span of it")]
        // SAFETY: the map is read-only and outlives no borrow of its bytes. That the file changes
        // beneath it cannot be ruled out; the cache only ever renames complete files into place and
        // never writes to them again, a local file belongs to the person who names it, and every
        // bit pattern is a valid `u8`, so that a change can give wrong numbers or end the process,
        // and nothing else.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(map))
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
