//! `umbel bench`

mod clients;
mod random;

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::json;
use umbel_client::{ClientModel, Generate, SessionOptions, Swarm, SwarmConfig};
use umbel_shard::{ModelSource, PartsNeeded};

use super::local_swarm::LocalSwarm;
use super::session::{Blocks, Opened, load_blocks, open_ends};
use crate::args::BenchArguments;
use crate::config::Config;

pub(super) async fn run(arguments: BenchArguments, config: &Config) -> anyhow::Result<()> {
    let name = &match arguments.random_model {
        Some(shape) => random::model(shape, arguments.weights, &config.cache_dir)?,
        None => arguments.model.name().to_owned(),
    };
    let model = open_ends(ModelSource::parse(name)?, config, PartsNeeded::everything()).await?;
    let context = model.config().context_tokens;
    if arguments.prompt_tokens == 0 || arguments.new_tokens < 2 {
        bail!("measure at least one token of prompt and two new ones");
    }
    if (arguments.prompt_tokens + arguments.new_tokens) as usize > context {
        bail!("the model's context has {context} tokens: measure fewer");
    }
    if !arguments.clients.is_empty() {
        return clients::run(&arguments, name, &model, config).await;
    }
    let mut contenders = contenders(&arguments, name, &model, config).await?;
    let prompt = prompt(arguments.prompt_tokens, model.config().vocabulary_size);
    for round in 0..=arguments.rounds {
        for contender in &mut contenders {
            let rates = measure(&contender.opened, &prompt, arguments.new_tokens).await?;
            // The first round warms up.
            if round > 0 {
                contender.rates.push(rates);
            }
            eprint!(".");
        }
    }
    eprintln!();
    let text = if arguments.json { as_json(&contenders) } else { as_text(&arguments, &contenders) };
    for contender in contenders {
        contender.opened.leave().await;
        if let Some(servers) = contender.servers {
            servers.stop().await;
        }
    }
    writeln!(std::io::stdout(), "{text}").context("stdout is closed")
}

/// One way to compute the model, and what was measured of it.
struct Contender {
    name: String,
    opened: Opened,
    servers: Option<LocalSwarm>,
    rates: Vec<Rates>,
}

/// Tokens a second.
#[derive(Clone, Copy)]
struct Rates {
    prefill: f64,
    decode: f64,
}

async fn contenders(
    arguments: &BenchArguments,
    name: &str,
    model: &Arc<ClientModel>,
    config: &Config,
) -> anyhow::Result<Vec<Contender>> {
    let local = Blocks::Local(load_blocks(model, config).await?);
    let mut contenders = vec![Contender {
        name: "one process".to_owned(),
        opened: Opened { model: Arc::clone(model), blocks: local },
        servers: None,
        rates: Vec::new(),
    }];
    for &count in &arguments.servers {
        let servers = LocalSwarm::start(name, model.config().block_count, count, config).await?;
        let join = SwarmConfig { join: vec![servers.address().clone()], ..SwarmConfig::default() };
        let swarm = Arc::new(Swarm::join(join).await?);
        let swarm = Blocks::Swarm(swarm, SessionOptions::default());
        contenders.push(Contender {
            name: format!("swarm of {count}"),
            opened: Opened { model: Arc::clone(model), blocks: swarm },
            servers: Some(servers),
            rates: Vec::new(),
        });
    }
    Ok(contenders)
}

/// Token ids without meaning, spread over the vocabulary: speed does not depend on them.
fn prompt(tokens: u32, vocabulary: usize) -> Vec<u32> {
    let vocabulary = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(1);
    (0..tokens).map(|index| index.wrapping_mul(7_919) % vocabulary).collect()
}

async fn measure(opened: &Opened, prompt: &[u32], new_tokens: u32) -> anyhow::Result<Rates> {
    let request =
        Generate { max_tokens: new_tokens, ignore_eos: true, ..Generate::new(prompt.to_vec()) };
    let chain = opened.chain(prompt.len() + new_tokens as usize).await?;
    let mut generation = request.start(Arc::clone(&opened.model), chain)?;
    let started = std::time::Instant::now();
    let mut prefill = None;
    while generation.next().await?.is_some() {
        prefill.get_or_insert_with(|| started.elapsed());
    }
    let total = started.elapsed();
    let prefill = prefill.context("no token was generated")?;
    let (chain, _) = generation.into_chain();
    chain.close().await;
    Ok(Rates {
        prefill: prompt.len() as f64 / prefill.as_secs_f64(),
        decode: f64::from(new_tokens - 1) / (total - prefill).as_secs_f64(),
    })
}

impl Contender {
    fn median(&self, of: impl Fn(&Rates) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rates.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// The median over the rounds of a contender's rate to that of the single process in the same
/// round: machines drift, and neighbours in time drift least.
fn ratio(contender: &Contender, local: &Contender, of: impl Fn(&Rates) -> f64) -> f64 {
    let mut ratios: Vec<f64> =
        contender.rates.iter().zip(&local.rates).map(|(a, b)| of(a) / of(b)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

fn as_text(arguments: &BenchArguments, contenders: &[Contender]) -> String {
    let mut lines = vec![
        format!(
            "tokens/s, medians of {} rounds; prefill of {} tokens, then {} new ones",
            arguments.rounds, arguments.prompt_tokens, arguments.new_tokens
        ),
        format!(
            "{:<12}  {:>9}  {:>9}  {:>9}  {:>9}",
            "", "decode", "of local", "prefill", "of local"
        ),
    ];
    for contender in contenders {
        lines.push(format!(
            "{:<12}  {:>9.1}  {:>9.3}  {:>9.1}  {:>9.3}",
            contender.name,
            contender.median(|rates| rates.decode),
            ratio(contender, &contenders[0], |rates| rates.decode),
            contender.median(|rates| rates.prefill),
            ratio(contender, &contenders[0], |rates| rates.prefill),
        ));
    }
    lines.join("\n")
}

fn as_json(contenders: &[Contender]) -> String {
    let rows: Vec<_> = contenders
        .iter()
        .map(|contender| {
            json!({
                "name": contender.name,
                "decode_tokens_per_second": contender.median(|rates| rates.decode),
                "decode_of_local": ratio(contender, &contenders[0], |rates| rates.decode),
                "prefill_tokens_per_second": contender.median(|rates| rates.prefill),
                "prefill_of_local": ratio(contender, &contenders[0], |rates| rates.prefill),
            })
        })
        .collect();
    json!({ "results": rows }).to_string()
}
