//! Where microbatches go forward and back.

mod hop;
mod local;
mod pipeline;
mod remote;

use std::collections::BTreeMap;
use std::sync::Arc;

use umbel_engine::train::prompt::{self, put_before};
use umbel_engine::train::{LossError, Sequence, TrainingState};
use umbel_engine::{Ends, EndsError, HiddenStates};
use umbel_protocol::training::{SEQUENCES_MAX, TrainingSequence};
use umbel_protocol::version::Side;
use umbel_protocol::{LinkProtocol, PeerId, Span};

use super::TrainError;
use crate::model::ClientModel;
use hop::OpenHop;
pub use local::LocalBlocks;
pub use remote::{RemoteBlocks, RemoteSettings};

/// The blocks of a model in training.
pub enum Blocks {
    /// In this process.
    Local(LocalBlocks),
    /// On the servers of a swarm.
    Remote(Box<RemoteBlocks>),
}

/// Who computes some blocks; the peer is `None` for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingHop {
    /// Who.
    pub peer: Option<PeerId>,
    /// Which.
    pub blocks: Span,
}

/// Tokens of the largest microbatch that a message to a server holds: each has so many values of binary32.
fn message_tokens_max(hidden_size: usize) -> u32 {
    let bytes = LinkProtocol::Training.limits(Side::Opener).payload_bytes_max;
    let of_token = u32::try_from(hidden_size.saturating_mul(size_of::<f32>()));
    bytes / of_token.unwrap_or(u32::MAX).max(1)
}

/// Servers for all blocks.
pub(super) struct TrainingRoute {
    /// No other route ever has this number.
    name: usize,
    hops: Vec<OpenHop>,
}

/// Texts that go through the blocks together, and what is known of them so far. It is kept by the
/// boundaries of blocks and not by servers, so that another split goes on with it.
pub(super) struct Microbatch {
    number: u64,
    pub(super) sequences: Vec<TrainingSequence>,
    ids: Vec<u32>,
    targets: Vec<Option<u32>>,
    /// Of the learned vectors that stand before each text.
    prompt_tokens: usize,
    /// What entered the block with this number.
    pub(super) entering: BTreeMap<u32, HiddenStates>,
    /// The gradient of it.
    pub(super) gradients: BTreeMap<u32, HiddenStates>,
    /// The sum of the losses.
    loss: Option<f64>,
    /// The route that it takes through servers.
    route: Option<usize>,
}

/// How badly a microbatch was foretold.
struct Foretold {
    /// The sum of the losses.
    sum: f64,
    /// By what left the last block, where that is wanted.
    gradient: Option<HiddenStates>,
}

/// A step of the optimizer that is to be taken everywhere.
#[derive(Clone, Copy)]
pub(super) struct Taken<'a> {
    pub(super) before: &'a TrainingState,
    pub(super) after: &'a TrainingState,
    pub(super) learning_rate: f64,
    pub(super) factor: f64,
}

impl Microbatch {
    pub(super) const fn new(number: u64) -> Self {
        Self {
            number,
            sequences: Vec::new(),
            ids: Vec::new(),
            targets: Vec::new(),
            prompt_tokens: 0,
            entering: BTreeMap::new(),
            gradients: BTreeMap::new(),
            loss: None,
            route: None,
        }
    }

    /// The same for texts behind a prompt of so many tokens.
    pub(super) fn behind(self, prompt_tokens: usize) -> Self {
        Self { prompt_tokens, ..self }
    }

    /// Adds a text; the sequence has the tokens of the prompt too, which foretell nothing.
    pub(super) fn add(
        &mut self,
        sequence: TrainingSequence,
        ids: &[u32],
        targets: impl Iterator<Item = Option<u32>>,
    ) {
        self.sequences.push(sequence);
        self.ids.extend_from_slice(ids);
        self.targets.resize(self.targets.len() + self.prompt_tokens, None);
        self.targets.extend(targets);
    }

    /// Looks up what enters the first block, behind the vectors of `learned`.
    pub(super) fn embed(&mut self, ends: &Ends, learned: &[f32]) -> Result<(), EndsError> {
        let embedded = ends.embed(&self.ids)?;
        let texts: Vec<_> = self.lengths().map(|tokens| tokens - self.prompt_tokens).collect();
        let entering =
            if learned.is_empty() { embedded } else { put_before(learned, &texts, &embedded) };
        self.entering.insert(0, entering);
        Ok(())
    }

    /// The gradient of the prompt; it was brought back to the first block.
    pub(super) fn prompt_gradient(&self) -> Vec<f32> {
        let lengths: Vec<_> = self.lengths().collect();
        prompt::gradient(self.first_gradient(), &lengths, self.prompt_tokens)
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().map(|sequence| sequence.tokens as usize)
    }

    /// What computes the loss of what left the last block; with a weight, its gradient too.
    fn loss(
        &self,
        model: &Arc<ClientModel>,
        weight: Option<f32>,
    ) -> impl FnOnce() -> Result<Foretold, LossError> + Send + use<> {
        let last = model.config().block_count;
        let hidden = self.entering.get(&last).expect("it has gone forward").clone();
        let (model, targets) = (Arc::clone(model), self.targets.clone());
        move || {
            let Some(weight) = weight else {
                let sum = model.ends().loss_sum(&hidden, &targets)?;
                return Ok(Foretold { sum, gradient: None });
            };
            let loss = model.ends().loss(&hidden, &targets, weight)?;
            Ok(Foretold { sum: loss.sum, gradient: Some(loss.gradient) })
        }
    }

    fn foretold(&mut self, Foretold { sum, gradient }: Foretold) {
        let (&last, _) = self.entering.last_key_value().expect("it has gone forward");
        self.gradients.extend(gradient.map(|gradient| (last, gradient)));
        self.loss = Some(sum);
    }

    /// Computes the loss apart from the network.
    async fn foretell(
        &mut self,
        model: &Arc<ClientModel>,
        weight: Option<f32>,
    ) -> Result<f64, TrainError> {
        let work = tokio::task::spawn_blocking(self.loss(model, weight));
        let foretold = work.await.expect("arithmetic does not panic")?;
        let sum = foretold.sum;
        self.foretold(foretold);
        Ok(sum)
    }

    /// Tokens of all its sequences.
    pub(super) fn tokens(&self) -> u32 {
        self.sequences.iter().map(|sequence| sequence.tokens).sum()
    }

    /// Whether another sequence may go with it, where so many tokens go together.
    pub(super) fn has_room(&self, tokens: u32, tokens_max: u32) -> bool {
        let fits = self.tokens().checked_add(tokens).is_some_and(|sum| sum <= tokens_max);
        fits && self.sequences.len() < SEQUENCES_MAX
    }

    /// What entered the first block.
    fn entered(&self) -> &HiddenStates {
        self.entering.first_key_value().expect("it was made of that").1
    }

    /// What left the last block that it has gone through.
    pub(super) fn last_known(&self) -> &HiddenStates {
        self.entering.last_key_value().expect("it was made of what enters").1
    }

    /// The gradient of what entered the first block that it was brought back through.
    pub(super) fn first_gradient(&self) -> &HiddenStates {
        self.gradients.first_key_value().expect("it was brought back").1
    }

    fn engine_sequences(&self) -> Vec<Sequence> {
        let sequence = |of: &TrainingSequence| Sequence {
            tokens: of.tokens as usize,
            dropout_seed: of.dropout_seed,
        };
        self.sequences.iter().map(sequence).collect()
    }
}

impl Blocks {
    /// Has the magnitudes of a new adapter (DoRA) begin as the norms of the frozen matrices' rows, which
    /// those who compute the blocks have.
    pub(super) async fn begin_magnitudes(
        &mut self,
        state: &mut Arc<TrainingState>,
    ) -> Result<(), TrainError> {
        if !state.adapter().lacks_magnitudes() {
            return Ok(());
        }
        match self {
            Self::Local(blocks) => blocks.begin_magnitudes(state).await,
            Self::Remote(blocks) => blocks.begin_magnitudes(state).await,
        }
    }

    /// Takes microbatches forward and back, adds their gradients to the state, and returns the sum of
    /// the losses.
    pub(super) async fn learn(
        &mut self,
        model: &Arc<ClientModel>,
        state: &mut Arc<TrainingState>,
        microbatches: &mut [Microbatch],
        weight: f32,
    ) -> Result<f64, TrainError> {
        match self {
            Self::Local(blocks) => blocks.learn(model, state, microbatches, weight).await,
            Self::Remote(blocks) => blocks.learn(model, state, microbatches, weight).await,
        }
    }

    /// Takes a step wherever a part of the adapter is held.
    pub(super) async fn take(&mut self, taken: Taken<'_>) -> Result<(), TrainError> {
        match self {
            // The trainer's own state is the only one.
            Self::Local(_) => Ok(()),
            Self::Remote(blocks) => blocks.take(taken).await,
        }
    }

    /// Gives the adapter's values to whoever holds a part of them.
    pub(super) async fn adopt(&mut self, state: &TrainingState) -> Result<(), TrainError> {
        match self {
            // The trainer's own state is the only one.
            Self::Local(_) => Ok(()),
            Self::Remote(blocks) => blocks.adopt(state).await,
        }
    }

    /// The sum of the losses of microbatches.
    pub(super) async fn evaluate(
        &mut self,
        model: &Arc<ClientModel>,
        state: &Arc<TrainingState>,
        microbatches: &mut [Microbatch],
    ) -> Result<f64, TrainError> {
        match self {
            Self::Local(blocks) => blocks.evaluate(model, state, microbatches).await,
            Self::Remote(blocks) => blocks.evaluate(model, state, microbatches).await,
        }
    }

    pub(crate) fn routes(&self) -> Vec<Vec<TrainingHop>> {
        match self {
            Self::Local(blocks) => vec![vec![TrainingHop { peer: None, blocks: blocks.span() }]],
            Self::Remote(blocks) => blocks.routes(),
        }
    }

    pub(super) const fn replaced(&self) -> usize {
        match self {
            Self::Local(_) => 0,
            Self::Remote(blocks) => blocks.replaced(),
        }
    }

    pub(crate) async fn close(self) {
        match self {
            Self::Local(_) => {}
            Self::Remote(blocks) => blocks.close().await,
        }
    }
}

#[cfg(test)]
mod tests;
