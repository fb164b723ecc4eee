//! What fuzzing has found interesting, through the same checks.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::{Path, PathBuf};

use umbel_tests::fuzz;

/// A corpus is read on every test run and kept for ever: it stays small.
const FILES_MAX: usize = 64;
const FILE_BYTES_MAX: usize = 4 << 10;

/// How many beginnings of each file are tried as well.
const CUTS: usize = 32;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Runs every file of a corpus, and files that are cut off; some must be accepted whole.
fn run(target: &str, check: fn(&[u8]) -> bool) {
    let entries = fs::read_dir(folder().join(target)).unwrap();
    let files: Vec<_> = entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(files.len() <= FILES_MAX, "{} files: `cargo fuzz cmin` makes them fewer", files.len());
    let mut accepted = 0;
    for file in &files {
        assert!(file.len() <= FILE_BYTES_MAX, "a file of {} bytes", file.len());
        accepted += usize::from(check(file));
        for cut in 0..CUTS {
            check(&file[..file.len() * cut / CUTS]);
        }
    }
    // A corpus of nothing but refused bytes checks little.
    assert!(accepted > 0, "none of {} files was accepted", files.len());
}

#[test]
fn frames() {
    run("frames", fuzz::frames);
}

#[test]
fn packed_tensors() {
    run("packed_tensor", fuzz::packed_tensor);
}

#[test]
fn announcements() {
    run("announcement", fuzz::announcement);
}

#[test]
fn gguf_headers() {
    run("gguf_header", fuzz::gguf_header);
}

#[test]
fn safetensors_headers() {
    run("safetensors_header", fuzz::safetensors_header);
}

#[test]
fn configurations() {
    run("config_json", fuzz::config_json);
}

#[test]
fn every_corpus_has_a_target() {
    let entries = fs::read_dir(folder()).unwrap();
    for entry in entries {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let target = folder().join(format!("../fuzz_targets/{name}.rs"));
        assert!(target.is_file(), "{name}");
    }
}
