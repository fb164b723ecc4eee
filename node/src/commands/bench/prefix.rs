//! What it saves that servers keep what a client's sessions have read: the time to the first token
//! of a request that begins as an earlier one did.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use umbel_client::{ClientModel, Generate, SessionOptions, Swarm, SwarmConfig};

use super::sample::{median, median_ratio};
use super::{LocalSwarm, prompt, server_options, session_options};
use crate::args::BenchArguments;
use crate::commands::session::{Blocks, Opened};
use crate::config::Config;
use crate::telemetry::{dot, say};

/// Tokens of each request that no other has, behind those that all have.
const OWN_TOKENS: u32 = 16;

/// Tokens that are drawn: servers are told what they may keep behind the first.
const NEW_TOKENS: u32 = 4;

/// Seconds from asking for a session to the first token, in each round.
#[derive(Default)]
struct Row {
    servers: u32,
    /// Of the request that comes first.
    first: Vec<f64>,
    /// Of the next one, which begins with the same tokens.
    second: Vec<f64>,
    /// Of the same request by a client that shares nothing.
    alone: Vec<f64>,
    /// Tokens that the second did not have computed.
    held: usize,
}

impl Row {
    fn ratio(&self) -> f64 {
        median_ratio(self.second.iter().copied(), self.first.iter().copied())
    }
}

/// Measures swarms of `arguments.servers`, and tells of them.
pub(super) async fn run(
    arguments: &BenchArguments,
    shared_tokens: u32,
    name: &str,
    model: &Arc<ClientModel>,
    config: &Config,
) -> anyhow::Result<String> {
    let context = model.config().context_tokens;
    if (shared_tokens + OWN_TOKENS + NEW_TOKENS) as usize > context {
        bail!("the model's context has {context} tokens: share fewer");
    }
    let mut rows = Vec::new();
    for &count in arguments.servers.iter().filter(|count| **count > 0) {
        let block_count = model.config().block_count;
        let servers =
            LocalSwarm::start(name, block_count, count, server_options(arguments), config).await?;
        let join = SwarmConfig { join: vec![servers.address().clone()], ..SwarmConfig::default() };
        let swarm = Arc::new(Swarm::join(join).await?);
        let opened = |share| {
            let options = SessionOptions { share, ..session_options(arguments) };
            let blocks = Blocks::Swarm(Arc::clone(&swarm), options);
            Opened { model: Arc::clone(model), blocks }
        };
        let (sharing, alone) = (opened(true), opened(false));
        let mut row = Row { servers: count, ..Row::default() };
        for round in 0..=arguments.rounds {
            let ask = async |opened: &Opened, question: u32| {
                first_token(opened, text(model, shared_tokens, round, question)?).await
            };
            let (first, _) = ask(&sharing, 0).await?;
            let (second, held) = ask(&sharing, 1).await?;
            let (apart, _) = ask(&alone, 1).await?;
            // The first round warms up.
            if round > 0 {
                row.first.push(first.as_secs_f64());
                row.second.push(second.as_secs_f64());
                row.alone.push(apart.as_secs_f64());
                row.held = held;
            }
            dot();
        }
        rows.push(row);
        drop((sharing, alone));
        if let Some(swarm) = Arc::into_inner(swarm) {
            swarm.leave().await;
        }
        servers.stop().await;
    }
    say("");
    Ok(if arguments.json { as_json(&rows) } else { as_text(shared_tokens, &rows) })
}

/// The tokens that all requests of a round have, and those of one of them.
fn text(
    model: &ClientModel,
    shared_tokens: u32,
    round: u32,
    question: u32,
) -> anyhow::Result<Vec<u32>> {
    let vocabulary = u32::try_from(model.config().vocabulary_size)?.max(1);
    let mut text = prompt(shared_tokens, model.config().vocabulary_size);
    // Another text in each round: what the one before has left is of no use.
    text[0] = round % vocabulary;
    text.extend((0..OWN_TOKENS).map(|token| (token * 2 + question + 1) % vocabulary));
    Ok(text)
}

/// How long it takes from asking for a session to the first token, and how many tokens servers held.
async fn first_token(opened: &Opened, prompt: Vec<u32>) -> anyhow::Result<(Duration, usize)> {
    let begun = Instant::now();
    let chain = opened.chain(prompt.len() + NEW_TOKENS as usize, &prompt).await?;
    let held = chain.held().len();
    let request = Generate { max_tokens: NEW_TOKENS, ignore_eos: true, ..Generate::new(prompt) };
    let mut generation = request.start(Arc::clone(&opened.model), chain)?;
    generation.next().await?.context("no token was generated")?;
    let took = begun.elapsed();
    generation.finish().await?;
    generation.into_chain().0.close().await;
    Ok((took, held))
}

fn as_text(shared_tokens: u32, rows: &[Row]) -> String {
    let mut text = format!(
        "to the first token of a request of {} tokens, of which {shared_tokens} began an earlier one\n\
         servers   first ms   second ms   unshared ms   second of first   held\n",
        shared_tokens + OWN_TOKENS
    );
    for row in rows {
        let ms = |seconds: &[f64]| median(seconds.to_vec()) * 1e3;
        text.push_str(&format!(
            "{:>7} {:>10.1} {:>11.1} {:>13.1} {:>17.3} {:>6}\n",
            row.servers,
            ms(&row.first),
            ms(&row.second),
            ms(&row.alone),
            row.ratio(),
            row.held
        ));
    }
    text
}

fn as_json(rows: &[Row]) -> String {
    let row = |row: &Row| {
        json!({
            "servers": row.servers,
            "first_seconds": row.first,
            "second_seconds": row.second,
            "unshared_seconds": row.alone,
            "second_of_first": row.ratio(),
            "held_tokens": row.held,
        })
    };
    json!({ "shared_prefix": rows.iter().map(row).collect::<Vec<_>>() }).to_string()
}
