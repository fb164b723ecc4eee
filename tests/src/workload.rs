//! What is asked of a swarm, and what one process answers.

use std::sync::Arc;
use std::time::Duration;

use umbel_client::{
    Chain, ClientModel, Device, Generate, Generation, LocalModel, Opening, RemoteChain,
    SessionOptions, Speculate, Swarm, SwarmConfig,
};
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

use crate::swarm::{Server, cache};

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
    Ok(generation.finish().await?.to_vec())
}

/// A client of the swarm that `server` is in, patient enough to look around once more.
///
/// # Errors
/// Where it cannot join.
pub async fn join(server: &Server) -> anyhow::Result<Arc<Swarm>> {
    let join = vec![server.address().parse()?];
    let config = SwarmConfig { join, patience: Duration::from_secs(5), ..SwarmConfig::default() };
    Ok(Arc::new(Swarm::join(config).await?))
}

/// All tokens of a generation that goes on to its end, whose session is then closed.
///
/// # Errors
/// Where no chain can be had any more.
pub async fn finish(mut generation: Generation) -> anyhow::Result<Vec<u32>> {
    let tokens = generation.finish().await?.to_vec();
    generation.into_chain().0.close().await;
    Ok(tokens)
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
    let tokens_max = u32::try_from(workload.prompt.len())? + workload.tokens + 16;
    let options = SessionOptions { standby: workload.standby, ..SessionOptions::default() };
    let opening = Opening { tokens_max, options, ..Opening::default() };
    let chain = RemoteChain::open_with(swarm, model, opening).await?;
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
