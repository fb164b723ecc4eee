//! Where the `umbel` binary is.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The binary of this package, which is `umbel` under another name: cargo builds it together with
/// the tests, so that they never meet an old one.
///
/// # Errors
/// Where it is not there: the tests were then not built by cargo.
pub fn umbel_binary() -> anyhow::Result<PathBuf> {
    let test = env::current_exe().context("where is this test?")?;
    let profile = profile_folder(&test).context("the test lies outside a target folder")?;
    let binary = profile.join(format!("umbel-under-test{}", env::consts::EXE_SUFFIX));
    ensure!(binary.is_file(), "cargo has not built {}", binary.display());
    Ok(binary)
}

/// `target/debug`, from `target/debug/deps/test` or `target/debug/examples/example`.
pub(crate) fn profile_folder(test: &Path) -> Option<&Path> {
    let is_inside = |folder: &&Path| folder.ends_with("deps") || folder.ends_with("examples");
    test.ancestors().find(is_inside)?.parent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_folder_is_found_from_a_test_in_it() {
        let test = Path::new("/a/target/release/deps/swarm-0123");
        assert_eq!(profile_folder(test), Some(Path::new("/a/target/release")));
        let example = Path::new("/a/target/release/examples/kill_runs");
        assert_eq!(profile_folder(example), Some(Path::new("/a/target/release")));
        assert_eq!(profile_folder(Path::new("/usr/bin/test")), None);
    }
}
