//! What every manifest says, and what `.ci/run` takes from the README.

use std::fs;

use super::files::{File, root};

/// What is wrong with the manifest of a crate of the workspace.
fn complaints(file: &File) -> Vec<String> {
    // The fuzz targets are a workspace of their own: they need another compiler.
    let apart = file.text.contains("\n[workspace]\n") || file.text.starts_with("[workspace]\n");
    if file.name() != "Cargo.toml" || apart {
        return Vec::new();
    }
    let needed = ["[lints]\nworkspace = true\n", "license.workspace = true\n"];
    let missing = needed.iter().filter(|needed| !file.text.contains(**needed));
    missing.map(|missing| format!("{}: lacks {missing:?}", file.path)).collect()
}

/// The names in `[workspace.dependencies]` that stand out of order.
fn out_of_order(manifest: &str) -> Vec<&str> {
    let section = manifest.split_once("\n[workspace.dependencies]\n").map_or("", |(_, rest)| rest);
    let section = section.split("\n[").next().unwrap_or(section);
    let names: Vec<_> = section
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()))
        .filter_map(|line| line.split_once(" = ").map(|(name, _)| name))
        .collect();
    names.windows(2).filter(|pair| pair[0] > pair[1]).map(|pair| pair[1]).collect()
}

/// The commands in the first fenced block under a heading of a page.
pub(crate) fn commands<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let lines = page.lines().skip_while(|line| *line != heading);
    let block = lines.skip_while(|line| *line != "```sh").skip(1);
    block.take_while(|line| *line != "```").collect()
}

#[test]
fn every_crate_has_the_lints_and_the_licence_of_the_workspace() {
    super::assert_no_complaints(complaints);
    let bad = File::example("new/Cargo.toml", "[package]\nname = \"new\"\n");
    assert_eq!(complaints(&bad).len(), 2);
}

#[test]
fn dependencies_are_in_alphabetical_order() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert_eq!(out_of_order(&manifest), [""; 0]);
    let bad =
        "x\n[workspace.dependencies]\na = 1\nc = { x = [\n    \"z\",\n] }\nb = 1\n\n[x]\na = 1";
    assert_eq!(out_of_order(bad), ["b"]);
}

#[test]
fn the_readme_names_one_command_that_runs_all_tests() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert_eq!(commands(&readme, "## Test"), ["cargo test --workspace"]);
    let page = "## A\n```sh\na\n```\n## Test\n\ntext\n```sh\nb\nc\n```\n";
    assert_eq!(commands(page, "## Test"), ["b", "c"]);
}
