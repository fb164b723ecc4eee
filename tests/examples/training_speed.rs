//! How fast a training is in one process and over swarms of server processes on this machine, in turn,
//! and what memory a server takes for it:
//! `cargo run --release -p umbel-tests --example training_speed -- 3 256` takes the rounds and the
//! tokens of a text, behind `cargo build --release -p umbel-tests`, which builds the servers.
//!
//! Every way has to come to the same losses.

#![allow(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use umbel_client::ClientModel;
use umbel_client::train::data::Example;
use umbel_client::train::{RemoteSettings, StepReport, Trainer, TrainerSettings};
use umbel_engine::train::{
    AdamW, Adapter, AdapterConfig, TargetModule, TrainingState, module_shape,
};
use umbel_protocol::Span;
use umbel_tests::swarm::{Server, serve};
use umbel_tests::training::{join, local, remote_as};
use umbel_tests::workload::client_model;

const MODEL: &str = "smollm2-135m";

/// Texts of a step, each of which is a microbatch.
const TEXTS: u32 = 4;

const LEARNING_RATE: f64 = 1e-3;

/// Microbatches that a server keeps at once.
const UNDER_WAY: u32 = 4;

/// Servers of each route, for each way but the one process.
const WAYS: [&[usize]; 4] = [&[1], &[2], &[4], &[2, 2]];

/// One way to train, and the seconds of each of its rounds.
struct Way {
    name: String,
    servers: Vec<Server>,
    at_rest: Vec<u64>,
    trainer: Trainer,
    seconds: Vec<f64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<u32>());
    let rounds = numbers.next().transpose()?.unwrap_or(3);
    let tokens = numbers.next().transpose()?.unwrap_or(256);
    let model = client_model(MODEL)?;
    let mut ways = ways(&model, tokens).await?;
    let texts: Vec<_> = (0..TEXTS).map(|number| text(number, tokens, &model)).collect();
    let batch: Vec<_> = texts.iter().collect();
    for round in 0..=rounds {
        let mut expected: Option<StepReport> = None;
        for way in &mut ways {
            let started = Instant::now();
            let report = way.trainer.step(&batch, LEARNING_RATE).await?;
            // The first round warms up.
            if round > 0 {
                way.seconds.push(started.elapsed().as_secs_f64());
            }
            ensure!(*expected.get_or_insert(report) == report, "{}: another loss", way.name);
        }
    }
    let alone = ways[0].seconds.clone();
    println!("{:20} {:>9} {:>15}", "", "tokens/s", "of one process");
    for way in &ways {
        let speed = f64::from(TEXTS * tokens) / median(way.seconds.clone());
        let ratios = alone.iter().zip(&way.seconds).map(|(alone, here)| alone / here).collect();
        println!("{:20} {speed:>9.1} {:>15.3}", way.name, median(ratios));
    }
    println!(
        "\n{:20} {:>10} {:>10} {:>10} MB",
        "memory of a server", "at rest", "peak", "expected"
    );
    for way in &ways {
        for (server, at_rest) in way.servers.iter().zip(&way.at_rest) {
            let blocks: u32 = server.tag().parse()?;
            let expected = at_rest + training_bytes(&model, blocks, tokens);
            let mb = |bytes: u64| bytes as f64 / 1e6;
            let name = format!("{} blocks", blocks);
            let peak = server.peak_bytes()?;
            println!("{name:20} {:>10.1} {:>10.1} {:>10.1}", mb(*at_rest), mb(peak), mb(expected));
        }
    }
    for way in ways {
        way.trainer.close().await;
    }
    Ok(())
}

async fn ways(model: &Arc<ClientModel>, tokens: u32) -> anyhow::Result<Vec<Way>> {
    let state = state(model)?;
    let settings = TrainerSettings { microbatch_tokens: 1, ..TrainerSettings::default() };
    let trainer = local(model, state.clone(), settings);
    let (servers, at_rest, seconds) = (Vec::new(), Vec::new(), Vec::new());
    let mut ways = vec![Way { name: "one process".to_owned(), servers, at_rest, trainer, seconds }];
    for routes in WAYS {
        let mut servers: Vec<Server> = Vec::new();
        for &count in routes {
            for (start, end) in stages(model.config().block_count, u32::try_from(count)?) {
                let blocks = format!("{start}..{end}");
                let first = servers.first().map(|server| server.address().to_owned());
                let join = first.iter().flat_map(|first| ["--join", first]);
                let fixed = [MODEL, "--blocks", &blocks];
                let mut server = serve(&fixed.into_iter().chain(join).collect::<Vec<_>>());
                server.set_tag(&(end - start).to_string());
                servers.push(server);
            }
        }
        let mut at_rest = Vec::new();
        for server in &servers {
            at_rest.push(server.resident_bytes()?);
            server.forget_peak()?;
        }
        let remote = RemoteSettings {
            seed: 0,
            tokens_max: tokens,
            under_way: UNDER_WAY,
            routes: routes.len(),
        };
        let swarm = join(servers.first().context("a server")?).await?;
        let opened = remote_as(remote, &swarm, model, state.clone(), settings).await?;
        ensure!(opened.0.routes().len() == routes.len(), "{:?}", opened.0.routes());
        let name = match routes {
            [count] => format!("{count} servers"),
            [count, ..] => format!("{} routes of {count}", routes.len()),
            [] => continue,
        };
        ways.push(Way { name, servers, at_rest, trainer: opened.0, seconds: Vec::new() });
    }
    Ok(ways)
}

fn state(model: &ClientModel) -> anyhow::Result<TrainingState> {
    let config = AdapterConfig {
        rank: 8,
        alpha: 16.0,
        rank_stabilized: false,
        dropout: 0.0,
        target_modules: TargetModule::ALL[..4].to_vec(),
        ..AdapterConfig::default()
    };
    let all = Span::new(0, model.config().block_count)?;
    Ok(TrainingState::new(Adapter::begin(config, model.config(), all, 1)?, AdamW::default()))
}

/// A text without meaning: speed does not depend on it.
fn text(number: u32, tokens: u32, model: &ClientModel) -> Example {
    let vocabulary = u32::try_from(model.config().vocabulary_size).unwrap_or(u32::MAX);
    let ids = (0..=tokens).map(|place| (place + number * 1_009).wrapping_mul(7_919) % vocabulary);
    Example::of_text(ids.collect())
}

fn stages(blocks: u32, servers: u32) -> Vec<(u32, u32)> {
    (0..servers).map(|index| (blocks * index / servers, blocks * (index + 1) / servers)).collect()
}

/// What a training adds to a server with so many blocks: the adapter with gradients and two moments,
/// what entered each block of the microbatches that are kept, and the activations of one block on its
/// way back (queries, keys, values, what was attended and the residual path of the first half; gate, up,
/// their product, and the gradients of these in the second).
fn training_bytes(model: &ClientModel, blocks: u32, tokens: u32) -> u64 {
    let config = model.config();
    let values: usize = TargetModule::ALL[..4]
        .iter()
        .filter_map(|module| module_shape(*module, config))
        .map(|shape| shape.iter().sum::<usize>() * 8)
        .sum();
    let state = 4 * values as u64 * u64::from(blocks);
    let rows = u64::from(tokens) * config.hidden_size as u64;
    let kept = u64::from(UNDER_WAY.min(TEXTS) * blocks) * rows;
    let widths = (5 * config.hidden_size + 6 * config.intermediate_size) as u64;
    4 * (state + kept + u64::from(tokens) * widths)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) && middle > 0 {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values.get(middle).copied().unwrap_or_default()
    }
}
