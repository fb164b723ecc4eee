//! Sizes, names and first lines of files.

use super::files::File;

/// A file of 200 lines is usual and 400 are a lot; more than this are two files.
const FILE_LINES_MAX: usize = 600;
/// `lib.rs` is a map of its crate.
const MAP_LINES_MAX: usize = 100;

/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 9] =
    ["base", "common", "helper", "helpers", "misc", "shared", "types", "util", "utils"];

fn sizes(file: &File) -> Vec<String> {
    let max = if file.name() == "lib.rs" { MAP_LINES_MAX } else { FILE_LINES_MAX };
    let lines = file.text.lines().count();
    if !file.is_rust() || file.is_generated() || lines <= max {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines; the most is {max}", file.path)]
}

fn first_line(file: &File) -> Vec<String> {
    if !file.is_rust() || file.is_generated() || file.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!("{}: does not begin with `//!` and what it is for", file.path)]
}

fn names(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    if file.name() == "mod.rs" {
        complaints.push(format!("{}: `foo.rs` beside `foo/`, not `foo/mod.rs`", file.path));
    }
    let stem = file.name().strip_suffix(".rs").unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        complaints.push(format!("{}: the name says nothing of what is inside", file.path));
    }
    complaints
}

#[test]
fn files_are_short() {
    super::assert_no_complaints(sizes);
    let lines = |path: &str, count: usize| sizes(&File::example(path, &"x\n".repeat(count)));
    assert_eq!(lines("a/src/b.rs", 600), [""; 0]);
    assert_eq!(lines("a/src/b.rs", 601), ["a/src/b.rs: 601 lines; the most is 600"]);
    assert_eq!(lines("a/src/lib.rs", 101), ["a/src/lib.rs: 101 lines; the most is 100"]);
    assert_eq!(lines("a/src/generated/b.rs", 10_000), [""; 0]);
}

#[test]
fn files_begin_with_what_they_are_for() {
    super::assert_no_complaints(first_line);
    assert_eq!(first_line(&File::example("a.rs", "use std::fs;\n//! Late.\n")).len(), 1);
    assert_eq!(first_line(&File::example("a.rs", "")).len(), 1);
}

#[test]
fn names_say_what_is_inside() {
    super::assert_no_complaints(names);
    for path in ["a/src/b/mod.rs", "a/src/utils.rs", "tests/tests/common.rs", "types.rs"] {
        assert_eq!(names(&File::example(path, "")).len(), 1, "{path}");
    }
    assert!(names(&File::example("a/src/types_of_leaf.rs", "")).is_empty());
}
