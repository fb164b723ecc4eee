//! A gateway under many streaming clients: what they noticed, and what is left behind.

mod client;
mod given_up;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::gateway::Gateway;
use crate::process::UmbelProcess;
use crate::swarm::{Server, serve};

use client::End;
pub use client::Notes;

/// Between two looks at the memory of all processes.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long sessions may take to end after the last client has gone, on a busy machine.
const ENDING_TIMEOUT: Duration = Duration::from_secs(60);

/// Warnings of each process that are shown when something fails.
const WARNINGS_MAX: usize = 8;

/// Free ports that only this machine reaches.
const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:0"];

/// How much is asked, and for how long.
#[derive(Debug, Clone)]
pub struct Load {
    /// Clients that stream at the same time.
    pub clients: usize,
    /// For so long new answers are begun; those under way then come to their end.
    pub duration: Duration,
    /// Answers that the gateway gives at once.
    pub answers: usize,
    /// Requests that wait for their turn; further ones are turned away.
    pub waiting: usize,
    /// Most tokens of an answer.
    pub answer_tokens: u32,
    /// Tokens of each server's cache. Pages of ended sessions are kept while there is room, so
    /// memory is flat only once this is full.
    pub kv_tokens: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What all clients noticed.
    pub notes: Notes,
    /// Sessions that the servers have opened.
    pub sessions_opened: u64,
    /// Hops that lost their places, by what the gateway's log says of why, numbers left out.
    pub given_up: BTreeMap<String, usize>,
    /// Resident bytes of each process that are of no file, the gateway first: at the first look, and
    /// then at each.
    pub resident: Vec<Vec<u64>>,
    /// How long the last session took to end after the last client had gone.
    pub ending: Duration,
}

/// A swarm of three servers of SmolLM2, a gateway in front of it, and clients that stream from it.
///
/// Ends with no session on any server, or with an error that says how many there are.
///
/// # Errors
/// Where a process fails, a session is left behind, or the first thing that a client noticed and
/// should not have.
pub fn run(load: &Load) -> anyhow::Result<Outcome> {
    let swarm = Soaked::start(load)?;
    let end = End::default();
    let mut outcome = Outcome::default();
    let url = swarm.gateway.url("/v1/chat/completions");
    thread::scope(|scope| {
        let clients: Vec<_> = (0..load.clients)
            .map(|number| {
                let (url, end) = (url.as_str(), &end);
                scope.spawn(move || client::ask_on(number, url, load.answer_tokens, end))
            })
            .collect();
        let looked = swarm.look_for(load.duration, &end, &mut outcome.resident);
        end.comes();
        for client in clients {
            outcome.notes.add(client.join().expect("a client does not panic")?);
        }
        looked
    })
    .map_err(|error| error.context(swarm.warnings()))?;
    outcome.ending = swarm.wait_for_no_sessions()?;
    swarm.look(&mut outcome.resident)?;
    for url in &swarm.metrics {
        outcome.sessions_opened += counted(url, "umbel_sessions_opened_total")?;
    }
    outcome.given_up = given_up::count(&swarm.gateway.process().stderr());
    swarm.stop();
    Ok(outcome)
}

/// The value below which this part of all values lies; zero where there are none.
#[must_use]
pub fn quantile(values: &[Duration], part: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is an index")]
    let index = (part * sorted.len() as f64) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The swarm, and where each server's metrics are.
struct Soaked {
    gateway: Gateway,
    servers: Vec<Server>,
    metrics: Vec<String>,
}

impl Soaked {
    fn start(load: &Load) -> anyhow::Result<Self> {
        let mut servers: Vec<Server> = Vec::new();
        let (model, kv_tokens) = ("smollm2-135m", load.kv_tokens.to_string());
        for blocks in ["0..10", "10..20", "20..30"] {
            let mut arguments = vec![model, "--blocks", blocks, "--kv-tokens", &kv_tokens];
            arguments.extend(METRICS);
            let first = servers.first().map(|first| first.address().to_owned());
            arguments.extend(first.iter().flat_map(|address| ["--join", address]));
            servers.push(serve(&arguments));
        }
        let metrics = servers.iter().map(|server| metrics_url(server));
        let metrics = metrics.collect::<anyhow::Result<Vec<_>>>()?;
        let (answers, waiting) = (load.answers.to_string(), load.waiting.to_string());
        let gateway = Gateway::start(&[
            "--join",
            servers[0].address(),
            "--answers",
            &answers,
            "--waiting",
            &waiting,
        ]);
        Ok(Self { gateway, servers, metrics })
    }

    /// Looks at the memory of all processes for so long, or until the end comes before.
    fn look_for(
        &self,
        duration: Duration,
        end: &End,
        resident: &mut Vec<Vec<u64>>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            self.look(resident)?;
            let left = duration.saturating_sub(begun.elapsed());
            if left.is_zero() || end.within(left.min(LOOK_INTERVAL)) {
                return Ok(());
            }
        }
    }

    fn look(&self, resident: &mut Vec<Vec<u64>>) -> anyhow::Result<()> {
        let servers = self.servers.iter().map(|server| server.anonymous_bytes());
        let all = std::iter::once(self.gateway.process().anonymous_bytes()).chain(servers);
        resident.resize(self.servers.len() + 1, Vec::new());
        for (process, bytes) in resident.iter_mut().zip(all) {
            process.push(bytes?);
        }
        Ok(())
    }

    fn wait_for_no_sessions(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            let open = self.metrics.iter().map(|url| counted(url, "umbel_sessions"));
            let open = open.collect::<anyhow::Result<Vec<_>>>()?;
            if open.iter().all(|&count| count == 0) {
                return Ok(begun.elapsed());
            }
            ensure!(
                begun.elapsed() < ENDING_TIMEOUT,
                "sessions are left on the servers, though no client is: {open:?}"
            );
        }
    }

    /// The first of what all processes have warned of: the rest often follows from it.
    fn warnings(&self) -> String {
        let servers = self.servers.iter().map(|server| server.stderr());
        let logs = std::iter::once(self.gateway.process().stderr()).chain(servers);
        let first = |log: String| {
            let warnings = log.lines().filter(|line| line.contains(" WARN "));
            warnings.take(WARNINGS_MAX).collect::<Vec<_>>().join("\n")
        };
        logs.map(first).collect::<Vec<_>>().join("\n")
    }

    /// Ends all processes, none of which may have logged an error.
    fn stop(self) {
        self.gateway.process().assert_no_errors();
        self.servers.iter().for_each(|server| server.assert_no_errors());
    }
}

/// Where a process says in its log that its metrics are.
fn metrics_url(process: &UmbelProcess) -> anyhow::Result<String> {
    let log = process.stderr();
    let url = log.lines().find_map(|line| Some(&line[line.find("metrics at http")? + 11..]));
    Ok(url.context("the log names no metrics")?.trim().to_owned())
}

/// What a metric without labels counts.
fn counted(url: &str, name: &str) -> anyhow::Result<u64> {
    let text = ureq::get(url).call()?.into_body().read_to_string()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("{name} is not in\n{text}"))?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        let values: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&values, 0.5), Duration::from_millis(51));
        assert_eq!(quantile(&values, 0.99), Duration::from_millis(100));
        assert_eq!(quantile(&values, 1.0), Duration::from_millis(100));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
