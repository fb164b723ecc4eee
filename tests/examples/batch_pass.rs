//! How long a pass takes that sessions share, without clients and network beside it:
//! `cargo run --release -p umbel-tests --example batch_pass -- MODEL 1,8,32` takes the numbers of
//! sessions. Each decodes at a context of 64 tokens. The shortest of many passes is printed: it is
//! the one that other work on the machine has disturbed least.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use umbel_engine::{HiddenStates, HostedSpan, KvArena, KvTable};
use umbel_protocol::Span;
use umbel_shard::{Cache, Model, ModelSource, Part, PartsNeeded, Silent};

/// Tokens in each cache before.
const CONTEXT: usize = 64;

/// Passes of each number of sessions.
const PASSES: usize = 40;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, sessions] = arguments.as_slice() else {
        anyhow::bail!("a model and numbers of sessions, as smollm2-135m 1,8,32");
    };
    let cache = Cache::new(std::env::temp_dir().join("umbel-batch-pass"));
    let source = ModelSource::parse(model)?;
    let model = Model::open(&source, &cache, PartsNeeded::everything(), &Silent)?;
    let config = model.config();
    let span = Span::new(0, config.block_count)?;
    let hosted = HostedSpan::load(config, &model.weights(Part::Blocks(span))?, span)?;
    let mut first = None;
    for count in sessions.split(',') {
        let count: usize = count.parse().context("a number of sessions")?;
        let arena = KvArena::new(config, span, count * (CONTEXT + PASSES + 16));
        let open = || -> anyhow::Result<KvTable> {
            let mut table = arena.open(span, CONTEXT + PASSES)?;
            hosted.forward(&mut table, &hidden(CONTEXT, config.hidden_size)?)?;
            Ok(table)
        };
        let mut tables = (0..count).map(|_| open()).collect::<anyhow::Result<Vec<_>>>()?;
        let input = hidden(1, config.hidden_size)?;
        let mut shortest = Duration::MAX;
        for _ in 0..PASSES {
            let mut batch: Vec<_> = tables.iter_mut().map(|table| (table, &input)).collect();
            let started = Instant::now();
            for result in hosted.forward_batch(&mut batch) {
                result?;
            }
            shortest = shortest.min(started.elapsed());
        }
        let rate = count as f64 / shortest.as_secs_f64();
        let of_first = rate / *first.get_or_insert(rate);
        let ms = shortest.as_secs_f64() * 1e3;
        println!(
            "{count:>4} sessions: {ms:>7.2} ms, {rate:>7.1} tokens/s, {of_first:.2} of the first"
        );
    }
    Ok(())
}

/// Small and uneven, as hidden states are.
fn hidden(tokens: usize, hidden_size: usize) -> anyhow::Result<HiddenStates> {
    let values = (0..tokens * hidden_size).map(|i| ((i % 97) as f32 - 48.0) / 97.0).collect();
    Ok(HiddenStates::from_values(values, hidden_size)?)
}
