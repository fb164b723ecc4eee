//! No clock, socket, file, environment or randomness where there must be none.

use super::files::File;

/// What a crate must not name outside its tests.
struct Rule {
    folder: &'static str,
    /// Files that belong to the crate's binary, which is not pure, or that decide nothing but when a
    /// thread sleeps.
    except: &'static [&'static str],
    forbidden: &'static [&'static str],
}

/// Clock, randomness, sockets, files, threads, and maps whose order differs from run to run.
const IMPURE: &[&str] = &[
    "std::time::Instant",
    "time::{Duration, Instant",
    "Instant::now",
    "SystemTime",
    "UNIX_EPOCH",
    "thread_rng",
    "rand::rng(",
    "OsRng",
    "getrandom",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "HashMap",
    "HashSet",
    "RandomState",
    "tokio",
];

const CLOCK: &[&str] = &["Instant", "SystemTime", "UNIX_EPOCH"];

const RULES: [Rule; 4] = [
    Rule { folder: "protocol/src/", except: &[], forbidden: IMPURE },
    Rule { folder: "coordinator/src/", except: &[], forbidden: IMPURE },
    Rule {
        folder: "simnet/src/",
        except: &["simnet/src/main.rs", "simnet/src/bin/"],
        forbidden: IMPURE,
    },
    Rule {
        folder: "engine/src/",
        except: &["engine/src/kernel/parallel/pool.rs"],
        forbidden: CLOCK,
    },
];

fn complaints(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for rule in RULES.iter().filter(|rule| file.is_rust() && file.path.starts_with(rule.folder)) {
        if rule.except.iter().any(|except| file.path.starts_with(except)) {
            continue;
        }
        for (number, line) in file.product_lines() {
            // A graph of the GPU's driver is instantiated, and reads no clock.
            let line = line.replace("Instantiate", "");
            for word in rule.forbidden.iter().filter(|word| line.contains(**word)) {
                complaints.push(format!("{}:{number}: {word} in a pure crate", file.path));
            }
        }
    }
    complaints
}

#[test]
fn pure_crates_read_no_clock_and_no_randomness() {
    super::assert_no_complaints(complaints);
}

#[test]
fn impure_lines_are_found() {
    let of = |path: &str, text: &str| complaints(&File::example(path, text));
    for word in IMPURE {
        let line = format!("let x = {word}();");
        assert!(!of("coordinator/src/session/step.rs", &line).is_empty(), "{word}");
    }
    assert_eq!(
        of("engine/src/span.rs", "//! Doc.\nlet now = Instant::now();\n"),
        ["engine/src/span.rs:2: Instant in a pure crate"]
    );
    assert!(of("engine/src/span.rs", "// Not Instant::now.\n").is_empty());
    assert!(of("engine/src/span.rs", "Instantiate::flags();").is_empty());
    assert!(of("engine/src/span/tests.rs", "let now = Instant::now();").is_empty());
    assert!(of("node/src/serve.rs", "let now = Instant::now();").is_empty());
    assert!(of("simnet/src/main.rs", "use std::fs;").is_empty());
}
