//! Many clients at once: what they get together, and how evenly each gets its tokens.

mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use umbel_client::{ClientModel, Generate, Generation, Swarm, SwarmConfig};

use super::super::local_swarm::{LocalSwarm, ServerOptions};
use super::super::session::{Blocks, Opened};
use super::llama::Llama;
use super::machine::Memory;
use super::sample::{gaps, median};
use super::{Limits, loopback, prompt, server_options, session_options};
use crate::args::BenchArguments;
use crate::config::Config;
use crate::telemetry::{dot, say};

/// Most tokens that a client decodes while another reads, as far as its context has room: at 20 tokens a
/// second, fifty seconds.
const TOKENS_WHILE_READING_MAX: u32 = 1_024;

/// Sessions take whole pages of so many tokens.
const PAGE_TOKENS: u32 = 16;

/// What was measured with so many clients.
struct Row {
    clients: u32,
    /// Tokens a second of all clients, in each round.
    rates: Vec<f64>,
    /// Bytes a second that memory gave before and after, in each round.
    reads: Vec<f64>,
    /// Tokens a second of llama.cpp, where it is measured.
    llama_rates: Vec<f64>,
    /// From token to token.
    gaps: Vec<Duration>,
    /// Bytes that crossed the loopback device for each token, in each round.
    wire_bytes: Vec<f64>,
    reading: Reading,
}

/// What the clients saw while another's prompt was read.
#[derive(Default)]
struct Reading {
    gaps: Vec<Duration>,
    /// Until the other had its first token, in each round.
    took: Vec<Duration>,
}

/// Measures `arguments.clients` at a swarm of the first of `arguments.servers`, and tells of it.
pub(super) async fn run(
    arguments: &BenchArguments,
    name: &str,
    model: &Arc<ClientModel>,
    config: &Config,
    peer: Option<Llama>,
    mut limits: Limits,
) -> anyhow::Result<String> {
    let count = *arguments.servers.first().context("--servers names no number of servers")?;
    let context = model.config().context_tokens;
    if arguments.reader_tokens as usize >= context {
        bail!("the model's context has {context} tokens: let --reader-tokens be fewer, or 0");
    }
    let most = arguments.clients.iter().copied().max().unwrap_or(1);
    let each = arguments.prompt_tokens + arguments.new_tokens.max(TOKENS_WHILE_READING_MAX);
    let room = most * (each + PAGE_TOKENS) + arguments.reader_tokens + PAGE_TOKENS;
    let block_count = model.config().block_count;
    let options = ServerOptions { kv_tokens: Some(room), ..server_options(arguments) };
    let servers = LocalSwarm::start(name, block_count, count, options, config).await?;
    let mut clients = Vec::new();
    // One more, who reads while the others decode.
    for _ in 0..=most {
        let join = SwarmConfig { join: vec![servers.address().clone()], ..SwarmConfig::default() };
        let swarm = Arc::new(Swarm::join(join).await?);
        let blocks = Blocks::Swarm(swarm, session_options(arguments));
        clients.push(Arc::new(Opened { model: Arc::clone(model), blocks }));
    }
    // The first round warms up.
    decode(&clients[..1], arguments, &limits.memory).await?;
    let mut rows = Vec::new();
    for &count in &arguments.clients {
        limits.look_again().await?;
        rows.push(measure(&clients, count, arguments, peer.as_ref(), &limits.memory).await?);
    }
    for client in clients {
        if let Some(opened) = Arc::into_inner(client) {
            opened.leave().await;
        }
    }
    servers.stop().await;
    Ok(if arguments.json {
        report::as_json(arguments, &limits, &rows)
    } else {
        report::as_text(arguments, &limits, &rows)
    })
}

async fn measure(
    clients: &[Arc<Opened>],
    count: u32,
    arguments: &BenchArguments,
    peer: Option<&Llama>,
    memory: &Memory,
) -> anyhow::Result<Row> {
    let (decoders, rest) = clients.split_at(count as usize);
    let reader = rest.first().context("there is a client more than decode")?;
    let mut row = Row {
        clients: count,
        rates: Vec::new(),
        reads: Vec::new(),
        llama_rates: Vec::new(),
        gaps: Vec::new(),
        wire_bytes: Vec::new(),
        reading: Reading::default(),
    };
    for _ in 0..arguments.rounds {
        let decoded = decode(decoders, arguments, memory).await?;
        row.reads.push(decoded.read);
        row.rates.push(decoded.rate);
        row.gaps.extend(decoded.gaps);
        row.wire_bytes.extend(decoded.wire_bytes);
        if let Some(llama) = peer {
            let (prompt, new) = (arguments.prompt_tokens, arguments.new_tokens);
            row.llama_rates.push(llama.many(count, prompt, new).await?.decode);
        }
        if arguments.reader_tokens > 0 {
            let (took, gaps) = read(decoders, reader, arguments).await?;
            row.reading.took.push(took);
            row.reading.gaps.extend(gaps);
        }
        dot();
    }
    say("");
    Ok(row)
}

/// What came of decoding together.
struct Decoded {
    /// Tokens a second of all.
    rate: f64,
    /// Bytes a second that memory gave before the prompts and after the tokens, on average.
    read: f64,
    /// Those of each.
    gaps: Vec<Duration>,
    /// Bytes that crossed the loopback device for each token.
    wire_bytes: Option<f64>,
}

/// Lets all decode at once.
async fn decode(
    clients: &[Arc<Opened>],
    arguments: &BenchArguments,
    memory: &Memory,
) -> anyhow::Result<Decoded> {
    let before = memory.look().await?;
    let ready = Arc::new(Barrier::new(clients.len() + 1));
    let mut tasks = JoinSet::new();
    for (index, client) in (0..).zip(clients) {
        let (client, ready) = (Arc::clone(client), Arc::clone(&ready));
        let (length, tokens) = (arguments.prompt_tokens, arguments.new_tokens);
        tasks.spawn(async move {
            let mut generation = begin(&client, index, length, tokens).await?;
            generation.next().await?;
            ready.wait().await;
            let mut times = vec![Instant::now()];
            while generation.next().await?.is_some() {
                times.push(Instant::now());
            }
            generation.into_chain().0.close().await;
            anyhow::Ok(times)
        });
    }
    let mut all = Vec::new();
    let mut wait = std::pin::pin!(ready.wait());
    let mut bytes = None;
    loop {
        tokio::select! {
            _ = &mut wait, if bytes.is_none() => bytes = Some(loopback::bytes()),
            // One that fails before the others are ready is not waited for.
            times = tasks.join_next() => match times {
                Some(times) => all.push(times??),
                None => break,
            },
        }
    }
    let bytes = bytes.flatten().zip(loopback::bytes()).map(|(from, to)| to.saturating_sub(from));
    let begin = all.iter().flat_map(|times| times.first()).min().context("nobody decoded")?;
    let end = all.iter().flat_map(|times| times.last()).max().context("nobody decoded")?;
    let tokens: usize = all.iter().map(|times| times.len() - 1).sum();
    Ok(Decoded {
        rate: tokens as f64 / (*end - *begin).as_secs_f64(),
        read: f64::midpoint(before, memory.look().await?),
        gaps: all.iter().flat_map(|times| gaps(times)).collect(),
        wire_bytes: bytes.map(|bytes| bytes as f64 / tokens as f64),
    })
}

/// Lets all decode while `reader` reads a long prompt: how long it takes, and the gaps of the others
/// meanwhile.
async fn read(
    clients: &[Arc<Opened>],
    reader: &Arc<Opened>,
    arguments: &BenchArguments,
) -> anyhow::Result<(Duration, Vec<Duration>)> {
    let ready = Arc::new(Barrier::new(clients.len() + 1));
    let has_read = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for (index, client) in (0..).zip(clients) {
        let (client, ready) = (Arc::clone(client), Arc::clone(&ready));
        let (length, has_read) = (arguments.prompt_tokens, Arc::clone(&has_read));
        tasks.spawn(async move {
            let mut generation = begin(&client, index, length, TOKENS_WHILE_READING_MAX).await?;
            generation.next().await?;
            ready.wait().await;
            let mut times = vec![Instant::now()];
            while !has_read.load(Ordering::Relaxed) && generation.next().await?.is_some() {
                times.push(Instant::now());
            }
            generation.into_chain().0.close().await;
            anyhow::Ok(times)
        });
    }
    // Nothing is sent before the others are ready.
    let mut generation = begin(reader, u32::MAX, arguments.reader_tokens, 1).await?;
    ready.wait().await;
    let started = Instant::now();
    let first = generation.next().await;
    let took = started.elapsed();
    has_read.store(true, Ordering::Relaxed);
    first?;
    generation.into_chain().0.close().await;
    let mut found = Vec::new();
    while let Some(times) = tasks.join_next().await {
        found.extend(gaps(&times??));
    }
    Ok((took, found))
}

async fn begin(
    client: &Opened,
    index: u32,
    prompt_tokens: u32,
    new_tokens: u32,
) -> anyhow::Result<Generation> {
    let vocabulary = client.model.config().vocabulary_size;
    let mut ids = prompt(prompt_tokens, vocabulary);
    ids[0] = index % u32::try_from(vocabulary)?;
    let chain = client.chain((prompt_tokens + new_tokens) as usize, &[]).await?;
    let request = Generate { max_tokens: new_tokens, ignore_eos: true, ..Generate::new(ids) };
    Ok(request.start(Arc::clone(&client.model), chain)?)
}

impl Row {
    fn rate(&self) -> f64 {
        median(self.rates.iter().copied())
    }
}

impl Reading {
    fn seconds(&self) -> f64 {
        median(self.took.iter().map(Duration::as_secs_f64))
    }
}
