//! Words that must not stand in a file.

use std::collections::BTreeSet;
use std::path::Path;

use super::files::File;

/// Something that is written only in certain files.
struct Rule {
    word: &'static str,
    why: &'static str,
    allowed: fn(&File) -> bool,
}

/// This file names all of them.
const HERE: &str = "tests/tests/tidy/words.rs";

const RULES: [Rule; 10] = [
    Rule { word: "#[ignore", why: "a test that does not run is none", allowed: |_| false },
    Rule {
        word: "env::var",
        why: "only `config` reads the environment",
        allowed: reads_environment,
    },
    Rule { word: "env::set_var", why: "pass it as a value", allowed: |_| false },
    Rule { word: "process::exit", why: "only `main` ends the process", allowed: is_main },
    Rule { word: "process::abort", why: "only `main` ends the process", allowed: |_| false },
    Rule { word: "unsafe_op_in_unsafe_fn", why: "say why at each operation", allowed: |_| false },
    Rule { word: "todo!(", why: "finish it", allowed: |_| false },
    Rule { word: "unimplemented!(", why: "finish it", allowed: |_| false },
    Rule { word: "\"/tmp", why: "use a temporary folder", allowed: |_| false },
    Rule { word: "/home/", why: "a path of one machine", allowed: |_| false },
];

/// Benchmarks and the harness of process tests are told by the environment where to look.
fn reads_environment(file: &File) -> bool {
    file.path == "node/src/config.rs"
        || file.path.starts_with("tests/src/")
        || file.folders().any(|folder| folder == "benches")
}

fn is_main(file: &File) -> bool {
    file.name() == "main.rs"
}

fn complaints(file: &File) -> Vec<String> {
    if file.path == HERE || file.is_generated() {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    let checkout = checkout();
    for (number, line) in (1..).zip(file.text.lines()) {
        if line.contains(&checkout) {
            complaints.push(format!("{}:{number}: a path of this machine", file.path));
        }
        for rule in RULES.iter().filter(|rule| line.contains(rule.word)) {
            if !(rule.allowed)(file) {
                let Rule { word, why, .. } = rule;
                complaints.push(format!("{}:{number}: {word}: {why}", file.path));
            }
        }
    }
    complaints
}

/// The folder in which this repository lies on this machine, as it must stand in no file.
fn checkout() -> String {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tests.parent().unwrap().to_str().unwrap();
    format!("{folder}/")
}

/// Tests that wait for a time are slow on one machine and fail on another.
fn sleeps(file: &File) -> Vec<String> {
    let product: BTreeSet<_> = file.product_lines().into_iter().map(|(number, _)| number).collect();
    (1..)
        .zip(file.text.lines())
        .filter(|(number, line)| !product.contains(number) && is_sleep(line))
        .filter(|_| file.path != HERE && file.is_rust())
        .map(|(number, _)| format!("{}:{number}: a test that sleeps: await the event", file.path))
        .collect()
}

fn is_sleep(line: &str) -> bool {
    line.contains("thread::sleep") || line.contains("time::sleep(")
}

#[test]
fn no_test_sleeps() {
    super::assert_no_complaints(sleeps);
    let text = "//! Doc.\nthread::sleep(x);\n#[cfg(test)]\nmod tests {\nthread::sleep(x);\n";
    let complaints = sleeps(&File::example("a/src/b.rs", text));
    assert_eq!(complaints, ["a/src/b.rs:5: a test that sleeps: await the event"]);
    assert_eq!(sleeps(&File::example("a/tests/b.rs", "tokio::time::sleep(x).await")).len(), 1);
}

#[test]
fn no_file_has_a_word_that_it_must_not_have() {
    super::assert_no_complaints(complaints);
}

#[test]
fn forbidden_words_are_found() {
    let of = |path: &str, text: &str| complaints(&File::example(path, text)).len();
    for rule in &RULES {
        assert_eq!(
            of("client/src/swarm.rs", &format!("let x;\n{}x", rule.word)),
            1,
            "{}",
            rule.word
        );
    }
    assert_eq!(of("docs/operating.md", &format!("see {}README.md", checkout())), 1);
    assert_eq!(of("docs/operating.md", "Put it into /home/someone/umbel."), 1);
    assert_eq!(of("node/src/config.rs", "env::var(\"HF_TOKEN\")"), 0);
    assert_eq!(of("shard/src/config.rs", "env::var(\"HF_TOKEN\")"), 1);
    assert_eq!(of("engine/benches/matmul.rs", "env::var(\"THREADS\")"), 0);
    assert_eq!(of("node/src/main.rs", "std::process::exit(1)"), 0);
}
