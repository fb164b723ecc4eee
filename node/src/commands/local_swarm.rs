//! A swarm of servers on this machine, as child processes.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use umbel_net::Multiaddr;
use umbel_protocol::Span;

use crate::config::Config;

/// How long a server may take to load its blocks; the model is on this machine already.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a server may take to leave once it is asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the servers are told, besides the model.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ServerOptions {
    /// Room for so many tokens of all sessions, or for as many as a server has by itself.
    pub(super) kv_tokens: Option<u32>,
    /// Whether their links take the way of the network.
    pub(super) no_local_links: bool,
}

/// Servers that split the blocks of a model. They die with this process: their stdin is a pipe
/// from it, and they stop when it closes, even if this process was killed.
pub(super) struct LocalSwarm {
    servers: Vec<Server>,
    identities: TempDir,
}

struct Server {
    child: Child,
    address: Multiaddr,
    blocks: Span,
}

impl LocalSwarm {
    /// Starts `count` servers on free loopback ports and waits until each is ready.
    pub(super) async fn start(
        model: &str,
        block_count: u32,
        count: u32,
        options: ServerOptions,
        config: &Config,
    ) -> anyhow::Result<Self> {
        if count == 0 || count > block_count {
            bail!(
                "{block_count} blocks can be split among 1 to {block_count} servers, not {count}"
            );
        }
        let identities = tempfile::tempdir().context("no folder for the servers' identities")?;
        let mut swarm = Self { servers: Vec::new(), identities };
        for index in 0..count {
            let blocks = Span::new(index * block_count / count, (index + 1) * block_count / count)?;
            let server = swarm.start_server(model, blocks, options, config).await;
            swarm.servers.push(server.with_context(|| format!("the server of {blocks}"))?);
        }
        Ok(swarm)
    }

    /// An address by which the swarm can be joined.
    pub(super) fn address(&self) -> &Multiaddr {
        &self.servers[0].address
    }

    /// What each server serves, and where.
    pub(super) fn servers(&self) -> impl Iterator<Item = (Span, &Multiaddr)> {
        self.servers.iter().map(|server| (server.blocks, &server.address))
    }

    /// Asks every server to leave, and waits for it.
    pub(super) async fn stop(mut self) {
        for server in &mut self.servers {
            drop(server.child.stdin.take());
        }
        for server in &mut self.servers {
            // A server that does not leave is killed when its handle is dropped.
            let _stubborn = tokio::time::timeout(STOP_TIMEOUT, server.child.wait()).await;
        }
    }

    async fn start_server(
        &self,
        model: &str,
        blocks: Span,
        options: ServerOptions,
        config: &Config,
    ) -> anyhow::Result<Server> {
        let identity = self.identities.path().join(format!("{}.pem", blocks.start()));
        let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
        // Whatever a file says is said by flags here.
        command.env_remove("UMBEL_CONFIG");
        command.arg("--cache-dir").arg(&config.cache_dir);
        command.arg("--log").arg(config.log.as_deref().unwrap_or("warn"));
        if let Some(threads) = config.threads {
            command.arg("--threads").arg(threads.to_string());
        }
        if let Some(instructions) = &config.instructions {
            command.arg("--instructions").arg(instructions);
        }
        command.arg("--arithmetic").arg(config.arithmetic.to_string());
        command.args(["serve", model, "--no-mdns", "--stop-with-stdin"]);
        // All of them on one GPU would take its memory from each other.
        command.args(["--device", "cpu"]);
        command.arg("--blocks").arg(blocks.to_string());
        command.arg("--identity").arg(identity);
        if options.no_local_links {
            command.arg("--no-local-links");
        }
        if let Some(tokens) = options.kv_tokens {
            command.arg("--kv-tokens").arg(tokens.to_string());
        }
        command.args([
            "--listen",
            "/ip4/127.0.0.1/udp/0/quic-v1",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
        ]);
        if let Some(first) = self.servers.first() {
            command.arg("--join").arg(first.address.to_string());
        }
        // In a group of its own, so that a Ctrl-C meant for the chat does not reach it.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot be started")?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(READY_TIMEOUT, lines.next_line())
            .await
            .with_context(|| format!("was not ready within {} s", READY_TIMEOUT.as_secs()))??
            .context("ended before it was ready")?;
        let address = line.strip_prefix("ready ").context("said something unexpected")?.parse()?;
        Ok(Server { child, address, blocks })
    }
}
