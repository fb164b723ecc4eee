//! How fast blocks of an 8B Llama decode when several server processes on one GPU share them.
//!
//! ```text
//! gpu_swarm [--blocks N] [--type TYPE] [--servers N,…] [--folder PATH] [--device DEVICE]
//! ```
//!
//! The servers are real ones, each with its own span, its own share of the device, and links between
//! them; a client sends hidden states through all blocks, token by token. Weights are random. The model
//! is written to the folder: one in memory, such as `/dev/shm`, saves time.

#![allow(clippy::print_stdout, reason = "a program for developers prints what it found")]

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use umbel_client::{Chain, ClientModel, RemoteChain};
use umbel_shard::gguf::write::GgufWriter;
use umbel_shard::{ModelConfig, WeightType};
use umbel_tests::swarm::{Server, serve};
use umbel_tests::training::join;
use umbel_tests::workload::client_model;

/// Tokens that the session has read before it decodes.
const CONTEXT: usize = 512;

/// Steps of which the median is taken, after as many that warm up.
const STEPS: usize = 100;

fn main() -> ExitCode {
    umbel_tests::exit_code(run())
}

struct Arguments {
    blocks: u32,
    kind: WeightType,
    servers: Vec<u32>,
    folder: PathBuf,
    device: String,
}

impl Arguments {
    fn read() -> Result<Self> {
        let mut this = Self {
            blocks: 32,
            kind: WeightType::BF16,
            servers: vec![1, 2, 4],
            folder: std::env::temp_dir(),
            device: "cuda".to_owned(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} has a value"))?;
            match word.as_str() {
                "--blocks" => this.blocks = value.parse()?,
                "--type" => this.kind = value.parse()?,
                "--servers" => {
                    this.servers = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--folder" => this.folder = value.into(),
                "--device" => this.device = value,
                _ => bail!("{word} is unknown"),
            }
        }
        Ok(this)
    }

    /// A small vocabulary, so that the client's ends do not matter.
    fn config(&self) -> ModelConfig {
        ModelConfig {
            hidden_size: 4096,
            intermediate_size: 14_336,
            head_count: 32,
            kv_head_count: 8,
            head_size: 128,
            vocabulary_size: 256,
            context_tokens: 8192,
            ..ModelConfig::llama(self.blocks)
        }
    }
}

#[tokio::main]
async fn run() -> Result<()> {
    let arguments = Arguments::read()?;
    let folder = tempfile::tempdir_in(&arguments.folder)?;
    let path = folder.path().join("model.gguf");
    let file = GgufWriter::random_model(&arguments.config(), arguments.kind, 1)?;
    file.write(&mut BufWriter::new(File::create(&path)?))?;
    let model = client_model(path.to_str().context("paths are text here")?)?;
    println!("{} blocks, {}", arguments.blocks, arguments.kind);
    println!("| servers | a token, ms | tokens/s | of the first row |");
    println!("|---|---|---|---|");
    let mut first = None;
    for &count in &arguments.servers {
        let servers = start(&arguments, &path, count)?;
        let time = decode(&servers, &model).await?.as_secs_f64();
        let of_first = *first.get_or_insert(time) / time;
        println!("| {count} | {:.3} | {:.1} | {of_first:.3} |", time * 1e3, 1.0 / time);
    }
    Ok(())
}

/// Servers that share the blocks evenly.
fn start(arguments: &Arguments, path: &Path, count: u32) -> Result<Vec<Server>> {
    let name = path.to_str().context("paths are text here")?;
    let mut servers: Vec<Server> = Vec::new();
    for index in 0..count {
        let edge = |index: u32| arguments.blocks * index / count;
        let span = format!("{}..{}", edge(index), edge(index + 1));
        let mut words = vec![name, "--blocks", &span, "--device", &arguments.device];
        words.extend(["--kv-tokens", "8192"]);
        if let Some(first) = servers.first() {
            words.extend(["--join", first.address()]);
        }
        servers.push(serve(&words));
    }
    Ok(servers)
}

/// The median time of a step.
async fn decode(servers: &[Server], model: &Arc<ClientModel>) -> Result<Duration> {
    let swarm = join(servers.last().context("there is a server")?).await?;
    let room = u32::try_from(CONTEXT + 2 * STEPS)?;
    let mut chain = Chain::Remote(Box::new(RemoteChain::open(swarm, model, room).await?));
    let text: Vec<u32> = (0..u32::try_from(CONTEXT)?).map(|token| token % 251).collect();
    chain.step(0, model.ends().embed(&text)?).await?;
    let (token, mut times) = (model.ends().embed(&[7])?, Vec::new());
    for step in 0..2 * STEPS {
        let started = Instant::now();
        chain.step(u32::try_from(CONTEXT + step)?, token.clone()).await?;
        times.push(started.elapsed());
    }
    chain.close().await;
    let times = &mut times[STEPS..];
    times.sort();
    Ok(times[STEPS / 2])
}
