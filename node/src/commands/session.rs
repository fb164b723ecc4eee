//! What chat, generate, bench and the gateway share: a model's ends, and a chain for its blocks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use umbel_client::{
    Chain, ClientModel, LocalChain, LocalModel, NamedAdapter, Opening, RemoteChain, Sampling,
    SessionOptions, Swarm, SwarmConfig,
};
use umbel_engine::Device;
use umbel_net::Way;
use umbel_protocol::DType;
use umbel_shard::{Model, ModelSource, PartsNeeded};

use crate::args::{ChainArguments, SamplingArguments};
use crate::config::Config;
use crate::progress::Shown;

/// Where the blocks are computed.
pub(crate) enum Blocks {
    /// In this process, with keys and values in this type.
    Local(Arc<LocalModel>, DType),
    Swarm(Arc<Swarm>, SessionOptions),
}

/// A model that can be asked.
pub(crate) struct Opened {
    pub(crate) model: Arc<ClientModel>,
    pub(crate) blocks: Blocks,
}

impl Opened {
    /// Joins the swarm or loads the blocks, for sessions of `tokens` tokens in all.
    ///
    /// The swarm is joined first: a wrong address is found before anything is downloaded.
    pub(super) async fn open(
        name: &str,
        chain: &ChainArguments,
        config: &Config,
    ) -> anyhow::Result<Self> {
        if chain.join.is_empty() && !chain.local && !chain.mdns {
            bail!(
                "where? --join ADDR for a swarm, --mdns to look for one nearby, --local for none"
            );
        }
        let source = ModelSource::parse(name)?;
        if chain.local {
            let model = open_ends(source, config, PartsNeeded::everything()).await?;
            let blocks = load_blocks(&model, config).await?;
            return Ok(Self { model, blocks: Blocks::Local(blocks, chain.kv) });
        }
        let Way { addresses, swarm_key } = Way::new(&chain.join, None)?;
        let join = SwarmConfig {
            join: addresses,
            swarm_key,
            mdns: chain.mdns,
            patience: Duration::from_secs(chain.patience.into()),
        };
        let swarm = Arc::new(Swarm::join(join).await?);
        let model = if chain.thin {
            open_thin(source, config).await?
        } else {
            open_ends(source, config, PartsNeeded::ends()).await?
        };
        let options = SessionOptions {
            wire: chain.wire,
            standby: chain.standby,
            cache: chain.kv,
            share: !chain.no_share,
            thin: chain.thin,
        };
        Ok(Self { model, blocks: Blocks::Swarm(swarm, options) })
    }

    /// A session with room for so many tokens, at most the model's context, for this prompt: servers
    /// may hold some of it.
    pub(crate) async fn chain(&self, tokens: usize, prompt: &[u32]) -> anyhow::Result<Chain> {
        self.chain_with(None, tokens, prompt).await
    }

    /// The same with an adapter, if there is one.
    pub(crate) async fn chain_with(
        &self,
        adapter: Option<&NamedAdapter>,
        tokens: usize,
        prompt: &[u32],
    ) -> anyhow::Result<Chain> {
        let tokens = tokens.clamp(1, self.model.config().context_tokens);
        Ok(match &self.blocks {
            Blocks::Local(blocks, cache) => {
                here(blocks.open_as(*cache, self.room(adapter, tokens)?)?, adapter)?
            }
            Blocks::Swarm(swarm, options) => {
                if options.thin && adapter.is_some_and(|adapter| adapter.prompt_tokens() > 0) {
                    // Said before a server is asked for anything.
                    bail!(
                        "--thin: servers embed tokens alone, and the adapter has a learned prompt"
                    );
                }
                let swarm = Arc::clone(swarm);
                let opening = Opening {
                    tokens_max: u32::try_from(tokens)?,
                    prompt,
                    options: *options,
                    adapter: adapter.cloned(),
                };
                let chain = RemoteChain::open_with(swarm, &self.model, opening).await?;
                Chain::Remote(Box::new(chain))
            }
        })
    }

    /// The same, which waits for room that other sessions of this process have. Servers are waited for
    /// as long as this process is patient.
    pub(crate) async fn chain_in_turn(
        &self,
        adapter: Option<&NamedAdapter>,
        tokens: usize,
        prompt: &[u32],
    ) -> anyhow::Result<Chain> {
        match &self.blocks {
            Blocks::Local(blocks, cache) => {
                let room = self.room(adapter, tokens)?;
                here(blocks.open_in_turn(*cache, room).await?, adapter)
            }
            Blocks::Swarm(..) => self.chain_with(adapter, tokens, prompt).await,
        }
    }

    /// What so many tokens take in this process, with the vectors that stand before them.
    fn room(&self, adapter: Option<&NamedAdapter>, tokens: usize) -> anyhow::Result<u32> {
        let before = adapter.map_or(0, NamedAdapter::prompt_tokens);
        let context = self.model.config().context_tokens;
        Ok(u32::try_from(tokens.saturating_add(before).clamp(1, context))?)
    }

    /// Reads the adapter in a folder.
    pub(crate) async fn adapter(&self, folder: &Path) -> anyhow::Result<NamedAdapter> {
        let (model, named) = (Arc::clone(&self.model), folder.to_owned());
        let read = move || NamedAdapter::read(&named, model.config());
        let read = tokio::task::spawn_blocking(read).await?;
        read.with_context(|| format!("--adapter {}", folder.display()))
    }

    /// Leaves the swarm in good order.
    pub(crate) async fn leave(self) {
        if let Blocks::Swarm(swarm, _) = self.blocks
            && let Some(swarm) = Arc::into_inner(swarm)
        {
            swarm.leave().await;
        }
    }
}

fn here(chain: LocalChain, adapter: Option<&NamedAdapter>) -> anyhow::Result<Chain> {
    Ok(Chain::Local(match adapter {
        Some(adapter) => chain.adapted(adapter)?,
        None => chain,
    }))
}

/// Opens the ends of a model, fetching what `parts` lacks.
pub(crate) async fn open_ends(
    source: ModelSource,
    config: &Config,
    parts: PartsNeeded,
) -> anyhow::Result<Arc<ClientModel>> {
    let config = config.clone();
    let open = move || -> anyhow::Result<ClientModel> {
        let model = Model::open(&source, &config.cache(), parts, &Shown::default())?;
        Ok(ClientModel::from_shard_with(config.arithmetic, model)?)
    };
    Ok(Arc::new(tokio::task::spawn_blocking(open).await??))
}

/// Opens what a thin session needs of a model.
async fn open_thin(source: ModelSource, config: &Config) -> anyhow::Result<Arc<ClientModel>> {
    let config = config.clone();
    let open = move || ClientModel::open_thin(&source, &config.cache(), &Shown::default());
    Ok(Arc::new(tokio::task::spawn_blocking(open).await??))
}

/// Loads every block into this process.
pub(super) async fn load_blocks(
    model: &Arc<ClientModel>,
    config: &Config,
) -> anyhow::Result<Arc<LocalModel>> {
    let (arithmetic, device) = (config.arithmetic, Device::shared());
    let model = Arc::clone(model);
    let load = move || {
        let tokens = model.config().context_tokens;
        LocalModel::load_with(arithmetic, model.shard(), tokens, device)
    };
    Ok(Arc::new(tokio::task::spawn_blocking(load).await??))
}

/// What was typed over `defaults`, with a seed of its own if none was.
pub(super) fn sampling(typed: &SamplingArguments, defaults: Sampling) -> anyhow::Result<Sampling> {
    let seed = getrandom::u64().context("the system has no randomness for a seed")?;
    Ok(typed.over(defaults, seed))
}
