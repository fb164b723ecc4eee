//! The package for Python, against swarms of three processes: the numbers of others, sessions,
//! gradients, Ctrl-C, and servers that are killed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use umbel_tests::swarm::{Server, cache, checkpoint, serve};
use umbel_tests::training::start;

/// The Python in which the package is installed, where there is one: `.ci/run` makes it.
const PYTHON: Option<&str> = option_env!("UMBEL_TEST_PACKAGE");

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// That Python, if it has these modules.
fn python(modules: &str) -> Option<&'static str> {
    let python = PYTHON.unwrap_or("python3");
    let has_them = Command::new(python).args(["-c", &format!("import {modules}")]).output();
    if has_them.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(PYTHON.is_none() || modules != "umbel", "{python} has no umbel");
    eprintln!("not tried: {python} lacks one of {modules}");
    None
}

/// A part of the script under way; it ends with this.
struct Script {
    child: Child,
    says: BufReader<ChildStdout>,
    told: ChildStdin,
}

impl Script {
    fn start(python: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(python);
        command.arg(format!("{ROOT}/python/package.py")).args(arguments);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        let told = child.stdin.take().unwrap();
        Self { child, says, told }
    }

    /// Waits until it asks for something, and says that it was done once it was.
    fn asks(&mut self, what: &str, done: impl FnOnce()) {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), what, "its error is above");
        done();
        self.told.write_all(b"done\n").unwrap();
    }

    fn ends_well(mut self) {
        assert!(self.child.wait().unwrap().success(), "its error is above");
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Three servers, each of a part of the small random model.
fn thirds() -> [Server; 3] {
    let first = start("0..1", None);
    let others = ["1..3", "3..4"].map(|blocks| start(blocks, Some(&first)));
    let [second, third] = others;
    [first, second, third]
}

/// Three servers, each of a part of the default model.
fn default_thirds() -> [Server; 3] {
    let model = "smollm2-135m";
    let first = serve(&[model, "--blocks", "0..10"]);
    let others = ["10..20", "20..30"]
        .map(|blocks| serve(&[model, "--blocks", blocks, "--join", first.address()]));
    let [second, third] = others;
    [first, second, third]
}

#[test]
fn numbers_sessions_gradients_and_errors_are_what_they_should_be() {
    let Some(python) = python("umbel") else { return };
    let servers = thirds();
    let folder = checkpoint("llama");
    Script::start(python, &["numbers", servers[0].address(), &folder]).ends_well();
    let other = checkpoint("qwen2");
    Script::start(python, &["other_model", servers[0].address(), &other]).ends_well();
    servers.iter().for_each(|server| server.assert_no_errors());
}

#[test]
fn text_comes_in_pieces_and_ctrl_c_ends_it() {
    let Some(python) = python("umbel") else { return };
    let servers = default_thirds();
    let (cache, golden) = (cache(), format!("{ROOT}/fixtures/smollm2/golden.json"));
    let arguments = ["text", servers[0].address(), cache.to_str().unwrap(), &golden];
    Script::start(python, &arguments).ends_well();
    servers.iter().for_each(|server| server.assert_no_errors());
}

#[test]
fn servers_that_are_killed_are_replaced_until_there_is_none() {
    let Some(python) = python("umbel") else { return };
    let [first, second, third] = thirds();
    let spares = [start("1..3", Some(&first)), start("3..4", Some(&first))];
    let arguments = ["failure", first.address(), &checkpoint("llama")];
    let mut script = Script::start(python, &arguments);
    script.asks("kill one", || second.kill());
    script.asks("kill the others of its blocks", || {
        spares.into_iter().for_each(Server::kill);
        third.kill();
    });
    script.asks("kill the last", || first.kill());
    script.ends_well();
}

#[test]
fn blocks_that_are_closed_while_a_thread_uses_them_stay_closed() {
    let Some(python) = python("umbel") else { return };
    let mut server = start("0..4", None);
    let arguments = ["closing", server.address(), &checkpoint("llama")];
    let mut script = Script::start(python, &arguments);
    script.asks("freeze", || server.freeze());
    script.asks("thaw", || server.thaw());
    script.ends_well();
    server.assert_no_errors();
}

#[test]
fn an_autograd_function_of_pytorch_wraps_remote_blocks() {
    let Some(python) = python("umbel, torch, numpy") else { return };
    let (small, default) = (thirds(), default_thirds());
    let (cache, folder) = (cache(), checkpoint("llama"));
    let examples = format!("{ROOT}/../client/python/examples");
    let cache = cache.to_str().unwrap();
    let addresses = (small[0].address(), default[0].address());
    let arguments = ["autograd", addresses.0, &folder, addresses.1, cache, &examples];
    Script::start(python, &arguments).ends_well();
    small.iter().chain(&default).for_each(|server| server.assert_no_errors());
}
