//! How much longer a chat waits for its tokens while others train on its servers:
//! `cargo run --release -p umbel-tests --example training_beside_chats -- 3 256` takes the rounds and the
//! tokens of a text that is learned, behind `cargo build --release -p umbel-tests`, which builds the
//! servers.
//!
//! In each round a chat is alone on the servers of a model, and then beside two trainers. The trainers'
//! own work (the ends of the model, AdamW) is done on the same machine, as is the chat's, so that what is
//! measured is more than what the servers' queue adds; that is in their own words below it.

#![allow(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use tokio::sync::watch;
use umbel_client::train::data::Example;
use umbel_client::train::{RemoteSettings, Trainer, TrainerSettings};
use umbel_client::{ClientModel, Speculate, Swarm};
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, TargetModule, TrainingState};
use umbel_protocol::Span;
use umbel_tests::prometheus::{get, metric, url};
use umbel_tests::swarm::{Server, serve};
use umbel_tests::training::{join, remote_as};
use umbel_tests::workload::{Workload, ask, client_model};

const MODEL: &str = "smollm2-135m";

/// Tokens of an answer.
const TOKENS: u32 = 256;

const LEARNING_RATE: f64 = 1e-3;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<u32>());
    let rounds = numbers.next().transpose()?.unwrap_or(3);
    let tokens = numbers.next().transpose()?.unwrap_or(256);
    let model = client_model(MODEL)?;
    let count = model.config().block_count;
    let first = server(&format!("0..{}", count / 2), None);
    let second = server(&format!("{}..{count}", count / 2), Some(&first));
    let mut one = trainer(&join(&first).await?, &model, 0, tokens).await?;
    let mut other = trainer(&join(&first).await?, &model, 1, tokens).await?;
    let swarm = join(&first).await?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut expected = None;
    for round in 0..=rounds {
        let (answer, without) = chat(&swarm, &model).await?;
        ensure!(*expected.get_or_insert(answer.clone()) == answer, "another answer");
        let (stop, stopped) = watch::channel(false);
        let text = text(tokens, &model);
        let chatting = async {
            let chatted = chat(&swarm, &model).await;
            stop.send_replace(true);
            chatted
        };
        let (steps, of_other, chatted) = tokio::join!(
            train(&mut one, &text, stopped.clone()),
            train(&mut other, &text, stopped),
            chatting,
        );
        let (steps, (answer, with)) = ([steps?, of_other?], chatted?);
        ensure!(Some(answer) == expected, "another answer beside trainings");
        // The first round warms up.
        if round > 0 {
            println!("round {round}: {steps:?} steps of training beside {TOKENS} tokens");
            alone.extend(without);
            beside.extend(with);
        }
    }
    println!("{:16} {:>9} {:>9} {:>9} ms a token", "", "median", "90%", "99%");
    for (name, seconds) in [("alone", &mut alone), ("beside trainings", &mut beside)] {
        seconds.sort_by(f64::total_cmp);
        let at = |percent: usize| seconds[(seconds.len() - 1) * percent / 100] * 1e3;
        println!("{name:16} {:>9.1} {:>9.1} {:>9.1}", at(50), at(90), at(99));
    }
    for server in [&first, &second] {
        let (_, text) = get(&url(&server.stderr()));
        let of = |name: &str| metric(&text, name);
        let waited = of("umbel_passes_waited_total");
        println!(
            "a server: {} passes of {:.1} ms; {waited} waited for {} parts of trainings, {:.1} ms each",
            of("umbel_passes_total"),
            1e3 * of("umbel_pass_seconds_sum") / of("umbel_pass_seconds_count"),
            of("umbel_training_parts_waited_total"),
            1e3 * of("umbel_pass_wait_seconds_sum") / waited.max(1.0),
        );
    }
    one.close().await;
    other.close().await;
    Ok(())
}

fn server(blocks: &str, first: Option<&Server>) -> Server {
    let mut arguments = vec![MODEL, "--blocks", blocks, "--metrics", "127.0.0.1:0"];
    arguments.extend(first.iter().flat_map(|first| ["--join", first.address()]));
    serve(&arguments)
}

/// An answer, and what each of its tokens behind the first took.
async fn chat(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
) -> anyhow::Result<(Vec<u32>, Vec<f64>)> {
    let prompt = (0..16).map(|place| 100 + place * 37).collect();
    let workload = Workload { prompt, tokens: TOKENS, prefill_chunk: 16, standby: false };
    let mut generation = ask(Arc::clone(swarm), model, &workload, &Speculate::Off).await?;
    generation.next().await?;
    let (mut seconds, mut last) = (Vec::new(), Instant::now());
    while generation.next().await?.is_some() {
        seconds.push(last.elapsed().as_secs_f64());
        last = Instant::now();
    }
    Ok((generation.tokens().to_vec(), seconds))
}

/// Learns until it is told to stop, and says how many steps that were.
async fn train(
    trainer: &mut Trainer,
    text: &Example,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<usize> {
    let mut steps = 0;
    while !*stopped.borrow() {
        trainer.step(&[text], LEARNING_RATE).await?;
        steps += 1;
    }
    Ok(steps)
}

async fn trainer(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    seed: u64,
    tokens: u32,
) -> anyhow::Result<Trainer> {
    let config = AdapterConfig {
        rank: 8,
        alpha: 16.0,
        rank_stabilized: false,
        dropout: 0.0,
        target_modules: TargetModule::ALL[..4].to_vec(),
        ..AdapterConfig::default()
    };
    let all = Span::new(0, model.config().block_count)?;
    let adapter = Adapter::begin(config, model.config(), all, seed)?;
    let state = TrainingState::new(adapter, AdamW::default());
    let settings = TrainerSettings { seed, ..TrainerSettings::default() };
    let remote = RemoteSettings { tokens_max: tokens, ..RemoteSettings::default() };
    Ok(remote_as(remote, swarm, model, state, settings).await?.0)
}

/// A text without meaning: speed does not depend on it.
fn text(tokens: u32, model: &ClientModel) -> Example {
    let vocabulary = u32::try_from(model.config().vocabulary_size).unwrap_or(u32::MAX);
    let ids = (0..=tokens).map(|place| place.wrapping_mul(7_919) % vocabulary);
    Example::of_text(ids.collect())
}
