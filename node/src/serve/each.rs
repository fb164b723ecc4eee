//! A server on each GPU of this machine: processes of their own, so that one that fails leaves the
//! others alone.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use umbel_engine::Gpu;
use umbel_net::Multiaddr;
use umbel_net::multiaddr::Protocol;

use super::Stop;
use crate::args::ServeArguments;
use crate::device::DeviceWish;

/// Beyond the time that its clients have, until a server that was told to stop is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Flags that are said anew to each server.
const OWN_FLAGS: [&str; 5] =
    ["--device", "--identity", "--listen", "--metrics", "--stop-with-stdin"];

/// Serves on every GPU until a signal; each server prints its `ready` line.
///
/// # Errors
/// Where there is no GPU, where a flag can be meant for one server alone, or where no server is left.
pub(crate) async fn serve_on_each(arguments: &ServeArguments) -> anyhow::Result<()> {
    refuse_what_is_for_one(arguments)?;
    let count = Gpu::count()?;
    ensure!(count > 0, "there is no GPU on this machine; serve on the processor: --device cpu");
    let mut stop = Stop::listen(arguments)?;
    let mut servers = Servers::default();
    let result = tokio::select! {
        result = servers.run(arguments, count) => result,
        () = stop.requested() => Ok(()),
    };
    let patience = Duration::from_secs(arguments.drain_timeout.into()) + STOP_TIMEOUT;
    tokio::select! {
        () = servers.stop(patience) => {}
        // Those that are left are killed with their handles.
        () = stop.requested() => {}
    }
    result
}

fn refuse_what_is_for_one(arguments: &ServeArguments) -> anyhow::Result<()> {
    let given = [
        ("--blocks", arguments.blocks.is_some()),
        ("--announce", !arguments.announce.is_empty()),
        ("--gateway", arguments.gateway.is_some()),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        bail!(
            "{flag} is for one server, and --device all starts one for each GPU: start them one by \
             one, with --device cuda:0, cuda:1 and so on"
        );
    }
    Ok(())
}

#[derive(Default)]
struct Servers {
    running: JoinSet<(usize, std::io::Result<ExitStatus>)>,
    /// What keeps each of them from stopping.
    stdins: Vec<ChildStdin>,
}

impl Servers {
    /// Starts one after the other, each at the address of an earlier one, so that it takes other blocks;
    /// then waits as long as one is left.
    async fn run(&mut self, arguments: &ServeArguments, count: usize) -> anyhow::Result<()> {
        let mut known: Option<String> = None;
        for number in 0..count {
            let typed = std::env::args_os().skip(1);
            let mut command = command(arguments, number, known.as_deref(), typed)?;
            let mut child = command.spawn().context("a server cannot be started")?;
            self.stdins.extend(child.stdin.take());
            let ready = forward(child.stdout.take().context("stdout is piped")?);
            self.running.spawn(async move { (number, child.wait().await) });
            known = self.until_ready(ready).await?.or(known);
        }
        while !self.running.is_empty() {
            self.one_ended().await;
        }
        bail!("no server is left");
    }

    /// The address of the server that was started last, unless it ended before it was ready.
    async fn until_ready(
        &mut self,
        mut ready: mpsc::Receiver<String>,
    ) -> anyhow::Result<Option<String>> {
        loop {
            tokio::select! {
                biased;
                address = ready.recv() => return Ok(address),
                () = self.one_ended(), if !self.running.is_empty() => {}
            }
        }
    }

    async fn one_ended(&mut self) {
        match self.running.join_next().await {
            Some(Ok((number, Ok(status)))) => {
                tracing::error!(gpu = number, %status, "the server on this GPU has ended; the others go on");
            }
            Some(Ok((number, Err(error)))) => {
                tracing::error!(gpu = number, %error, "the server on this GPU cannot be watched");
            }
            Some(Err(error)) => tracing::error!(%error, "a server is watched no more"),
            None => {}
        }
    }

    /// Asks every server to stop, and waits for all.
    async fn stop(&mut self, patience: Duration) {
        self.stdins.clear();
        let all = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("a server does not stop and is killed");
        }
    }
}

/// Prints what a server prints; the result has its address when it is ready, and ends with it.
fn forward(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, ready) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Err(error) = writeln!(std::io::stdout(), "{line}") {
                tracing::warn!(%error, "nobody reads stdout");
            }
            if let Some(address) = line.strip_prefix("ready ") {
                // Whoever waits for it takes the first; others are as good.
                _ = sender.try_send(address.to_owned());
            }
        }
    });
    ready
}

/// The server of a GPU: what was typed, but for what each has to itself, and an earlier one's address. That
/// is no `--join`, which would take the place of what a file of settings says there; and an invite in such
/// a file stays out of the command line, which others on the machine can see.
fn command(
    arguments: &ServeArguments,
    number: usize,
    beside: Option<&str>,
    typed: impl Iterator<Item = OsString>,
) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
    let mut typed: Vec<_> = typed.collect();
    // Behind two hyphens a flag would be taken for something else.
    let end = typed.iter().position(|word| word == "--").unwrap_or(typed.len());
    let behind = typed.split_off(end);
    command.args(without(&OWN_FLAGS, typed.into_iter()));
    command.args(["--device", &DeviceWish::Cuda(number).to_string(), "--stop-with-stdin"]);
    for address in &arguments.listen {
        command.args(["--listen", &further(address, number)?.to_string()]);
    }
    if let Some(file) = &arguments.identity {
        command.arg("--identity").arg(key(file, number));
    }
    if let Some(mut metrics) = arguments.metrics {
        metrics.set_port(port(metrics.port(), number)?);
        command.args(["--metrics", &metrics.to_string()]);
    }
    if let Some(address) = beside {
        command.args(["--beside", address]);
    }
    command.args(behind);
    // In a group of its own: a Ctrl-C reaches this process, which asks all to stop.
    command.process_group(0).kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command)
}

/// Words without some flags and what they say.
fn without(flags: &[&str], words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = words;
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        if !flags.contains(&name) {
            kept.push(word);
        } else if !text.contains('=') && name != "--stop-with-stdin" {
            words.next();
        }
    }
    kept
}

/// The file of the key of a GPU's server: `key.pem`, `key-1.pem` and so on.
fn key(file: &Path, number: usize) -> PathBuf {
    let (Some(stem), true) = (file.file_stem(), number > 0) else {
        return file.to_owned();
    };
    let mut name = stem.to_owned();
    name.push(format!("-{number}"));
    if let Some(extension) = file.extension() {
        name.push(".");
        name.push(extension);
    }
    file.with_file_name(name)
}

/// The address at which the server of a GPU listens: the ports behind those that were named.
fn further(address: &Multiaddr, number: usize) -> anyhow::Result<Multiaddr> {
    let moved = address.iter().map(|part| {
        if let Protocol::Tcp(first) = part {
            port(first, number).map(Protocol::Tcp)
        } else if let Protocol::Udp(first) = part {
            port(first, number).map(Protocol::Udp)
        } else {
            Ok(part)
        }
    });
    moved.collect::<anyhow::Result<Multiaddr>>()
}

/// A port that is 0 is any free one.
fn port(first: u16, number: usize) -> anyhow::Result<u16> {
    if first == 0 {
        return Ok(0);
    }
    let number = u16::try_from(number).ok();
    number.and_then(|number| first.checked_add(number)).context("there is no port behind 65535")
}

#[cfg(test)]
mod tests {
    use tempfile::{NamedTempFile, TempDir};
    use umbel_net::{Invite, Join, SwarmKey};

    use super::*;
    use crate::args::Command as Asked;
    use crate::settings;

    const FIRST: &str = "/ip4/10.0.0.8/tcp/4001";

    fn serve(words: Vec<OsString>) -> ServeArguments {
        let words = [vec!["umbel".into()], words].concat();
        let read = settings::read(words).unwrap_or_else(|error| panic!("{error}"));
        let Asked::Serve(arguments) = read.arguments.command else { panic!("no server") };
        *arguments
    }

    fn invite(folder: &TempDir) -> String {
        let key = SwarmKey::create(&folder.path().join("key")).unwrap();
        let addresses = vec!["/ip4/10.0.0.7/tcp/4001".parse().unwrap()];
        Invite { key, addresses }.to_string()
    }

    #[test]
    fn an_invite_in_a_file_of_settings_is_every_servers_and_in_no_command_line() {
        let (folder, mut file) = (TempDir::new().unwrap(), NamedTempFile::new().unwrap());
        let invite = invite(&folder);
        write!(file, "[serve]\njoin = ['{invite}']\n").unwrap();
        let typed = ["--config", file.path().to_str().unwrap(), "serve", "--device", "all"];
        let typed = typed.map(OsString::from);
        let arguments = serve(typed.to_vec());
        for (number, beside) in [(0, None), (1, Some(FIRST))] {
            let command = command(&arguments, number, beside, typed.iter().cloned()).unwrap();
            let words: Vec<_> = command.as_std().get_args().map(OsString::from).collect();
            assert!(words.iter().all(|word| *word != *invite), "{words:?}");
            let server = serve(words);
            assert!(matches!(server.join.as_slice(), [Join::Invite(_)]), "{:?}", server.join);
            let beside: Vec<Multiaddr> =
                beside.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(server.beside, beside);
        }
    }

    #[test]
    fn a_model_behind_two_hyphens_is_every_servers_model() {
        let typed = ["serve", "--device", "all", "--", "--device"].map(OsString::from);
        let arguments = serve(typed.to_vec());
        let command = command(&arguments, 1, Some(FIRST), typed.into_iter()).unwrap();
        let server = serve(command.as_std().get_args().map(OsString::from).collect());
        assert_eq!((server.model.name(), server.device), ("--device", DeviceWish::Cuda(1)));
        assert!(server.stop_with_stdin && server.beside.len() == 1);
    }

    #[test]
    fn each_server_has_ports_of_its_own() {
        let address: Multiaddr = "/ip4/0.0.0.0/udp/4001/quic-v1".parse().unwrap();
        assert_eq!(further(&address, 2).unwrap().to_string(), "/ip4/0.0.0.0/udp/4003/quic-v1");
        let any: Multiaddr = "/ip4/0.0.0.0/tcp/0".parse().unwrap();
        assert_eq!(further(&any, 2).unwrap(), any);
        assert!(port(65_535, 1).is_err());
        assert_eq!(key(Path::new("/a/key.pem"), 1), Path::new("/a/key-1.pem"));
        assert_eq!(key(Path::new("/a/key"), 0), Path::new("/a/key"));
    }

    #[test]
    fn what_each_server_has_to_itself_is_said_anew() {
        let typed = "serve tiny --device all --listen=/ip4/0.0.0.0/tcp/1 --kv-tokens 64 --listen x";
        let typed = typed.split(' ').map(OsString::from);
        let kept = without(&OWN_FLAGS, typed);
        assert_eq!(kept, ["serve", "tiny", "--kv-tokens", "64"].map(OsString::from));
    }
}
