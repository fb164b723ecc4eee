//! What is asked of a swarm, and what one process answers.

use std::sync::Arc;

use umbel_client::{
    Chain, ClientModel, Device, Generate, Generation, LocalModel, RemoteChain, Speculate, Swarm,
};
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

use crate::swarm::cache;

/// What is asked of the swarm.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// New tokens.
    pub tokens: u32,
    /// Tokens of the prompt in one step.
    pub prefill_chunk: u32,
    /// Whether each hop has a spare that computes along.
    pub standby: bool,
}

/// A model's ends and the whole of its files, from a folder or the catalogue.
///
/// # Errors
/// Where it cannot be opened.
pub fn client_model(name: &str) -> anyhow::Result<Arc<ClientModel>> {
    let source = ModelSource::parse(name)?;
    let model = Model::open(&source, &Cache::new(cache()), PartsNeeded::everything(), &Silent)?;
    Ok(Arc::new(ClientModel::from_shard(model)?))
}

/// What one process answers.
///
/// # Errors
/// Where it cannot.
pub async fn undisturbed(
    model: &Arc<ClientModel>,
    workload: &Workload,
) -> anyhow::Result<Vec<u32>> {
    let tokens = workload.prompt.len() + workload.tokens as usize + 16;
    let local = LocalModel::load(model.shard(), tokens, Device::shared())?;
    let chain = Chain::Local(Arc::new(local).open(u32::try_from(tokens)?)?);
    let mut generation = request(workload).start(Arc::clone(model), chain)?;
    while generation.next().await?.is_some() {}
    Ok(generation.tokens().to_vec())
}

/// An answer over a swarm that is about to begin.
///
/// # Errors
/// Where no session can be opened.
pub async fn ask(
    swarm: Arc<Swarm>,
    model: &Arc<ClientModel>,
    workload: &Workload,
    speculate: &Speculate,
) -> anyhow::Result<Generation> {
    let tokens = u32::try_from(workload.prompt.len())? + workload.tokens + 16;
    let chain = if workload.standby {
        RemoteChain::open_with_standby(swarm, model, tokens).await?
    } else {
        RemoteChain::open(swarm, model, tokens).await?
    };
    let request = Generate { speculate: speculate.clone(), ..request(workload) };
    Ok(request.start(Arc::clone(model), Chain::Remote(Box::new(chain)))?)
}

fn request(workload: &Workload) -> Generate {
    Generate {
        max_tokens: workload.tokens,
        ignore_eos: true,
        prefill_chunk: workload.prefill_chunk,
        ..Generate::new(workload.prompt.clone())
    }
}
