//! Many clients at once: what they get together, and how evenly each gets its tokens.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use umbel_client::{ClientModel, Generate, Generation, SessionOptions, Swarm, SwarmConfig};

use super::super::local_swarm::LocalSwarm;
use super::super::session::{Blocks, Opened};
use super::prompt;
use crate::args::BenchArguments;
use crate::config::Config;

/// Most tokens that a client decodes while another reads: at 20 tokens a second, a hundred seconds.
const TOKENS_WHILE_READING_MAX: u32 = 2_048;

/// What was measured with so many clients.
struct Row {
    clients: u32,
    /// Tokens a second of all clients, in each round.
    rates: Vec<f64>,
    /// From token to token.
    gaps: Vec<Duration>,
    reading: Reading,
}

/// What the clients saw while another's prompt was read.
#[derive(Default)]
struct Reading {
    gaps: Vec<Duration>,
    /// Until the other had its first token, in each round.
    took: Vec<Duration>,
}

/// Measures `arguments.clients` at a swarm of the first of `arguments.servers`.
pub(super) async fn run(
    arguments: &BenchArguments,
    name: &str,
    model: &Arc<ClientModel>,
    config: &Config,
) -> anyhow::Result<()> {
    let count = *arguments.servers.first().context("--servers names no number of servers")?;
    let tokens = arguments.prompt_tokens + TOKENS_WHILE_READING_MAX;
    let context = model.config().context_tokens;
    if arguments.reader_tokens > 0 && arguments.reader_tokens.max(tokens) as usize >= context {
        bail!("the model's context has {context} tokens: let --reader-tokens be fewer, or 0");
    }
    let servers = LocalSwarm::start(name, model.config().block_count, count, config).await?;
    let most = arguments.clients.iter().copied().max().unwrap_or(1);
    let mut clients = Vec::new();
    // One more, who reads while the others decode.
    for _ in 0..=most {
        let join = SwarmConfig { join: vec![servers.address().clone()], ..SwarmConfig::default() };
        let swarm = Arc::new(Swarm::join(join).await?);
        let blocks = Blocks::Swarm(swarm, SessionOptions::default());
        clients.push(Arc::new(Opened { model: Arc::clone(model), blocks }));
    }
    // The first round warms up.
    decode(&clients[..1], arguments).await?;
    let mut rows = Vec::new();
    for &count in &arguments.clients {
        rows.push(measure(&clients, count, arguments).await?);
    }
    let text = if arguments.json { as_json(arguments, &rows) } else { as_text(arguments, &rows) };
    for client in clients {
        if let Some(opened) = Arc::into_inner(client) {
            opened.leave().await;
        }
    }
    servers.stop().await;
    writeln!(std::io::stdout(), "{text}").context("stdout is closed")
}

async fn measure(
    clients: &[Arc<Opened>],
    count: u32,
    arguments: &BenchArguments,
) -> anyhow::Result<Row> {
    let (decoders, rest) = clients.split_at(count as usize);
    let reader = rest.first().context("there is a client more than decode")?;
    let mut row =
        Row { clients: count, rates: Vec::new(), gaps: Vec::new(), reading: Reading::default() };
    for _ in 0..arguments.rounds {
        let (rate, gaps) = decode(decoders, arguments).await?;
        row.rates.push(rate);
        row.gaps.extend(gaps);
        if arguments.reader_tokens > 0 {
            let (took, gaps) = read(decoders, reader, arguments).await?;
            row.reading.took.push(took);
            row.reading.gaps.extend(gaps);
        }
        eprint!(".");
    }
    eprintln!();
    Ok(row)
}

/// Lets all decode at once; tokens a second of all together, and the gaps of each.
async fn decode(
    clients: &[Arc<Opened>],
    arguments: &BenchArguments,
) -> anyhow::Result<(f64, Vec<Duration>)> {
    let ready = Arc::new(Barrier::new(clients.len()));
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
    while let Some(times) = tasks.join_next().await {
        all.push(times??);
    }
    let begin = all.iter().flat_map(|times| times.first()).min().context("nobody decoded")?;
    let end = all.iter().flat_map(|times| times.last()).max().context("nobody decoded")?;
    let tokens: usize = all.iter().map(|times| times.len() - 1).sum();
    Ok((tokens as f64 / (*end - *begin).as_secs_f64(), all.iter().flat_map(|t| gaps(t)).collect()))
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
    let chain = client.chain((prompt_tokens + new_tokens) as usize).await?;
    let request = Generate { max_tokens: new_tokens, ignore_eos: true, ..Generate::new(ids) };
    Ok(request.start(Arc::clone(&client.model), chain)?)
}

fn gaps(times: &[Instant]) -> impl Iterator<Item = Duration> {
    times.windows(2).map(|pair| pair[1] - pair[0])
}

/// The value that `share` of all are at most, in milliseconds.
fn quantile(gaps: &[Duration], share: f64) -> f64 {
    let mut sorted = gaps.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a vector, from a share of its length"
    )]
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).map_or(f64::NAN, |gap| gap.as_secs_f64() * 1e3)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    fn rate(&self) -> f64 {
        median(&self.rates)
    }
}

impl Reading {
    fn seconds(&self) -> f64 {
        median(&self.took.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
    }
}

fn as_text(arguments: &BenchArguments, rows: &[Row]) -> String {
    let mut lines = vec![
        format!(
            "tokens/s of all clients, medians of {} rounds; prompts of {} tokens, then {} new ones; \
             gaps in ms",
            arguments.rounds, arguments.prompt_tokens, arguments.new_tokens
        ),
        format!(
            "{:>7}  {:>9}  {:>8}  {:>8}  {:>8}  while {} tokens are read: p50, p99, seconds",
            "clients", "tokens/s", "of first", "gap p50", "gap p99", arguments.reader_tokens
        ),
    ];
    for row in rows {
        lines.push(format!(
            "{:>7}  {:>9.1}  {:>8.2}  {:>8.1}  {:>8.1}  {:>8.1}  {:>8.1}  {:>8.1}",
            row.clients,
            row.rate(),
            row.rate() / rows[0].rate(),
            quantile(&row.gaps, 0.5),
            quantile(&row.gaps, 0.99),
            quantile(&row.reading.gaps, 0.5),
            quantile(&row.reading.gaps, 0.99),
            row.reading.seconds(),
        ));
    }
    lines.join("\n")
}

fn as_json(arguments: &BenchArguments, rows: &[Row]) -> String {
    let of = |gaps: &[Duration]| json!({ "p50": quantile(gaps, 0.5), "p99": quantile(gaps, 0.99) });
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "clients": row.clients,
                "tokens_per_second": row.rate(),
                "of_first": row.rate() / rows[0].rate(),
                "gap_ms": of(&row.gaps),
                "while_reading": {
                    "prompt_tokens": arguments.reader_tokens,
                    "seconds": row.reading.seconds(),
                    "gap_ms": of(&row.reading.gaps),
                },
            })
        })
        .collect();
    json!({ "results": rows }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let gaps: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        let close = |share, expected: f64| (quantile(&gaps, share) - expected).abs() < 1e-9;
        assert!(close(0.5, 51.0) && close(0.99, 100.0) && close(1.0, 101.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
