//! How long the passes of a whole model take, without clients and network beside them:
//! `cargo run --release -p umbel-engine --example passes -- MODEL 128,512 1,8,32` reads prompts of so
//! many tokens, and then takes numbers of sessions that share a pass. Each of those decodes at a
//! context of 64 tokens, or at each of those in a fourth argument, one after the other, so that what
//! the machine does meanwhile is the same for all. The median of several passes is printed, and the
//! shortest, which other work on the machine has disturbed least.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

use std::error::Error;
use std::time::{Duration, Instant};

use umbel_engine::{HiddenStates, HostedSpan, KvArena, KvTable};
use umbel_protocol::Span;
use umbel_shard::{Cache, Model, ModelConfig, ModelSource, Part, PartsNeeded, Silent};

/// Passes of each prompt.
const PROMPT_PASSES: usize = 8;

/// Tokens in each cache before a step of one token, where nothing else is said.
const CONTEXT: &str = "64";

/// Passes of each number of sessions.
const PASSES: usize = 80;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, prompts, sessions, contexts) = match arguments.as_slice() {
        [model, prompts, sessions] => (model, prompts, sessions, CONTEXT),
        [model, prompts, sessions, contexts] => (model, prompts, sessions, contexts.as_str()),
        _ => {
            let usage = "MODEL PROMPTS SESSIONS [CONTEXTS], as smollm2-135m 128,512 1,8,32 64,512";
            return Err(usage.into());
        }
    };
    let contexts: Vec<usize> =
        contexts.split_terminator(',').map(str::parse).collect::<Result<_, _>>()?;
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
        for (context, times) in contexts.iter().zip(decode(&hosted, config, count, &contexts)?) {
            let rate = count as f64 / times.median().as_secs_f64();
            let of_first = rate / *first.get_or_insert(rate);
            let times = times.as_text(count);
            println!("{count:>5} sessions, after {context}: {times}, {of_first:.2} of the first");
        }
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

/// What each context takes.
fn decode(
    hosted: &HostedSpan,
    config: &ModelConfig,
    count: usize,
    contexts: &[usize],
) -> Outcome<Vec<Times>> {
    let span = hosted.span();
    let room: usize = contexts.iter().map(|context| context + PASSES + 16).sum();
    let arena = KvArena::new(config, span, count * room);
    let open = |&context: &usize| -> Outcome<KvTable> {
        let mut table = arena.open(span, context + PASSES)?;
        hosted.forward(&mut table, &hidden(context, config.hidden_size)?)?;
        Ok(table)
    };
    let mut batches = contexts
        .iter()
        .map(|context| (0..count).map(|_| open(context)).collect())
        .collect::<Outcome<Vec<Vec<_>>>>()?;
    let input = hidden(1, config.hidden_size)?;
    let mut times: Vec<_> = contexts.iter().map(|_| Times(Vec::new())).collect();
    for _ in 0..PASSES {
        for (tables, times) in batches.iter_mut().zip(&mut times) {
            let mut batch: Vec<_> = tables.iter_mut().map(|table| (table, &input)).collect();
            let started = Instant::now();
            for result in hosted.forward_batch(&mut batch) {
                result?;
            }
            times.0.push(started.elapsed());
        }
    }
    Ok(times)
}

/// Small and uneven, as hidden states are.
fn hidden(tokens: usize, hidden_size: usize) -> Outcome<HiddenStates> {
    let values = (0..tokens * hidden_size).map(|i| ((i % 97) as f32 - 48.0) / 97.0).collect();
    Ok(HiddenStates::from_values(values, hidden_size)?)
}
