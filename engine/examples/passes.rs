//! How long the passes of a whole model take, without clients and network beside them:
//! `cargo run --release -p umbel-engine --example passes -- MODEL 128,512 1,8,32` reads prompts of so
//! many tokens, and then takes numbers of sessions that share a pass. Each of those decodes at a
//! context of 64 tokens. The median of several passes is printed, and the shortest, which other work
//! on the machine has disturbed least.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

use std::error::Error;
use std::time::{Duration, Instant};

use umbel_engine::{HiddenStates, HostedSpan, KvArena, KvTable};
use umbel_protocol::Span;
use umbel_shard::{Cache, Model, ModelConfig, ModelSource, Part, PartsNeeded, Silent};

/// Passes of each prompt.
const PROMPT_PASSES: usize = 8;

/// Tokens in each cache before a step of one token.
const CONTEXT: usize = 64;

/// Passes of each number of sessions.
const PASSES: usize = 80;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompts, sessions] = arguments.as_slice() else {
        return Err("MODEL PROMPTS SESSIONS, as smollm2-135m 128,512 1,8,32".into());
    };
    let cache = Cache::new(std::env::temp_dir().join("umbel-passes"));
    let model =
        Model::open(&ModelSource::parse(model)?, &cache, PartsNeeded::everything(), &Silent)?;
    let config = model.config();
    let span = Span::new(0, config.block_count)?;
    let hosted = HostedSpan::load(config, &model.weights(Part::Blocks(span))?, span)?;
    for tokens in prompts.split_terminator(',') {
        let tokens: usize = tokens.parse()?;
        let times = read_prompt(&hosted, config, tokens)?;
        println!("prompt of {tokens:>4}: {}", times.as_text(tokens));
    }
    let mut first = None;
    for count in sessions.split_terminator(',') {
        let count: usize = count.parse()?;
        let times = decode(&hosted, config, count)?;
        let rate = count as f64 / times.median().as_secs_f64();
        let of_first = rate / *first.get_or_insert(rate);
        println!("{count:>5} sessions: {}, {of_first:.2} of the first", times.as_text(count));
    }
    Ok(())
}

/// How long each pass took.
struct Times(Vec<Duration>);

impl Times {
    fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// Of passes of so many tokens.
    fn as_text(&self, tokens: usize) -> String {
        let (median, shortest) = (self.median(), self.0.iter().min().copied().unwrap_or_default());
        let (ms, best_ms) = (median.as_secs_f64() * 1e3, shortest.as_secs_f64() * 1e3);
        let rate = tokens as f64 / median.as_secs_f64();
        format!("{ms:>8.2} ms (shortest {best_ms:.2}), {rate:>7.1} tokens/s")
    }
}

fn read_prompt(hosted: &HostedSpan, config: &ModelConfig, tokens: usize) -> Outcome<Times> {
    let arena = KvArena::new(config, hosted.span(), tokens);
    let input = hidden(tokens, config.hidden_size)?;
    let mut times = Vec::new();
    for _ in 0..PROMPT_PASSES {
        let mut table = arena.open(hosted.span(), tokens)?;
        let started = Instant::now();
        hosted.forward(&mut table, &input)?;
        times.push(started.elapsed());
    }
    Ok(Times(times))
}

fn decode(hosted: &HostedSpan, config: &ModelConfig, count: usize) -> Outcome<Times> {
    let span = hosted.span();
    let arena = KvArena::new(config, span, count * (CONTEXT + PASSES + 16));
    let open = || -> Outcome<KvTable> {
        let mut table = arena.open(span, CONTEXT + PASSES)?;
        hosted.forward(&mut table, &hidden(CONTEXT, config.hidden_size)?)?;
        Ok(table)
    };
    let mut tables = (0..count).map(|_| open()).collect::<Outcome<Vec<_>>>()?;
    let input = hidden(1, config.hidden_size)?;
    let mut times = Vec::new();
    for _ in 0..PASSES {
        let mut batch: Vec<_> = tables.iter_mut().map(|table| (table, &input)).collect();
        let started = Instant::now();
        for result in hosted.forward_batch(&mut batch) {
            result?;
        }
        times.push(started.elapsed());
    }
    Ok(Times(times))
}

/// Small and uneven, as hidden states are.
fn hidden(tokens: usize, hidden_size: usize) -> Outcome<HiddenStates> {
    let values = (0..tokens * hidden_size).map(|i| ((i % 97) as f32 - 48.0) / 97.0).collect();
    Ok(HiddenStates::from_values(values, hidden_size)?)
}
