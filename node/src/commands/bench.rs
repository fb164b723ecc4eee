//! `umbel bench`

mod clients;
mod llama;
mod loopback;
mod machine;
mod prefix;
mod random;
mod report;
mod sample;
mod turns;
mod work;

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use umbel_client::{ClientModel, SessionOptions, Swarm, SwarmConfig};
use umbel_engine::Device;
use umbel_shard::{ModelSource, PartsNeeded};

use super::local_swarm::{LocalSwarm, ServerOptions};
use super::session::{Blocks, Opened, load_blocks, open_ends};
use crate::args::BenchArguments;
use crate::config::Config;
use crate::telemetry::say;
use llama::Llama;
use machine::{Machine, Memory};
use sample::Sample;
use work::Work;

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
    if arguments.prompt_tokens.saturating_add(turns::tokens(arguments.new_tokens)) as usize
        > context
    {
        bail!("the model's context has {context} tokens: measure fewer");
    }
    if let Some(tokens) = arguments.shared_tokens {
        let text = prefix::run(&arguments, tokens, name, &model, config).await?;
        return write!(std::io::stdout(), "{text}").context("stdout is closed");
    }
    let peer = peer(&arguments, &model)?;
    let threads = Device::shared().thread_count();
    let limits = Limits {
        machine: Machine::measure(threads).await?,
        memory: Memory::new(threads)?,
        work: Work::of(model.config(), model.shard().manifest()),
    };
    let text = if arguments.clients.is_empty() {
        one_client(&arguments, name, &model, config, peer, limits).await?
    } else {
        clients::run(&arguments, name, &model, config, peer, limits).await?
    };
    writeln!(std::io::stdout(), "{text}").context("stdout is closed")
}

/// What the figures are shares of.
struct Limits {
    machine: Machine,
    memory: Memory,
    work: Work,
}

impl Limits {
    /// Looks at the machine once more: the best that it ever did counts as its best.
    async fn look_again(&mut self) -> anyhow::Result<()> {
        self.machine = self.machine.or_better(Machine::measure(self.machine.threads).await?);
        Ok(())
    }
}

/// The program of llama.cpp that is measured as well, where one was named.
fn peer(arguments: &BenchArguments, model: &ClientModel) -> anyhow::Result<Option<Llama>> {
    let named = arguments.llama_bench.as_ref().or(arguments.llama_batched_bench.as_ref());
    let Some(program) = named else {
        return Ok(None);
    };
    let file =
        model.shard().gguf_path().context("llama.cpp reads GGUF files: name such a model")?;
    Llama::new(program, file, Device::shared().thread_count()).map(Some)
}

/// One way to compute the model, and what was measured of it.
struct Contender {
    name: String,
    way: Way,
    samples: Vec<Sample>,
}

enum Way {
    Umbel { opened: Opened, servers: Option<LocalSwarm> },
    Llama(Llama),
}

/// Measures every way of computing in turn, round by round.
async fn one_client(
    arguments: &BenchArguments,
    name: &str,
    model: &Arc<ClientModel>,
    config: &Config,
    peer: Option<Llama>,
    mut limits: Limits,
) -> anyhow::Result<String> {
    let mut contenders = contenders(arguments, name, model, config).await?;
    contenders.extend(peer.map(|llama| Contender {
        name: report::LLAMA.to_owned(),
        way: Way::Llama(llama),
        samples: Vec::new(),
    }));
    let prompt = prompt(arguments.prompt_tokens, model.config().vocabulary_size);
    for round in 0..=arguments.rounds {
        limits.look_again().await?;
        let samples =
            turns::round(&contenders, &prompt, arguments.new_tokens, &limits.memory).await?;
        // The first round warms up.
        if round > 0 {
            contenders.iter_mut().zip(samples).for_each(|(contender, sample)| {
                contender.samples.push(sample);
            });
        }
    }
    say("");
    let text = if arguments.json {
        report::as_json(arguments, &limits, &contenders)
    } else {
        report::as_text(arguments, &limits, &contenders)
    };
    for contender in contenders {
        contender.leave().await;
    }
    Ok(text)
}

async fn contenders(
    arguments: &BenchArguments,
    name: &str,
    model: &Arc<ClientModel>,
    config: &Config,
) -> anyhow::Result<Vec<Contender>> {
    let local = Blocks::Local(load_blocks(model, config).await?, arguments.kv);
    let opened = Opened { model: Arc::clone(model), blocks: local };
    let mut contenders = vec![Contender {
        name: "one process".to_owned(),
        way: Way::Umbel { opened, servers: None },
        samples: Vec::new(),
    }];
    // Without servers the one process is measured alone.
    for &count in arguments.servers.iter().filter(|count| **count > 0) {
        let plain = session_options(arguments);
        contenders.push(swarm(count, plain, arguments, name, model, config).await?);
        if arguments.thin {
            let thin = SessionOptions { thin: true, ..plain };
            contenders.push(swarm(count, thin, arguments, name, model, config).await?);
        }
    }
    Ok(contenders)
}

/// So many servers of the model for sessions of this kind, and for nobody else: a session that pauses while
/// another has its turn on the same servers would be waited for.
async fn swarm(
    count: u32,
    session: SessionOptions,
    arguments: &BenchArguments,
    name: &str,
    model: &Arc<ClientModel>,
    config: &Config,
) -> anyhow::Result<Contender> {
    let (block_count, options) = (model.config().block_count, server_options(arguments));
    let servers = LocalSwarm::start(name, block_count, count, options, config).await?;
    let join = SwarmConfig { join: vec![servers.address().clone()], ..SwarmConfig::default() };
    let blocks = Blocks::Swarm(Arc::new(Swarm::join(join).await?), session);
    let opened = Opened { model: Arc::clone(model), blocks };
    let way = Way::Umbel { opened, servers: Some(servers) };
    let name = format!("{} of {count}", if session.thin { "thin," } else { "swarm" });
    Ok(Contender { name, way, samples: Vec::new() })
}

/// What every session of a swarm is like.
fn session_options(arguments: &BenchArguments) -> SessionOptions {
    // The same prompt comes again and again, and is to be computed each time.
    let (cache, wire) = (arguments.kv, arguments.wire);
    SessionOptions { cache, wire, share: false, ..SessionOptions::default() }
}

/// What every server of a swarm is told.
fn server_options(arguments: &BenchArguments) -> ServerOptions {
    ServerOptions { no_local_links: arguments.no_local_links, ..ServerOptions::default() }
}

/// Token ids without meaning, spread over the vocabulary: speed does not depend on them.
fn prompt(tokens: u32, vocabulary: usize) -> Vec<u32> {
    let vocabulary = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(1);
    (0..tokens).map(|index| index.wrapping_mul(7_919) % vocabulary).collect()
}

impl Contender {
    async fn leave(self) {
        match self.way {
            Way::Umbel { opened, servers } => {
                opened.leave().await;
                if let Some(servers) = servers {
                    servers.stop().await;
                }
            }
            Way::Llama(_) => {}
        }
    }
}
