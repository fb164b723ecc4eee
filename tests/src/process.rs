//! The `umbel` binary as child processes.
//!
//! Every wait has an end, and no process outlives its handle, also where a test panics.

mod binary;
mod output;

use std::ffi::OsStr;
use std::fs;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use output::Captured;

pub(crate) use binary::profile_folder;
pub use binary::umbel_binary;

/// How long a server may take until it is ready: on a busy machine it maps and hashes its weights.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a process may take to end once it was told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(45);

/// How long a command may take unless the test says otherwise.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// The beginning of the line by which a server says where it is.
const READY: &str = "ready ";

/// A server under way. It is killed when this is dropped.
pub struct UmbelProcess {
    running: Running,
    address: String,
}

impl UmbelProcess {
    /// Starts `umbel` with these arguments and waits until it has printed `ready MULTIADDR`.
    ///
    /// # Errors
    /// Where it ends or says nothing of the kind within a minute; the error has its stderr.
    pub fn start<A: AsRef<OsStr>>(arguments: &[A]) -> anyhow::Result<Self> {
        Self::start_in(&[], arguments)
    }

    /// As [`UmbelProcess::start`], with these variables in its environment.
    ///
    /// # Errors
    /// As [`UmbelProcess::start`].
    pub fn start_in<A: AsRef<OsStr>>(
        environment: &[(&str, &str)],
        arguments: &[A],
    ) -> anyhow::Result<Self> {
        Self::once_ready(Running::spawn(environment, arguments, Stdio::null())?)
    }

    /// As [`UmbelProcess::start`], with a stdin that is open until [`UmbelProcess::close_stdin`].
    ///
    /// # Errors
    /// As [`UmbelProcess::start`].
    pub fn start_held<A: AsRef<OsStr>>(arguments: &[A]) -> anyhow::Result<Self> {
        Self::once_ready(Running::spawn(&[], arguments, Stdio::piped())?)
    }

    fn once_ready(mut running: Running) -> anyhow::Result<Self> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let ready = running.stdout.wait_for_line(READY, deadline);
        match ready {
            Some(address) => Ok(Self { running, address }),
            None => {
                // Who ends closes its stdout a moment before it has ended.
                let ended = match running.wait(deadline) {
                    Some(status) => {
                        running.stderr.wait_for_end(Instant::now() + STOP_TIMEOUT);
                        format!("it ended ({status}) before it was ready")
                    }
                    None => format!("it was not ready within {} s", READY_TIMEOUT.as_secs()),
                };
                bail!("{}: {ended}\n{}", running.name, running.stderr.text())
            }
        }
    }

    /// Starts `umbel` with these arguments, where it says nothing of being ready.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn begin<A: AsRef<OsStr>>(arguments: &[A]) -> anyhow::Result<Self> {
        let running = Running::spawn(&[], arguments, Stdio::null())?;
        Ok(Self { running, address: String::new() })
    }

    /// Where it can be reached: what followed `ready`, with `/p2p/PEERID`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The rest of the first line of its stdout that begins so, once it is there.
    pub fn wait_for_line(&mut self, beginning: &str) -> Option<String> {
        self.running.stdout.wait_for_line(beginning, Instant::now() + READY_TIMEOUT)
    }

    /// Whether it writes this to stderr within a minute.
    pub fn wait_for_stderr(&mut self, text: &str) -> bool {
        self.running.stderr.wait_for(text, Instant::now() + READY_TIMEOUT)
    }

    /// The id of the process.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.running.id
    }

    /// Memory that it has in RAM, its weights included (`VmRSS` of proc(5)).
    ///
    /// # Errors
    /// Where the process has ended, or the system has no `/proc`.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.running.id);
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        status_bytes(&status, "VmRSS:").with_context(|| format!("{path} has no VmRSS"))
    }

    /// What of that is its own, and no page of a file (`RssAnon` of proc(5)): a model's file, of which
    /// more is read the longer a process runs, is the system's to keep or to drop.
    ///
    /// # Errors
    /// As [`Self::resident_bytes`].
    pub fn anonymous_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.running.id);
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        status_bytes(&status, "RssAnon:").with_context(|| format!("{path} has no RssAnon"))
    }

    /// The most memory that it has had in RAM since [`Self::forget_peak`], or since its start (`VmHWM`
    /// of proc(5)).
    ///
    /// # Errors
    /// As [`Self::resident_bytes`].
    pub fn peak_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.running.id);
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        status_bytes(&status, "VmHWM:").with_context(|| format!("{path} has no VmHWM"))
    }

    /// Counts the peak of its memory anew from here on.
    ///
    /// # Errors
    /// Where the process has ended, or the system does not do that.
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        let path = format!("/proc/{}/clear_refs", self.running.id);
        fs::write(&path, "5").with_context(|| path.clone())
    }

    /// The names of its threads (`comm` of proc(5)).
    ///
    /// # Errors
    /// As [`Self::resident_bytes`].
    pub fn thread_names(&self) -> anyhow::Result<Vec<String>> {
        let path = format!("/proc/{}/task", self.running.id);
        let tasks = fs::read_dir(&path).with_context(|| path.clone())?;
        // One that ends while it is asked has no name any more.
        let names = tasks.flatten().flat_map(|task| fs::read_to_string(task.path().join("comm")));
        Ok(names.map(|name| name.trim_end().to_owned()).collect())
    }

    /// What it has written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.running.stderr.text()
    }

    /// What it has written to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.running.stdout.text()
    }

    /// Fails the test if it has logged an ERROR, or panicked.
    ///
    /// # Panics
    /// Where there is such a line on stderr; the message has all of it.
    pub fn assert_no_errors(&self) {
        let stderr = self.stderr();
        let errors: Vec<_> = stderr.lines().filter(|line| is_error(line)).collect();
        assert!(errors.is_empty(), "{}: {errors:#?} in\n{stderr}", self.running.name);
    }

    /// Asks it to stop (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// Where it does not within 45 seconds; it is then killed.
    pub fn terminate(mut self) -> anyhow::Result<Output> {
        self.running.signal(libc::SIGTERM);
        self.running.finish(Instant::now() + STOP_TIMEOUT)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Where it does not within two minutes; it is then killed.
    pub fn wait(self) -> anyhow::Result<Output> {
        self.running.finish(Instant::now() + COMMAND_TIMEOUT)
    }

    /// Interrupts it (SIGINT), as Ctrl-C does.
    pub fn interrupt(&mut self) {
        self.running.signal(libc::SIGINT);
    }

    /// Closes its stdin, if it is held open.
    pub fn close_stdin(&mut self) {
        drop(self.running.stdin.take());
    }

    /// Ends it without a word to anyone (SIGKILL), and waits until it has ended.
    pub fn kill(mut self) {
        self.running.kill();
    }

    /// Lets it stand still (SIGSTOP), as a machine does whose lid is closed.
    pub fn freeze(&mut self) {
        self.running.signal(libc::SIGSTOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&mut self) {
        self.running.signal(libc::SIGCONT);
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        self.running.wait(Instant::now()).is_none()
    }
}

/// What came of a process that has ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
}

impl Output {
    /// # Panics
    /// Where it has failed.
    pub fn succeeded(&self) {
        assert!(self.status.success(), "{}", self.stderr);
    }

    /// # Panics
    /// Where it has not failed with these words.
    pub fn refused(&self, words: &str) {
        assert!(!self.status.success(), "not refused: {words}");
        assert!(self.stderr.contains(words), "{}", self.stderr);
    }
}

/// Runs `umbel` with these arguments to its end, two minutes at most.
///
/// # Errors
/// Where it cannot be started or does not end; not where it ends with a failure.
pub fn run_umbel<A: AsRef<OsStr>>(arguments: &[A]) -> anyhow::Result<Output> {
    run_umbel_within(arguments, COMMAND_TIMEOUT)
}

/// Runs `umbel` with these arguments to its end, `timeout` at most.
///
/// # Errors
/// As [`run_umbel`].
pub fn run_umbel_within<A: AsRef<OsStr>>(
    arguments: &[A],
    timeout: Duration,
) -> anyhow::Result<Output> {
    Running::spawn(&[], arguments, Stdio::null())?.finish(Instant::now() + timeout)
}

/// A child process whose output is read as it comes, so that it never waits for us.
struct Running {
    /// What was started, for messages.
    name: String,
    id: u32,
    /// Where it is held open.
    stdin: Option<ChildStdin>,
    ended: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    stdout: Captured,
    stderr: Captured,
}

impl Running {
    fn spawn<A: AsRef<OsStr>>(
        environment: &[(&str, &str)],
        arguments: &[A],
        stdin: Stdio,
    ) -> anyhow::Result<Self> {
        let binary = umbel_binary()?;
        let words = arguments.iter().map(|word| word.as_ref().to_string_lossy());
        let name = format!("umbel {}", words.collect::<Vec<_>>().join(" "));
        let mut command = Command::new(&binary);
        command.args(arguments).envs(environment.iter().copied()).stdin(stdin);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", binary.display()))?;
        let stdout = Captured::read(child.stdout.take().context("stdout is piped")?);
        let stderr = Captured::read(child.stderr.take().context("stderr is piped")?);
        let (id, stdin) = (child.id(), child.stdin.take());
        let (sender, ended) = channel();
        // The one place that waits for the child, so that everyone else can do it for a time.
        thread::spawn(move || {
            if let Ok(status) = child.wait() {
                // Nobody may care any more.
                let _ = sender.send(status);
            }
        });
        Ok(Self { name, id, stdin, ended, status: None, stdout, stderr })
    }

    /// How it ended, if it does until `deadline`.
    fn wait(&mut self, deadline: Instant) -> Option<ExitStatus> {
        if self.status.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.status = self.ended.recv_timeout(left).ok();
        }
        self.status
    }

    /// Waits for the end and everything that was written until then.
    fn finish(mut self, deadline: Instant) -> anyhow::Result<Output> {
        let Some(status) = self.wait(deadline) else {
            self.kill();
            bail!("{}: it did not end in time\n{}", self.name, self.stderr.text());
        };
        // What it has started may hold its pipes open for a little longer.
        let deadline = Instant::now() + STOP_TIMEOUT;
        self.stdout.wait_for_end(deadline);
        self.stderr.wait_for_end(deadline);
        Ok(Output { status, stdout: self.stdout.text(), stderr: self.stderr.text() })
    }

    fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait(Instant::now() + STOP_TIMEOUT);
    }

    /// Sends a signal, unless the process has ended: its id may be another's by then.
    fn signal(&mut self, signal: libc::c_int) {
        if self.wait(Instant::now()).is_none()
            && let Ok(id) = libc::pid_t::try_from(self.id)
        {
            #[allow(unsafe_code, reason = "the standard library sends no signal but SIGKILL")]
            // SAFETY: kill(2) touches no memory of this process; `id` is positive, so it names one
            // process, which is our child and has not been waited for.
            unsafe {
                libc::kill(id, signal);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The number before `kB` in a line of `/proc/PID/status`.
fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether a line of a log tells of something that must not happen.
fn is_error(line: &str) -> bool {
    let level = line.split_whitespace().nth(1);
    level == Some("ERROR") || (line.starts_with("thread '") && line.contains("panicked at"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_memory_is_counted_in_bytes() {
        let status = "Name:\tumbel\nVmSize:\t  20000 kB\nVmRSS:\t    1234 kB\nThreads:\t3\n";
        assert_eq!(status_bytes(status, "VmRSS:"), Some(1234 * 1024));
        assert_eq!(status_bytes("Name:\tumbel\n", "VmRSS:"), None);
        assert_eq!(status_bytes("VmRSS:\tmany kB\n", "VmRSS:"), None);
    }

    #[test]
    fn errors_and_panics_in_a_log_are_found() {
        assert!(is_error("2026-11-23T20:00:00.000000Z ERROR node{peer=1}: broken"));
        assert!(is_error("thread 'main' (7) panicked at node/src/main.rs:1:1:"));
        assert!(!is_error("2026-11-23T20:00:00.000000Z  WARN slow; not an ERROR"));
        assert!(!is_error("error: the model is unknown"));
        assert!(!is_error(""));
    }
}
