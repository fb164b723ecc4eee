//! The files of the repository that people write.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold nothing that a person wrote: build outputs, and data that others made.
const SKIPPED_FOLDERS: [&str; 7] =
    [".git", "target", "fixtures", "golden", "corpus", "artifacts", "coverage"];

/// Endings of names of texts.
const TEXT_ENDINGS: [&str; 6] = ["md", "proto", "py", "rs", "toml", "yml"];

/// Folders are nested less deeply than this, unless a link leads round in a circle.
const DEPTH_MAX: usize = 16;

/// A text file.
pub(crate) struct File {
    /// From the root of the repository, with `/` between folders.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    /// A file that is not there, for the test of a rule.
    pub(crate) fn example(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.name().ends_with(".rs")
    }

    /// Whether a program wrote it.
    pub(crate) fn is_generated(&self) -> bool {
        self.folders().any(|folder| folder == "generated")
    }

    /// Whether all of it is built for tests and benchmarks only.
    pub(crate) fn is_test(&self) -> bool {
        self.name() == "tests.rs" || self.folders().any(|f| f == "tests" || f == "benches")
    }

    /// The names of the folders in which it lies.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &str> {
        self.path.rsplit('/').skip(1)
    }

    /// The lines that are compiled into the product, with their numbers: no comments, and nothing
    /// below `#[cfg(test)]` before a module, which is always the last thing in a file.
    pub(crate) fn product_lines(&self) -> Vec<(usize, &str)> {
        if self.is_test() {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let mut all = self.text.lines().enumerate().peekable();
        while let Some((index, line)) = all.next() {
            let next = all.peek().map_or("", |(_, next)| next.trim());
            if line.trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{') {
                break;
            }
            lines.push((index + 1, code_of(line)));
        }
        lines
    }
}

/// A line without its comment.
fn code_of(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.split(" // ").next().unwrap_or(line)
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("this crate lies in a folder of the workspace").to_owned()
}

/// Every text of the repository.
pub(crate) fn all() -> Vec<File> {
    let root = root();
    let mut files = Vec::new();
    collect(&root, &root, DEPTH_MAX, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn collect(root: &Path, folder: &Path, depth: usize, files: &mut Vec<File>) {
    assert!(depth > 0, "{} is nested too deeply", folder.display());
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_str()) {
                collect(root, &path, depth - 1, files);
            }
            continue;
        }
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        let in_ci = path
            .parent()
            .is_some_and(|parent| parent.file_name().is_some_and(|name| name == ".ci"));
        if TEXT_ENDINGS.contains(&ending) || in_ci {
            let relative = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
            files.push(File { path: relative, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

#[test]
fn comments_and_tests_are_no_part_of_the_product() {
    let text = "//! Doc.\nlet a = 1; // why\n// no\n#[cfg(test)]\nfn x() {}\n\
                #[cfg(test)]\nmod tests {\nlet b = 2;\n}\n";
    let file = File::example("a/src/b.rs", text);
    let lines: Vec<_> = file.product_lines().into_iter().filter(|(_, l)| !l.is_empty()).collect();
    assert_eq!(lines, [(2, "let a = 1;"), (4, "#[cfg(test)]"), (5, "fn x() {}")]);
    assert!(File::example("a/src/b/tests.rs", text).product_lines().is_empty());
    assert!(File::example("a/tests/b.rs", text).product_lines().is_empty());
}
