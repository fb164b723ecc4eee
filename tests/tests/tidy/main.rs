//! The house rules that a compiler does not check.
//!
//! Each rule is a function from texts to complaints, with a test that it complains about a bad
//! example: a rule that cannot fail is no rule.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod edges;
mod files;
mod manifest;
mod purity;
mod shape;
mod words;

use files::File;

/// Fails with every complaint that `rule` has about the files of this repository.
fn assert_no_complaints(rule: impl Fn(&File) -> Vec<String>) {
    let files = files::all();
    assert!(files.len() > 20, "only {} files were found", files.len());
    let complaints: Vec<_> = files.iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}
