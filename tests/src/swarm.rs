//! Servers on loopback, and commands that ask them, as the tests of the whole need them.

use std::env;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Output, UmbelProcess, profile_folder, run_umbel_within};

/// How long a command may take on a machine that runs many tests at once.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// A server on free loopback ports, with an identity of its own.
pub struct Server {
    process: UmbelProcess,
    _identity: TempDir,
    tag: String,
}

impl Deref for Server {
    type Target = UmbelProcess;

    fn deref(&self) -> &UmbelProcess {
        &self.process
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut UmbelProcess {
        &mut self.process
    }
}

impl Server {
    /// What a test calls it.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Calls it something.
    pub fn set_tag(&mut self, tag: &str) {
        tag.clone_into(&mut self.tag);
    }

    /// Ends it without a word to anyone.
    pub fn kill(self) {
        self.process.kill();
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn terminate(self) -> Output {
        self.process.terminate().expect("the server stops")
    }
}

/// Starts `umbel serve` with these arguments, over QUIC and TCP.
///
/// # Panics
/// If it does not become ready.
#[must_use]
pub fn serve(arguments: &[&str]) -> Server {
    serve_on(&["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"], arguments)
}

/// Starts `umbel serve` with these arguments, listening on these addresses.
///
/// # Panics
/// If it does not become ready.
#[must_use]
pub fn serve_on(listen: &[&str], arguments: &[&str]) -> Server {
    let identity = tempfile::tempdir().expect("a folder for the identity");
    let file = identity.path().join("identity.pem");
    let mut all = with_cache();
    all.extend(["serve", "--no-mdns", "--identity"].map(str::to_owned));
    all.push(file.to_str().expect("a path of ASCII").to_owned());
    for address in listen {
        all.extend(["--listen".to_owned(), (*address).to_owned()]);
    }
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let process = UmbelProcess::start(&all).unwrap_or_else(|error| panic!("{error:#}"));
    Server { process, _identity: identity, tag: String::new() }
}

/// Runs `umbel` with these arguments to its end.
///
/// # Panics
/// If it cannot be started or does not end.
#[must_use]
pub fn umbel(arguments: &[&str]) -> Output {
    let mut all = with_cache();
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    run_umbel_within(&all, COMMAND_TIMEOUT).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The JSON that a command printed.
///
/// # Panics
/// If the command failed or printed something else.
#[must_use]
pub fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The folder of a checkpoint among the fixtures.
///
/// # Panics
/// If this repository lies under a path that is no text.
#[must_use]
pub fn checkpoint(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints").join(name);
    folder.to_str().expect("a path of ASCII").to_owned()
}

/// A folder for downloaded models, which all tests share and which stays beside the build.
///
/// # Panics
/// If the test was not built by cargo.
#[must_use]
pub fn cache() -> PathBuf {
    let test = env::current_exe().expect("a test is a program");
    profile_folder(&test).expect("cargo built it").join("test-cache")
}

fn with_cache() -> Vec<String> {
    let cache = cache().to_str().expect("a path of ASCII").to_owned();
    vec!["--cache-dir".to_owned(), cache, "--log".to_owned(), "info".to_owned()]
}
