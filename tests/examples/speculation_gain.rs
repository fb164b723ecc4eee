//! How much guessing from the text gains at a distance, calculated:
//! `cargo run --release -p umbel-tests --example speculation_gain -- 96 17,10` takes the tokens of
//! each answer, and milliseconds of a step and of one more row, where they are not to be measured.
//!
//! A real model answers in this process; what a step takes is measured, with and without drafts.
//! Then the answer is gone through once more, by the production's index and controller, with steps
//! that take the delays of a ring of three servers as well. As guessing changes no token, that is
//! what would have happened, up to the noise of the links.

#![allow(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use umbel_client::text::chat_template::Message;
use umbel_client::{Chain, ClientModel, Device, Generate, LocalModel, Sampling, Speculate};
use umbel_coordinator::session::speculation::{
    DraftControl, DraftKind, Drafted, Offer, Outcome, StepSample, SuffixIndex,
};
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};
use umbel_tests::swarm::cache;

/// Client to the first of three servers, on to the second and the third, and back.
const WAYS: u32 = 4;

const PASSAGE: &str = "The harbour lies on the north side of the island. Ships with a draught of up \
to nine metres may enter at any tide; larger ones wait for a pilot at the outer buoy. Between \
October and March the wind is mostly from the west, and captains are advised to keep two anchors \
ready. Fresh water is sold at the second pier, and coal at the fourth.";

/// A group of requests.
struct Workload {
    name: &'static str,
    texts: Vec<String>,
    sampling: Sampling,
}

fn workloads() -> Vec<Workload> {
    let copy = |text: &str| format!("Repeat the following text word for word:\n\n{text}");
    let code = "fn area(width: u32, height: u32) -> u32 {\n    width * height\n}\n\nfn perimeter(width: u32, height: u32) -> u32 {\n    2 * (width + height)\n}\n";
    let fix = format!("Write this code again, without any change:\n\n```rust\n{code}```");
    let chat = [
        "What is gravity?",
        "Name three rivers in Europe and say where they end.",
        "How do I boil an egg?",
        "Why is the sky blue?",
    ];
    let chat: Vec<String> = chat.map(str::to_owned).into();
    vec![
        Workload {
            name: "repeats its prompt",
            texts: vec![copy(PASSAGE), fix],
            sampling: Sampling::greedy(),
        },
        Workload {
            name: "ordinary chat",
            texts: chat.clone(),
            sampling: Sampling { top_p: 0.9, ..Sampling::with_temperature(0.2, 7) },
        },
        Workload {
            name: "cannot be guessed",
            texts: chat,
            sampling: Sampling::with_temperature(3.0, 7),
        },
    ]
}

/// What was generated, and what its steps took.
struct Trace {
    tokens: Vec<u32>,
    prompt: usize,
    /// Seconds of arithmetic, of the median step of one token.
    plain: f64,
}

async fn generate(
    model: &Arc<ClientModel>,
    blocks: &Arc<LocalModel>,
    request: Generate,
) -> anyhow::Result<(Trace, Vec<Duration>)> {
    let (prompt, room) = (request.prompt.len(), request.prompt.len() + request.max_tokens as usize);
    let chain = Chain::Local(blocks.open(u32::try_from(room)?)?);
    let mut generation = request.start(Arc::clone(model), chain)?;
    let mut times = Vec::new();
    while let Some(token) = generation.next().await? {
        times.push(token.time.total);
    }
    let mut steps: Vec<_> = times[1..].to_vec();
    steps.sort();
    let plain = steps.get(steps.len() / 2).context("two tokens at least")?.as_secs_f64();
    Ok((Trace { tokens: generation.tokens().to_vec(), prompt, plain }, times))
}

/// Steps, drafts, and seconds of an answer that is guessed at, when a way takes `delay`.
struct Replayed {
    steps: u32,
    drafted: u32,
    seconds: f64,
    plain_seconds: f64,
}

fn replay(trace: &Trace, row: f64, delay: Duration) -> Replayed {
    let mut control = DraftControl::new();
    let (mut index, mut at) = (SuffixIndex::default(), trace.prompt + 1);
    trace.tokens[..at].iter().for_each(|&token| index.push(token));
    let one = trace.plain + (delay * WAYS).as_secs_f64();
    let mut replayed = Replayed { steps: 0, drafted: 0, seconds: 0.0, plain_seconds: 0.0 };
    while at < trace.tokens.len() {
        let kind = DraftKind::Suffix { matched: index.matched() };
        let tokens_max = u32::try_from(trace.tokens.len() - at - 1).unwrap_or(0);
        let offer = Offer { kind, tokens_max, overhead: Duration::ZERO };
        let choice =
            control.choose(if index.matched() > 0 { std::slice::from_ref(&offer) } else { &[] });
        let draft = choice.map_or_else(Vec::new, |choice| index.draft(choice.tokens as usize));
        let right = draft.iter().zip(&trace.tokens[at..]).take_while(|(a, b)| a == b).count();
        let arithmetic = (draft.len() as f64).mul_add(row, trace.plain);
        let total = Duration::from_secs_f64(arithmetic) + delay * WAYS;
        let drafted = choice.map(|choice| Drafted {
            kind,
            tokens: choice.tokens,
            accepted: u32::try_from(right).unwrap_or(u32::MAX),
            took: Duration::ZERO,
            overhead: Duration::ZERO,
        });
        let compute = Duration::from_secs_f64(arithmetic);
        control.settle(&Outcome {
            drafted,
            step: StepSample { total, compute, queue: Duration::ZERO },
        });
        trace.tokens[at..=at + right].iter().for_each(|&token| index.push(token));
        at += right + 1;
        replayed.steps += 1;
        replayed.drafted += u32::try_from(draft.len()).unwrap_or(u32::MAX);
        replayed.seconds += total.as_secs_f64();
    }
    replayed.plain_seconds = one * (trace.tokens.len() - trace.prompt - 1) as f64;
    replayed
}

/// Seconds that one more row takes, from steps of eight drafts.
async fn row_seconds(model: &Arc<ClientModel>, blocks: &Arc<LocalModel>) -> anyhow::Result<f64> {
    let prompt = model.encode(&"red, green, blue, black, white; ".repeat(6))?;
    let request = Generate { max_tokens: 60, ignore_eos: true, ..Generate::new(prompt) };
    let (plain, _) = generate(model, blocks, request.clone()).await?;
    let request = Generate { speculate: Speculate::Prompt, ..request };
    let (_, times) = generate(model, blocks, request).await?;
    let mut steps: Vec<f64> =
        times[1..].iter().map(Duration::as_secs_f64).filter(|seconds| *seconds > 0.0).collect();
    steps.sort_by(f64::total_cmp);
    let nine = steps.get(steps.len() / 2).context("a step with drafts")?;
    Ok(((nine - plain.plain) / 8.0).max(0.0))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let tokens = std::env::args().nth(1).map(|argument| argument.parse()).transpose()?;
    let tokens: u32 = tokens.unwrap_or(96);
    let source = ModelSource::parse("smollm2-135m")?;
    let model = Model::open(&source, &Cache::new(cache()), PartsNeeded::everything(), &Silent)?;
    let model = Arc::new(ClientModel::from_shard(model)?);
    let blocks = Arc::new(LocalModel::load(model.shard(), 2048, Device::shared())?);
    let given = std::env::args().nth(2);
    let given = given.as_deref().and_then(|given| given.split_once(','));
    let row = match given {
        Some((_, row)) => row.parse::<f64>()? / 1e3,
        None => row_seconds(&model, &blocks).await?,
    };
    println!("one more row: {:.2} ms", row * 1e3);
    println!(
        "{:<20} {:>6} {:>8} {:>7} {:>8} {:>12} {:>7}",
        "text", "way ms", "step ms", "tokens", "drafts", "tokens/trip", "times"
    );
    for workload in workloads() {
        let mut traces = Vec::new();
        for text in &workload.texts {
            let prompt = model.encode_chat(&[Message::user(text.as_str())])?;
            let sampling = workload.sampling.clone();
            let request = Generate { max_tokens: tokens, sampling, ..Generate::new(prompt) };
            let mut trace = generate(&model, &blocks, request).await?.0;
            if let Some((plain, _)) = given {
                trace.plain = plain.parse::<f64>()? / 1e3;
            }
            traces.push(trace);
        }
        for delay in [0, 20, 50].map(Duration::from_millis) {
            let (mut sum, mut new) =
                (Replayed { steps: 0, drafted: 0, seconds: 0.0, plain_seconds: 0.0 }, 0);
            for trace in &traces {
                let one = replay(trace, row, delay);
                sum.steps += one.steps;
                sum.drafted += one.drafted;
                sum.seconds += one.seconds;
                sum.plain_seconds += one.plain_seconds;
                new += trace.tokens.len() - trace.prompt - 1;
            }
            println!(
                "{:<20} {:>6} {:>8.1} {:>7} {:>8} {:>12.2} {:>7.2}",
                workload.name,
                delay.as_millis(),
                traces[0].plain * 1e3,
                new,
                sum.drafted,
                new as f64 / f64::from(sum.steps),
                sum.plain_seconds / sum.seconds
            );
        }
    }
    Ok(())
}
