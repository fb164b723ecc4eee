//! Servers on loopback, and commands that ask them, as the tests of the whole need them.

use std::env;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Output, UmbelProcess, profile_folder, run_umbel_within};
use crate::shape::Front;

/// Free ports that only this machine reaches.
const LOOPBACK: [&str; 2] = ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"];

/// The flag without which links between processes of this machine do not take the way of the network.
const NO_LOCAL_LINKS: &str = "--no-local-links";

/// A server's identity, in its folder.
const IDENTITY: &str = "identity.pem";

/// How long a command may take on a machine that runs many tests at once.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// A server on free loopback ports, with an identity of its own.
pub struct Server {
    process: UmbelProcess,
    front: Option<Front>,
    identity: TempDir,
    /// What it was started with, besides its identity and where it listens.
    arguments: Vec<String>,
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

    /// The links that lead to it, if they are shaped.
    #[must_use]
    pub const fn front(&self) -> Option<&Front> {
        self.front.as_ref()
    }

    /// The file with its identity.
    #[must_use]
    pub fn identity_file(&self) -> PathBuf {
        self.identity.path().join(IDENTITY)
    }

    /// Its process, whose folder for the identity is gone from now on.
    #[must_use]
    pub fn into_process(self) -> UmbelProcess {
        self.process
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

    /// Asks it to stop, waits until it has, and starts it again as the same peer on the same ports,
    /// with some arguments more.
    ///
    /// # Panics
    /// If it does not stop in good order, or does not become ready again.
    #[must_use]
    pub fn restart(self, arguments: &[&str]) -> Self {
        let Self { process, front, identity, arguments: before, tag } = self;
        let listen = [listens(&process, "/udp/"), listens(&process, "/tcp/")];
        let stopped = process.terminate().expect("the server stops");
        assert!(stopped.status.success(), "{}", stopped.stderr);
        let listen: Vec<_> = listen.iter().flatten().map(String::as_str).collect();
        let all: Vec<_> =
            before.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let process = start(&identity, &listen, &all);
        Self { process, front, identity, arguments: before, tag }
    }
}

/// Starts `umbel serve` with these arguments, over QUIC and TCP, whose links take the way of the network
/// as between machines.
///
/// # Panics
/// If it does not become ready.
#[must_use]
pub fn serve(arguments: &[&str]) -> Server {
    serve_on(&LOOPBACK, arguments)
}

/// Starts `umbel serve` with these arguments and variables of the environment.
///
/// # Panics
/// If it does not become ready.
#[must_use]
pub fn serve_in(environment: &[(&str, &str)], arguments: &[&str]) -> Server {
    try_serve_in(environment, arguments).unwrap_or_else(|error| panic!("{error:#}"))
}

/// As [`serve_in`], where it may fail.
///
/// # Errors
/// Where it ends before it is ready; the error has its stderr.
pub fn try_serve_in(environment: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Server> {
    let arguments = [arguments, &[NO_LOCAL_LINKS]].concat();
    let identity = tempfile::tempdir()?;
    let process = try_start(&identity, environment, &LOOPBACK, &arguments)?;
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Ok(Server { process, front: None, identity, arguments, tag: String::new() })
}

/// Starts `umbel serve` with these arguments, whose links to processes of this machine stay within it.
///
/// # Panics
/// If it does not become ready.
#[must_use]
pub fn serve_locally(arguments: &[&str]) -> Server {
    serve_as_told(&LOOPBACK, arguments)
}

/// Starts `umbel serve` with these arguments behind links that are shaped; it announces some or all
/// addresses of their front.
///
/// # Panics
/// If it does not become ready.
#[must_use]
pub fn serve_behind(front: Front, announce: &[&str], arguments: &[&str]) -> Server {
    let announce: Vec<_> = announce.iter().flat_map(|address| ["--announce", address]).collect();
    let arguments = [arguments, &announce].concat();
    let mut server = serve_on(&LOOPBACK, &arguments);
    let socket = |kind: &str| {
        let address = listens(&server.process, kind).expect("it listens on both");
        let mut parts = address.split('/').skip(2).step_by(2);
        let (host, port) = (parts.next().expect("a host"), parts.next().expect("a port"));
        SocketAddr::new(host.parse().expect("a host"), port.parse().expect("a port"))
    };
    front.lead_to(socket("/udp/"), socket("/tcp/"));
    server.front = Some(front);
    server
}

/// Starts `umbel serve` with these arguments, listening on these addresses.
///
/// # Panics
/// If it does not become ready.
#[must_use]
pub fn serve_on(listen: &[&str], arguments: &[&str]) -> Server {
    serve_as_told(listen, &[arguments, &[NO_LOCAL_LINKS]].concat())
}

fn serve_as_told(listen: &[&str], arguments: &[&str]) -> Server {
    let identity = tempfile::tempdir().expect("a folder for the identity");
    let process = start(&identity, listen, arguments);
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Server { process, front: None, identity, arguments, tag: String::new() }
}

fn start(identity: &TempDir, listen: &[&str], arguments: &[&str]) -> UmbelProcess {
    try_start(identity, &[], listen, arguments).unwrap_or_else(|error| panic!("{error:#}"))
}

fn try_start(
    identity: &TempDir,
    environment: &[(&str, &str)],
    listen: &[&str],
    arguments: &[&str],
) -> anyhow::Result<UmbelProcess> {
    let file = identity.path().join(IDENTITY);
    let mut all = with_cache();
    all.extend(["serve", "--no-mdns", "--identity"].map(str::to_owned));
    all.push(file.to_str().expect("a path of ASCII").to_owned());
    for address in listen {
        all.extend(["--listen".to_owned(), (*address).to_owned()]);
    }
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    // A GPU that happens to be in the machine shall change no test.
    if !arguments.contains(&"--device") {
        all.extend(["--device", "cpu"].map(str::to_owned));
    }
    UmbelProcess::start_in(environment, &all)
}

/// Where a server has said that it listens, over UDP or TCP; it announces something else where its
/// links are shaped.
fn listens(process: &UmbelProcess, kind: &str) -> Option<String> {
    let log = process.stderr();
    let mut addresses = log.lines().filter_map(|line| line.split_once("listening address="));
    addresses.find_map(|(_, address)| address.contains(kind).then(|| address.trim().to_owned()))
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

pub(crate) fn with_cache() -> Vec<String> {
    let cache = cache().to_str().expect("a path of ASCII").to_owned();
    vec!["--cache-dir".to_owned(), cache, "--log".to_owned(), "info".to_owned()]
}
