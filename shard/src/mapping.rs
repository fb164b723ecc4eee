//! Read-only memory maps of weight files.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

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

    /// Tells the system that these bytes will hardly be read again: their pages leave this process's
    /// memory, and come back from the file when they are read after all.
    pub(crate) fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        {
            #[allow(unsafe_code, reason = "some maps would lose what was written to them")]
            // SAFETY: the map is of a file and nobody writes to it, so a page that is read again has
            // the bytes that it had. The range may begin or end within a page: then the neighbour's
            // bytes in that page go and come back too.
            let released = unsafe {
                self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len())
            };
            if let Err(error) = released {
                tracing::debug!(%error, "pages of a weight file stay in memory");
            }
        }
        #[cfg(not(unix))]
        drop(bytes);
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// Bytes of the file that are in this process's memory (proc(5), `smaps`).
    fn resident_bytes(path: &Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let ours = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let line = ours.skip(1).find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn released_pages_leave_memory_and_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapping = Mapping::open(&path).unwrap();
        assert!(mapping.bytes() == bytes);
        assert!(resident_bytes(&path) >= 400_000);
        mapping.release(1..399_999);
        assert_eq!(resident_bytes(&path), 0);
        assert!(mapping.bytes() == bytes);
    }
}
