//! Processor, memory and disk.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use sysinfo::{DiskRefreshKind, Disks};
use umbel_engine::kernel::InstructionSet;

use super::Finding;
use crate::config::Config;
use crate::memory::Memory;

/// Memory below which a server is of little use: its links and buffers take 40 to 140 MB beside the
/// blocks, and a third of the smallest model of the catalogue, with room for a conversation, 100.
const MEMORY_BYTES_MIN: u64 = 300_000_000;

/// Room on disk below which no model is fetched: the smallest one of the catalogue takes 98 MB, and
/// as much again while it is unpacked.
const DISK_BYTES_MIN: u64 = 250_000_000;

/// Room for a model of a few billion parameters in 4 bits.
const DISK_BYTES_GOOD: u64 = 5_000_000_000;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let best = InstructionSet::all().last().map_or("portable", |set| set.name());
    let used = InstructionSet::detected().name();
    let mut findings = vec![processor(cores, used, best), judge_memory(Memory::now().ok())];
    for (what, folder) in [("models", &config.cache_dir), ("keys", &config.data_dir)] {
        findings.push(disk(what, folder, free_bytes(folder), writable(folder)));
    }
    findings
}

fn processor(cores: usize, used: &str, best: &str) -> Finding {
    let what = format!("{cores} cores, computing with {used}");
    if used != best {
        let advice = format!("it has {best}, which is faster: leave --instructions out");
        return Finding::note("processor", what, advice);
    }
    if used == "portable" {
        let advice = "there are no kernels for this processor's wide instructions: it is slow";
        return Finding::note("processor", what, advice);
    }
    Finding::good("processor", what)
}

fn judge_memory(memory: Option<Memory>) -> Finding {
    let Some(Memory { available, total }) = memory else {
        let advice = "tell `umbel serve` with --block-count, --kv-tokens and --memory-bytes";
        return Finding::note("memory", "the system does not say how much there is", advice);
    };
    let what = format!("{} of {} are free", megabytes(available), megabytes(total));
    if available < MEMORY_BYTES_MIN {
        let advice = "too little to serve blocks: end other programs, or use it as a client";
        return Finding::bad("memory", what, advice);
    }
    Finding::good("memory", what)
}

fn disk(what: &str, folder: &Path, free: Option<u64>, writable: io::Result<()>) -> Finding {
    let shown = folder.display();
    if let Err(error) = writable {
        let advice = match what {
            "models" => "make it writable, or name another folder with --cache-dir",
            _ => "make it writable, or name a file with --identity",
        };
        let found = format!("{shown}, for {what}, cannot be written to: {error}");
        return Finding::bad("disk", found, advice);
    }
    let Some(free) = free else {
        return Finding::good("disk", format!("{shown}, for {what}, can be written to"));
    };
    let found = format!("{} are free at {shown}, for {what}", megabytes(free));
    if what != "models" {
        return Finding::good("disk", found);
    }
    if free < DISK_BYTES_MIN {
        let advice = "no model fits: make room, or name another folder with --cache-dir";
        return Finding::bad("disk", found, advice);
    }
    if free < DISK_BYTES_GOOD {
        let advice = "large models do not fit: make room, or name another folder with --cache-dir";
        return Finding::note("disk", found, advice);
    }
    Finding::good("disk", found)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

/// What the disk has left on which a folder lies, or would lie.
fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = existing(folder).canonicalize().ok()?;
    let disks =
        Disks::new_with_refreshed_list_specifics(DiskRefreshKind::nothing().with_storage()).ok()?;
    let holds = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    let disk = holds.max_by_key(|disk| disk.mount_point().components().count())?;
    Some(disk.available_space())
}

/// Whether a file can be made in a folder, or the folder itself.
fn writable(folder: &Path) -> io::Result<()> {
    tempfile::tempfile_in(existing(folder)).map(drop)
}

/// The folder, or the nearest one above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.exists());
    found.filter(|found| !found.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn little_memory_is_bad_and_unknown_memory_is_noted() {
        let of = |available, total| judge_memory(Some(Memory { available, total }));
        assert_eq!(of(100_000_000, 8_000_000_000).grade, Grade::Bad);
        assert_eq!(of(200_000_000, 512_000_000).what, "200 MB of 512 MB are free");
        assert_eq!(of(4_000_000_000, 8_000_000_000).grade, Grade::Good);
        assert_eq!(judge_memory(None).grade, Grade::Note);
    }

    #[test]
    fn slower_instructions_than_there_are_get_a_note() {
        assert_eq!(processor(4, "avx2", "avx2").grade, Grade::Good);
        assert_eq!(processor(4, "avx2", "avx512").grade, Grade::Note);
        assert_eq!(processor(4, "portable", "portable").grade, Grade::Note);
    }

    #[test]
    fn a_full_or_closed_disk_is_bad() {
        let at = |free| disk("models", Path::new("x"), Some(free), Ok(())).grade;
        assert_eq!(
            [at(0), at(1_000_000_000), at(100_000_000_000)],
            [Grade::Bad, Grade::Note, Grade::Good]
        );
        let closed = Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let finding = disk("keys", Path::new("x"), Some(u64::MAX), closed);
        assert_eq!(finding.grade, Grade::Bad);
        assert!(finding.advice.is_some_and(|advice| advice.contains("--identity")));
    }

    #[test]
    fn a_folder_that_is_still_to_be_made_counts_where_it_will_be() {
        let folder = tempfile::tempdir().unwrap();
        assert!(writable(&folder.path().join("a/b")).is_ok());
        assert!(free_bytes(folder.path()).is_some());
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(writable(&file.join("a")).is_err(), "a file holds no folder");
    }
}
