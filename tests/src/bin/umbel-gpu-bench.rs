//! How fast a GPU takes tokens through blocks of an 8B Llama, beside what its memory and its matrix units
//! allow.
//!
//! ```text
//! umbel-gpu-bench [--blocks N] [--types TYPE,…] [--bandwidth BYTES/S] [--matrix FLOP/S]
//!                 [--kernels FOLDER] [--tiny]
//! ```
//!
//! Weights are random; the blocks of one type are alike, and each lies in the device's memory by itself.
//! Times are those of whole passes, from hidden states in the processor's memory to hidden states there.
//! Without the two limits, which `tests/gpu/run.sh` measures, no percentage is printed. `--kernels`
//! takes those that `engine/cuda/build.py FOLDER` has written instead of those it was built with, and
//! `--tiny` is for trying the program itself over the emulated driver.

#![allow(clippy::print_stdout, reason = "a program for developers prints what it found")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use umbel_engine::{Gpu, HiddenStates, HostedSpan, Kernels, KvArena, KvTable};
use umbel_protocol::{DType, Span};
use umbel_shard::gguf::write::GgufWriter;
use umbel_shard::{
    Cache, Model, ModelConfig, ModelSource, Part, PartsNeeded, Silent, WeightType, Weights,
};

/// Tokens that a session has read before it decodes.
const CONTEXT: usize = 512;

/// Passes of which the median is taken, after as many that warm up.
const DECODE_PASSES: usize = 20;
const PREFILL_PASSES: usize = 3;

fn main() -> ExitCode {
    umbel_tests::exit_code(run())
}

struct Arguments {
    blocks: u32,
    types: Vec<WeightType>,
    bandwidth: Option<f64>,
    matrix: Option<f64>,
    kernels: Option<PathBuf>,
    tiny: bool,
}

impl Arguments {
    fn read() -> Result<Self> {
        let types = vec![WeightType::BF16, WeightType::Q8_0, WeightType::Q4K];
        let mut this =
            Self { blocks: 8, types, bandwidth: None, matrix: None, kernels: None, tiny: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--tiny" {
                this.tiny = true;
                continue;
            }
            let value = words.next().with_context(|| format!("{word} has a value"))?;
            match word.as_str() {
                "--blocks" => this.blocks = value.parse()?,
                "--types" => {
                    this.types = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--bandwidth" => this.bandwidth = Some(value.parse()?),
                "--matrix" => this.matrix = Some(value.parse()?),
                "--kernels" => this.kernels = Some(value.into()),
                _ => bail!("{word} is unknown"),
            }
        }
        Ok(this)
    }

    fn config(&self) -> ModelConfig {
        let tiny = ModelConfig { context_tokens: 8192, ..ModelConfig::llama(self.blocks) };
        if self.tiny {
            let (hidden_size, intermediate_size, head_count) = (256, 256, 8);
            return ModelConfig { hidden_size, intermediate_size, head_count, ..tiny };
        }
        ModelConfig {
            hidden_size: 4096,
            intermediate_size: 14_336,
            head_count: 32,
            kv_head_count: 8,
            head_size: 128,
            ..tiny
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::read()?;
    let kernels = arguments.kernels.as_deref().map(Kernels::read).transpose()?;
    let gpu = Gpu::open_with(0, kernels.unwrap_or_default())?;
    let config = arguments.config();
    println!("{}, {} blocks of hidden size {}", gpu.name(), arguments.blocks, config.hidden_size);
    println!("| weights | pass | time, ms | tokens/s of these blocks | of the limit |");
    println!("|---|---|---|---|---|");
    for kind in &arguments.types {
        measure(&gpu, &arguments, &config, *kind).with_context(|| kind.name())?;
    }
    Ok(())
}

/// One block of random weights, again and again.
fn weights(config: &ModelConfig, kind: WeightType) -> Result<(Weights, u64)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("block.gguf");
    let one = ModelConfig { block_count: 1, attention_windows: vec![None], ..config.clone() };
    let file = GgufWriter::random_model(&one, kind, 1)?;
    file.write(&mut std::io::BufWriter::new(std::fs::File::create(&path)?))?;
    let source = ModelSource::parse(path.to_str().context("paths are text here")?)?;
    let parts = PartsNeeded { tokenizer: false, ..PartsNeeded::everything() };
    let model = Model::open(&source, &Cache::new(folder.path()), parts, &Silent)?;
    let block = model.weights(Part::Blocks(Span::new(0, 1)?))?;
    let bytes = block.bytes_total();
    let all = (0..config.block_count).flat_map(|index| {
        let name = move |name: &str| name.replace("layers.0.", &format!("layers.{index}."));
        block.iter().map(move |(of_first, weight)| (name(of_first), weight.clone()))
    });
    Ok((all.collect(), bytes * u64::from(config.block_count)))
}

struct Bench<'a> {
    config: &'a ModelConfig,
    blocks: HostedSpan,
    arena: KvArena,
}

fn measure(gpu: &Gpu, arguments: &Arguments, config: &ModelConfig, kind: WeightType) -> Result<()> {
    let (weights, bytes) = weights(config, kind)?;
    let span = Span::new(0, config.block_count)?;
    let blocks = HostedSpan::load_on(gpu, &[], config, &weights, span)?;
    // Caches in bfloat16 take half of what the room is counted in.
    let arena = blocks.arena(config, 64 * (CONTEXT + 64) / 2 + 8192)?;
    let bench = Bench { config, blocks, arena };
    let sizes: [usize; 3] = if arguments.tiny { [1, 2, 3] } else { [1, 8, 64] };
    for sessions in sizes {
        let time = bench.decode(sessions)?;
        let limit = arguments.bandwidth.map(|rate| bytes as f64 / rate);
        let rate = sessions as f64 / time.as_secs_f64();
        print(kind, &format!("decode, {sessions} sessions"), time, rate, limit);
    }
    let lengths: [usize; 2] = if arguments.tiny { [16, 80] } else { [512, 4096] };
    for tokens in lengths {
        let time = bench.prefill(tokens)?;
        let limit = arguments.matrix.map(|rate| bench.operations(tokens) / rate);
        let rate = tokens as f64 / time.as_secs_f64();
        print(kind, &format!("prefill, {tokens} tokens"), time, rate, limit);
    }
    Ok(())
}

fn print(kind: WeightType, pass: &str, time: Duration, rate: f64, limit: Option<f64>) {
    let seconds = time.as_secs_f64();
    let part =
        limit.map_or_else(|| "-".to_owned(), |limit| format!("{:.0}%", 100.0 * limit / seconds));
    println!("| {kind} | {pass} | {:.3} | {rate:.0} | {part} |", seconds * 1e3);
}

impl Bench<'_> {
    fn hidden(&self, tokens: usize) -> Result<HiddenStates> {
        let size = self.config.hidden_size;
        let values = (0..tokens * size).map(|index| ((index * 37 % 97) as f32 - 48.0) / 97.0);
        Ok(HiddenStates::from_values(values.collect(), size)?)
    }

    fn table(&self, tokens: usize) -> Result<KvTable> {
        Ok(self.arena.open_as(DType::BF16, self.blocks.span(), tokens)?)
    }

    /// A step of so many sessions at once, each with a context behind it.
    fn decode(&self, sessions: usize) -> Result<Duration> {
        let (context, token) = (self.hidden(CONTEXT)?, self.hidden(1)?);
        let room = CONTEXT + 2 * DECODE_PASSES;
        let mut tables = (0..sessions).map(|_| self.table(room)).collect::<Result<Vec<_>>>()?;
        for table in &mut tables {
            self.blocks.forward(table, &context)?;
        }
        let mut pass = || -> Result<Duration> {
            let mut batch: Vec<_> = tables.iter_mut().map(|table| (table, &token)).collect();
            let started = Instant::now();
            let results = self.blocks.forward_batch(&mut batch);
            let took = started.elapsed();
            results.into_iter().try_for_each(|result| result.map(drop))?;
            Ok(took)
        };
        (0..DECODE_PASSES).try_for_each(|_| pass().map(drop))?;
        median((0..DECODE_PASSES).map(|_| pass()).collect::<Result<_>>()?)
    }

    fn prefill(&self, tokens: usize) -> Result<Duration> {
        let text = self.hidden(tokens)?;
        let pass = || -> Result<Duration> {
            let mut table = self.table(tokens)?;
            let started = Instant::now();
            self.blocks.forward(&mut table, &text)?;
            Ok(started.elapsed())
        };
        pass()?;
        median((0..PREFILL_PASSES).map(|_| pass()).collect::<Result<_>>()?)
    }

    /// Multiplications and additions of a prefill, each counted.
    fn operations(&self, tokens: usize) -> f64 {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
        let queries = (config.head_count * config.head_size) as f64;
        let keys = (config.kv_head_count * config.head_size) as f64;
        let weights = hidden * (2.0 * queries + 2.0 * keys) + 3.0 * hidden * inner;
        let (tokens, blocks) = (tokens as f64, f64::from(config.block_count));
        // Scores and what they weigh, each a product with the half of the positions before.
        blocks * (2.0 * weights * tokens + 2.0 * queries * tokens * tokens)
    }
}

fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort();
    times.get(times.len() / 2).copied().context("there is a pass")
}
