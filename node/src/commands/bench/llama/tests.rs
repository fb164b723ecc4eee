//! What the programs print, and programs that fail.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tokio::sync::Mutex;

use super::*;

/// Held while a program is written and run: a process that another thread starts meanwhile would have
/// the program open for writing for a moment, and then it cannot be run.
static ALONE: Mutex<()> = Mutex::const_new(());

/// As `llama-bench -o json` prints it, shortened.
const BENCH: &str = r#"[
  {
    "build_commit": "unknown",
    "cpu_info": "AMD EPYC",
    "model_filename": "model.gguf",
    "n_threads": 2,
    "flash_attn": -1,
    "repack": true,
    "n_prompt": 16,
    "n_gen": 0,
    "n_depth": 0,
    "test_time": "2026-11-26T22:00:00Z",
    "avg_ns": 40000000,
    "stddev_ns": 0,
    "avg_ts": 400.125,
    "stddev_ts": 0.000000,
    "samples_ns": [ 40000000 ],
    "samples_ts": [ 400.125 ]
  }
]
"#;

/// As `llama-batched-bench --output-format jsonl` prints it, shortened.
const BATCHED: &str = r#"
{"n_kv_max": 512, "n_threads": 2, "n_threads_batch": 2, "pp": 16, "tg": 4, "pl": 2, "n_kv": 40, "t_pp": 0.5, "speed_pp": 64.0, "t_tg": 0.25, "speed_tg": 32.0, "t": 0.75, "speed": 53.3}

llama_perf_context_print: load time = 1.0 ms
"#;

/// A program that prints `said` after the shell commands `before`.
fn program(folder: &Path, before: &str, said: &str) -> PathBuf {
    fs::write(folder.join("said"), said).unwrap();
    let path = folder.join("program");
    let said = folder.join("said");
    fs::write(&path, format!("#!/bin/sh\n{before}\ncat '{}'\n", said.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

fn llama(folder: &Path, before: &str, said: &str) -> Llama {
    Llama::new(&program(folder, before, said), Path::new("model.gguf"), 2).unwrap()
}

/// What is said of `error` and its causes.
fn said(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

#[test]
fn what_the_programs_print_is_read() {
    let test = bench_test(BENCH).unwrap();
    assert_eq!((test.n_prompt, test.n_gen, test.n_depth, test.n_threads), (16, 0, 0, 2));
    assert!((test.avg_ts - 400.125).abs() < 1e-9);
    let test = batched_test(BATCHED).unwrap();
    assert_eq!((test.pl, test.pp, test.tg), (2, 16, 4));
    assert!((test.speed_tg - 32.0).abs() < 1e-9);
}

#[test]
fn what_is_no_single_measurement_is_refused() {
    for text in ["", "[]", "{", "| model | t/s |", &BENCH.replace("n_gen", "n_new")] {
        assert!(bench_test(text).is_err(), "{text}");
    }
    let two = BENCH.trim().strip_suffix(']').unwrap();
    assert!(bench_test(&format!("{two}, {}", &BENCH.trim()[1..])).is_err());
    for text in ["", "|  16 |   4 |", "{\"pp\": 16}", &format!("{BATCHED}{BATCHED}")] {
        assert!(batched_test(text).is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_program_is_told_the_file_and_the_threads() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let keep = format!("echo \"$@\" > '{}'", folder.path().join("told").display());
    let sample = llama(folder.path(), &keep, BATCHED).many(2, 16, 4).await.unwrap();
    assert!((sample.prefill - 64.0).abs() < 1e-9 && (sample.decode - 32.0).abs() < 1e-9);
    let told = fs::read_to_string(folder.path().join("told")).unwrap();
    for part in ["-m model.gguf", "-t 2", "-tb 2", "-npl 2", "-npp 16", "-ntg 4", "-c 512"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
}

#[tokio::test]
async fn another_measurement_than_the_one_asked_for_is_refused() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let asked = llama(folder.path(), "", BENCH);
    assert!((asked.test(16, 0, 0).await.unwrap() - 400.125).abs() < 1e-9);
    // The second call is for decode, and is answered with the prefill.
    assert!(said(&asked.one(16, 4).await.unwrap_err()).contains("something else"));
    let threads = Llama { threads: 3, ..asked };
    assert!(said(&threads.test(16, 0, 0).await.unwrap_err()).contains("2 threads, not 3"));
    let folder = tempfile::tempdir().unwrap();
    let still = BENCH.replace("400.125", "0.0");
    let error = llama(folder.path(), "", &still).test(16, 0, 0).await.unwrap_err();
    assert!(said(&error).contains("tokens a second"), "{error:#}");
}

#[tokio::test]
async fn a_program_that_fails_or_is_not_there_is_told_of() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let missing = Llama::new(&folder.path().join("none"), Path::new("model.gguf"), 2);
    assert!(said(&missing.unwrap_err()).contains("is no program"));
    let failing = llama(folder.path(), "echo 'unable to load model' >&2; exit 1", BENCH);
    let error = failing.test(16, 0, 0).await.unwrap_err();
    assert!(said(&error).contains("unable to load model"), "{error:#}");
    let garbage = llama(folder.path(), "", "Segmentation fault");
    assert!(said(&garbage.test(16, 0, 0).await.unwrap_err()).contains("no measurement"));
}
