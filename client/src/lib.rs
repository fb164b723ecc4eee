//! What applications call to use a swarm of Umbel: join it, open a model, generate.
//!
//! The client keeps the two ends of the model (embedding, final norm and head), so servers see
//! hidden states and never text. A thin session ([`SessionOptions::thin`]) leaves both to the servers
//! at the ends of its route, and its client opens a model without weights
//! ([`ClientModel::open_thin`]).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use umbel_client::{Chain, ClientModel, Generate, RemoteChain, Swarm, SwarmConfig};
//! use umbel_shard::{Cache, ModelSource, Silent};
//!
//! let cache = Cache::new("models");
//! let source = ModelSource::parse("smollm2-135m")?;
//! let model = Arc::new(ClientModel::open(&source, &cache, &Silent)?);
//! let join = "/ip4/127.0.0.1/udp/4001/quic-v1".parse()?;
//! let swarm = Arc::new(Swarm::join(SwarmConfig { join: vec![join], ..SwarmConfig::default() }).await?);
//! let chain = RemoteChain::open(swarm, &model, 100).await?;
//!
//! let prompt = model.encode("The capital of France is")?;
//! let request = Generate { max_tokens: 20, ..Generate::new(prompt) };
//! let mut generation = request.start(model, Chain::Remote(Box::new(chain)))?;
//! while let Some(token) = generation.next().await? {
//!     print!("{}", token.text);
//! }
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

pub mod adapter;
mod apart;
pub mod chain;
pub mod clock;
pub mod embedding;
pub mod generate;
pub mod model;
pub mod speculation;
pub mod swarm;
pub mod text;
pub mod train;

pub use adapter::NamedAdapter;
pub use chain::local::{LocalChain, LocalModel};
pub use chain::remote::{Opening, RemoteChain, SessionOptions};
pub use chain::{Chain, Entering, HopTime, StepError, StepTime, StepUnderWay};
pub use embedding::{embedding, hidden_states};
pub use generate::{Adjust, FinishReason, Generate, GenerateError, Generation, Logprobs, Token};
pub use model::ClientModel;
pub use speculation::{DraftModel, DraftModelError, Drafts, Speculate};
pub use swarm::{JoinSwarmError, Swarm, SwarmConfig};
pub use umbel_engine::{Device, Sampling};
