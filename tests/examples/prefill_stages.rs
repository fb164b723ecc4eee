//! A prompt through four stages with a delay on every link, measured: through one stage after another,
//! chunk after chunk, and as the client streams it. Four servers of a real model are processes of their
//! own, and the client is in this one.
//!
//! `cargo run --release -p umbel-tests --example prefill_stages -- MODEL [TOKENS] [DELAY] [SHARE]`
//! takes a model (a name, a folder or a GGUF file), the tokens of the prompt, the delay of a way in
//! milliseconds, and percent of a core for each server.
//!
//! Stages on one machine take each other's cores, so each server may compute for its share of the
//! time only, which the system enforces (the CPU controller of cgroups(7), so it needs to be root):
//! four servers of 40% leave two cores something for the links and the client. What a stage takes is
//! then its own, as on a machine that is two and a half times slower, and whether stages compute at
//! once shows in the time.

#![allow(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use umbel_client::chain::StepUnderWay;
use umbel_client::{Chain, ClientModel, RemoteChain, Swarm, SwarmConfig};
use umbel_coordinator::prefill::{CHUNK_TOKENS_MAX, plan};
use umbel_engine::HiddenStates;
use umbel_protocol::inference::AnswerRows;
use umbel_tests::shape::{Shape, ShapedNetwork};
use umbel_tests::swarm::{Server, serve_behind};
use umbel_tests::workload::client_model;

const STAGES: u32 = 4;

/// The manners come in turn so often, as the machine may be busy at one time and not at another.
const ROUNDS: usize = 3;

/// A server that is kept from its core for too long is given up, and the time says nothing then.
const TRIES_MAX: usize = 5;

/// The time in which a server computes for its share: short beside what a chunk takes.
const PERIOD: Duration = Duration::from_millis(10);

const CGROUPS: &str = "/sys/fs/cgroup";

/// A share of a core, which a process has that was started while this one had it.
struct Quota {
    folder: PathBuf,
    /// The group of this process.
    home: PathBuf,
}

impl Quota {
    fn new(name: &str, percent: u32) -> anyhow::Result<Self> {
        let unified = PathBuf::from(CGROUPS).join("cgroup.controllers").exists();
        let root = PathBuf::from(CGROUPS).join(if unified { "" } else { "cpu" });
        let home = root.join(own_group(unified)?.trim_start_matches('/'));
        let folder = root.join(format!("umbel-{}-{name}", std::process::id()));
        fs::create_dir(&folder)
            .with_context(|| format!("no group of processes at {}: be root", folder.display()))?;
        let quota = Self { folder, home };
        let (share, period) = (PERIOD.as_micros() * u128::from(percent) / 100, PERIOD.as_micros());
        if unified {
            quota.set("cpu.max", &format!("{share} {period}"))?;
        } else {
            quota.set("cpu.cfs_period_us", &period.to_string())?;
            quota.set("cpu.cfs_quota_us", &share.to_string())?;
        }
        Ok(quota)
    }

    fn set(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value).with_context(|| format!("{} is not set", path.display()))
    }

    /// Starts a process that has the share, with all that it measures of itself at its start.
    fn start<T>(&self, start: impl FnOnce() -> T) -> anyhow::Result<T> {
        self.set("cgroup.procs", "0")?;
        let _back = Back(&self.home);
        Ok(start())
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Its process has ended; where it has not quite, an empty group is left behind.
        let _left_behind = fs::remove_dir(&self.folder);
    }
}

/// Takes this process back to its group, also where what it started has failed.
struct Back<'a>(&'a Path);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.0.join("cgroup.procs"), "0") {
            println!("this process keeps a server's share: {error}");
        }
    }
}

/// The group of this process, from the root of all.
fn own_group(unified: bool) -> anyhow::Result<String> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let path_of = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_it = if unified {
            controllers.is_empty()
        } else {
            controllers.split(',').any(|controller| controller == "cpu")
        };
        is_it.then(|| path.to_owned())
    };
    groups.lines().find_map(path_of).context("the system has no CPU controller of cgroups")
}

/// Servers behind links that are shaped, and a client of theirs.
struct Far {
    swarm: Arc<Swarm>,
    model: Arc<ClientModel>,
    /// A server ends before its share does.
    _stages: Vec<(Server, Quota)>,
}

/// How a prompt is handed in, as in `umbel-simnet --table prefill`.
#[derive(Clone, Copy)]
enum Manner {
    /// All of it through one stage after another.
    StageAfterStage,
    /// A chunk when the one before it has come back.
    ChunkAfterChunk,
    /// The chunks that the client plans, all of them under way at once.
    Streamed,
}

impl Manner {
    const ALL: [Self; 3] = [Self::StageAfterStage, Self::ChunkAfterChunk, Self::Streamed];

    const fn name(self) -> &'static str {
        match self {
            Self::StageAfterStage => "stage after stage",
            Self::ChunkAfterChunk => "chunk after chunk",
            Self::Streamed => "streamed",
        }
    }
}

impl Far {
    async fn start(name: &str, delay: Duration, percent: u32) -> anyhow::Result<Self> {
        let model = client_model(name)?;
        let network = ShapedNetwork::new(Shape::of_delay(delay), 1);
        let blocks = model.config().block_count;
        let mut stages: Vec<(Server, Quota)> = Vec::new();
        for stage in 0..STAGES {
            let front = network.front().await?;
            let [quic, tcp] = front.addresses();
            let span = format!("{}..{}", blocks * stage / STAGES, blocks * (stage + 1) / STAGES);
            let mut arguments = vec![name, "--blocks", &span, "--kv-tokens", "8192"];
            // What a server has is less than a core.
            arguments.extend(["--threads", "1"]);
            arguments.extend(stages.iter().flat_map(|(server, _)| ["--join", server.address()]));
            let quota = Quota::new(&stage.to_string(), percent)?;
            let server = quota.start(|| serve_behind(front, &[&quic, &tcp], &arguments))?;
            stages.push((server, quota));
            println!("blocks {span} are served");
        }
        let addresses = stages.iter().map(|(server, _)| server.address().parse());
        let join = addresses.collect::<Result<_, _>>()?;
        let config = SwarmConfig { join, ..SwarmConfig::default() };
        let swarm = Arc::new(Swarm::join(config).await?);
        Ok(Self { swarm, model, _stages: stages })
    }

    /// How long the prompt takes until its last row is here, and that row; tried again where a server
    /// was given up on the way.
    async fn read(&self, prompt: &[u32], manner: Manner) -> anyhow::Result<(Duration, Vec<f32>)> {
        for _ in 0..TRIES_MAX {
            if let Some(read) = self.try_read(prompt, manner).await? {
                return Ok(read);
            }
        }
        bail!("{}: a server was given up in each of {TRIES_MAX} tries", manner.name())
    }

    async fn try_read(
        &self,
        prompt: &[u32],
        manner: Manner,
    ) -> anyhow::Result<Option<(Duration, Vec<f32>)>> {
        let tokens = u32::try_from(prompt.len())?;
        let chain = RemoteChain::open(Arc::clone(&self.swarm), &self.model, tokens).await?;
        let mut chain = Chain::Remote(Box::new(chain));
        ensure!(chain.route().len() == STAGES as usize, "a route of {}", chain.route().len());
        let chunks = match manner {
            Manner::StageAfterStage => vec![tokens],
            Manner::ChunkAfterChunk => plan(&[], 0, tokens, CHUNK_TOKENS_MAX),
            Manner::Streamed => chain.prefill_chunks(0, tokens, CHUNK_TOKENS_MAX),
        };
        let entering = self.model.ends().embed(prompt)?;
        let began = Instant::now();
        let (mut position, mut under_way, mut last) = (0, VecDeque::new(), None);
        for tokens in chunks {
            let rows = entering.rows(position as usize..(position + tokens) as usize)?;
            under_way.push_back(chain.begin(position, rows, AnswerRows::Last).await);
            position += tokens;
            if matches!(manner, Manner::ChunkAfterChunk) {
                last = finish(&mut under_way).await?;
            }
        }
        last = finish(&mut under_way).await?.or(last);
        let took = began.elapsed();
        let mut failed = false;
        if let Chain::Remote(chain) = &chain {
            for failure in chain.failures() {
                println!("{}, not counted: {failure}", manner.name());
                failed = true;
            }
        }
        chain.close().await;
        let row = last.context("a prompt has tokens")?.to_values();
        Ok((!failed).then_some((took, row)))
    }
}

/// What the last of them gives.
async fn finish(under_way: &mut VecDeque<StepUnderWay>) -> anyhow::Result<Option<HiddenStates>> {
    let mut last = None;
    while let Some(step) = under_way.pop_front() {
        last = Some(step.finish().await?.0);
    }
    Ok(last)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context("which model?")?;
    let mut number = |or: u32| arguments.next().map_or(Ok(or), |argument| argument.parse());
    let (tokens, delay, percent) = (number(2_000)?, number(20)?, number(40)?);
    let far = Far::start(&name, Duration::from_millis(delay.into()), percent).await?;
    println!(
        "{tokens} tokens through {STAGES} stages, {delay} ms apart, each with {percent}% of a core"
    );
    tokio::select! {
        measured = measure(&far, tokens) => measured,
        // Who returns from here ends the servers, and gives their shares back.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn measure(far: &Far, tokens: u32) -> anyhow::Result<()> {
    let vocabulary = u32::try_from(far.model.config().vocabulary_size)?;
    let prompt: Vec<u32> = (0..tokens).map(|place| place * 7_919 % vocabulary).collect();
    // Routes are known and pages are there when it counts.
    far.read(&prompt, Manner::Streamed).await?;
    let mut times = Manner::ALL.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        let mut rows = Vec::new();
        for (manner, times) in Manner::ALL.into_iter().zip(&mut times) {
            let (took, row) = far.read(&prompt, manner).await?;
            println!("{took:.2?} {}", manner.name());
            times.push(took);
            rows.push(row);
        }
        ensure!(rows.iter().all(|row| *row == rows[0]), "the chunks changed what comes out");
    }
    let [whole, chunks, streamed] = times.each_mut().map(|times| median(times));
    let part = |of: Duration| 100.0 * streamed.as_secs_f64() / of.as_secs_f64();
    println!(
        "{whole:.2?} stage after stage, {chunks:.2?} chunk after chunk, {streamed:.2?} streamed: {:.1}% \
         of the first, {:.1}% of the second",
        part(whole),
        part(chunks)
    );
    Ok(())
}
