//! The cache under bad conditions.

use std::fs;
use std::path::Path;
use std::thread;

use super::*;
use crate::progress::Silent;

fn pair(number: u32) -> (Vec<u8>, Vec<u8>) {
    (format!("key {number}").into_bytes(), format!("value {number}").into_bytes())
}

fn read(cache: &Cache, number: u32) -> Option<Vec<u8>> {
    cache.index().read_all(&[pair(number).0]).remove(0)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A handle on an index that stays open, as that of a process that dies would.
fn open_beside(folder: &Path) -> sled::Db {
    // Closing takes sled some milliseconds, which the index waits for.
    drop(FileLock::try_for(&folder.join("db"), 500).unwrap().unwrap());
    let config = sled::Config::new().path(folder).segment_size(1 << 16);
    config.flush_every_ms(None).open().unwrap()
}

/// The files of the index, with their contents.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_index_remembers() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::new(root.path().join("cache"));
    assert_eq!(read(&cache, 1), None);
    assert!(!cache.root().exists(), "to look is not to make");
    cache.index().write_all(&[pair(1), pair(2)]);
    assert_eq!(read(&cache, 1), Some(pair(1).1));
    assert_eq!(read(&cache, 2), Some(pair(2).1));
    assert_eq!(read(&cache, 3), None);
}

#[test]
fn several_processes_share_the_index() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::new(root.path());
    thread::scope(|scope| {
        for number in 0..8 {
            let cache = &cache;
            scope.spawn(move || cache.index().write_all(&[pair(number)]));
        }
    });
    for number in 0..8 {
        assert_eq!(read(&cache, number), Some(pair(number).1), "{number}");
    }
}

#[test]
fn a_damaged_index_is_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let whole = Cache::new(root.path().join("whole"));
    for number in 0..20 {
        whole.index().write_all(&[pair(number)]);
    }
    let names = files_below(&whole.root().join("index"));
    assert!(!names.is_empty());
    for (case, damaged) in names.iter().enumerate() {
        for (kind, damage) in [b"".as_slice(), b"garbage", &[0xff; 4096]].iter().enumerate() {
            let cache = Cache::new(root.path().join(format!("{case}-{kind}")));
            copy_folder(whole.root(), cache.root());
            let file = damaged.strip_prefix(whole.root()).unwrap();
            fs::write(cache.root().join(file), damage).unwrap();
            let found = read(&cache, 1);
            assert!(found.is_none() || found == Some(pair(1).1), "never another answer");
            cache.index().write_all(&[pair(1)]);
            assert_eq!(read(&cache, 1), Some(pair(1).1), "{file:?} with {kind}");
        }
    }
}

#[test]
fn a_process_that_dies_while_it_writes_leaves_a_usable_index() {
    let root = tempfile::tempdir().unwrap();
    let whole = Cache::new(root.path().join("whole"));
    for number in 0..20 {
        whole.index().write_all(&[pair(number)]);
    }
    // What is on the disk while another handle is open and writes is what a kill would leave.
    let folder = whole.root().join("index");
    let database = open_beside(&folder);
    for number in 20..40u32 {
        let (key, value) = pair(number);
        database.insert(key, value).unwrap();
        let killed = Cache::new(root.path().join(format!("killed {number}")));
        copy_folder(&folder, &killed.root().join("index"));
        let found = read(&killed, 1);
        assert_eq!(found, Some(pair(1).1), "what was flushed before stays");
        killed.index().write_all(&[pair(100)]);
        assert_eq!(read(&killed, 100), Some(pair(100).1));
    }
}

#[test]
fn an_index_that_cannot_be_had_costs_no_answer() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), "not a folder").unwrap();
    let cache = Cache::new(root.path().join("file"));
    cache.index().write_all(&[pair(1)]);
    assert_eq!(read(&cache, 1), None);
    let file = root.path().join("weights");
    fs::write(&file, "abc").unwrap();
    assert_eq!(cache.digests(&[file], &Silent).unwrap().len(), 1);
}

#[test]
fn a_digest_is_that_of_the_bytes_and_follows_their_changes() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::new(root.path().join("cache"));
    let file = root.path().join("weights");
    fs::write(&file, "abc").unwrap();
    let paths = [file.clone()];
    let first = cache.digests(&paths, &Silent).unwrap()[0];
    // FIPS 180-4, the example of one block.
    assert_eq!(first[..4], [0xba, 0x78, 0x16, 0xbf]);
    assert_eq!(cache.digests(&paths, &Silent).unwrap(), [first]);
    fs::write(&file, "abcd").unwrap();
    assert_ne!(cache.digests(&paths, &Silent).unwrap(), [first]);
    assert!(cache.digests(&[root.path().join("nothing")], &Silent).is_err());
}

#[test]
fn what_is_remembered_is_not_computed_again() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::new(root.path().join("cache"));
    let file = root.path().join("weights");
    fs::write(&file, "abc").unwrap();
    cache.remember_digest(&file, [7; 32]);
    assert_eq!(cache.digests(&[file], &Silent).unwrap(), [[7; 32]]);
}

#[test]
fn a_lock_is_held_by_one() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("deep/lock");
    let held = FileLock::wait(&path).unwrap();
    assert!(FileLock::try_for(&path, 1).unwrap().is_none());
    drop(held);
    assert!(FileLock::try_for(&path, 1).unwrap().is_some());
}

#[test]
fn a_text_is_bounded_and_utf8() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("text");
    fs::write(&file, "abc").unwrap();
    assert_eq!(read_text(&file, 3).unwrap(), "abc");
    assert!(matches!(read_text(&file, 2), Err(ReadFileError::TooLarge { .. })));
    fs::write(&file, [0xff]).unwrap();
    assert!(matches!(read_text(&file, 3), Err(ReadFileError::NotText { .. })));
    assert!(matches!(read_text(root.path(), 3), Err(ReadFileError::Io { .. })));
}
