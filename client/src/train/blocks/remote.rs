//! All blocks on the servers of a swarm, each of which holds its part of the adapter.

mod magnitudes;
mod mend;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use umbel_engine::train::TrainingState;
use umbel_protocol::training::{OptimizerStep, StateKind};
use umbel_protocol::{ErrorCode, PeerId, Span};

use super::hop::{Fault, OpenHop, Terms};
use super::pipeline::{self, GradientSum, Halt, Pass, Way};
use super::{Microbatch, Taken, TrainingHop, TrainingRoute, message_tokens_max};
use crate::model::ClientModel;
use crate::swarm::Swarm;
use crate::train::TrainError;

/// Routes of servers that train.
pub struct RemoteBlocks {
    swarm: Arc<Swarm>,
    terms: Terms,
    blocks: Span,
    token_bytes: u32,
    routes: Vec<TrainingRoute>,
    /// How many there should be, and how many there ever were.
    routes_max: usize,
    routes_named: usize,
    /// There was a server for every block once.
    opened: bool,
    /// When the others were asked last who has come.
    asked: Option<Instant>,
    /// Servers that have failed, and when: further routes do without them for a while. There are no more
    /// than the swarm's directory has.
    passed_over: BTreeMap<PeerId, Instant>,
    replaced: usize,
    /// Something was begun and not ended: servers may have gathered gradients, and have yet to answer.
    unfinished: bool,
    failures: usize,
    avoided: BTreeSet<PeerId>,
    /// What servers have refused in this step as no server would do it, and who did so last.
    refused: BTreeMap<ErrorCode, PeerId>,
}

/// How a training uses the servers of a swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteSettings {
    /// What dropout is drawn from.
    pub seed: u64,
    /// Tokens of the longest microbatch; no more than [`RemoteBlocks::tokens_max`] count.
    pub tokens_max: u32,
    /// Microbatches that a server keeps between their way forward and their way back. Where it lacks the
    /// room for them it keeps one.
    pub under_way: u32,
    /// Routes without a common server that microbatches are divided among, if there are as many. Each
    /// microbatch's gradients then come to the trainer, and their sum goes to every server.
    pub routes: usize,
}

impl Default for RemoteSettings {
    fn default() -> Self {
        Self { seed: 0, tokens_max: 1_024, under_way: 4, routes: 1 }
    }
}

impl RemoteBlocks {
    /// Opens a part of `state` on each server of a route, or of several.
    ///
    /// # Errors
    /// [`TrainError`] where no route covers the model.
    pub async fn open(
        swarm: Arc<Swarm>,
        model: &ClientModel,
        state: &TrainingState,
        settings: RemoteSettings,
    ) -> Result<Self, TrainError> {
        let RemoteSettings { seed, tokens_max, under_way, routes } = settings;
        let tokens_max = tokens_max.min(Self::tokens_max(model));
        let hidden_size = model.config().hidden_size;
        let (answers, under_way) = (watch::Sender::new(0), under_way.max(1));
        let terms = Terms { model: model.id(), seed, tokens_max, under_way, answers };
        swarm.refresh(terms.model).await;
        let mut blocks = Self {
            swarm,
            terms,
            blocks: state.adapter().blocks(),
            token_bytes: u32::try_from(hidden_size * 4).unwrap_or(u32::MAX),
            routes: Vec::new(),
            routes_max: routes.max(1),
            routes_named: 0,
            opened: false,
            asked: None,
            passed_over: BTreeMap::new(),
            replaced: 0,
            unfinished: false,
            failures: 0,
            avoided: BTreeSet::new(),
            refused: BTreeMap::new(),
        };
        blocks.begin(state).await?;
        Ok(blocks)
    }

    /// Tokens of the longest microbatch that can be sent to a server: no text of a training over a swarm
    /// may be longer.
    #[must_use]
    pub fn tokens_max(model: &ClientModel) -> u32 {
        message_tokens_max(model.config().hidden_size)
    }

    /// How many answers of servers there have been, as it grows: how far a step has come.
    #[must_use]
    pub fn answers(&self) -> watch::Receiver<u64> {
        self.terms.answers.subscribe()
    }

    pub(super) async fn learn(
        &mut self,
        model: &Arc<ClientModel>,
        state: &mut Arc<TrainingState>,
        microbatches: &mut [Microbatch],
        weight: f32,
    ) -> Result<f64, TrainError> {
        self.check(microbatches)?;
        self.begin(state).await?;
        self.unfinished = true;
        self.hops().for_each(|(_, hop)| hop.begin_step());
        // A step that begins apart ends apart: servers have not added what others have brought back.
        let values = usize::try_from(state.block_value_count()).expect("they are in memory");
        let count = self.blocks.block_count();
        // Where servers have no values there is nothing to add, on however many routes.
        let apart = self.routes.len() > 1 && values > 0;
        let mut sum = apart.then(|| GradientSum::new(values, count, microbatches.len()));
        loop {
            let way = sum.as_mut().map_or(Way::Together, Way::Apart);
            let pass = Pass { swarm: &self.swarm, loss: Some((model, Some(weight))), way };
            let mut passed = pipeline::run(pass, &mut self.routes, microbatches).await;
            if passed.is_ok() && sum.is_none() {
                passed = self.read(state, loss(microbatches)).await;
            }
            match passed {
                Ok(()) => break,
                Err(halt) => self.mend(halt, state).await?,
            }
        }
        if let Some(sum) = sum {
            let written = Arc::make_mut(state).write(StateKind::Gradients, 0, sum.total());
            written.map_err(|_| diverged(loss(microbatches)))?;
        }
        Ok(loss(microbatches))
    }

    pub(super) async fn take(&mut self, taken: Taken<'_>) -> Result<(), TrainError> {
        let Taken { before, after, learning_rate, factor } = taken;
        let number = after.steps();
        loop {
            let step = OptimizerStep { number, learning_rate, factor };
            let swarm = Arc::clone(&self.swarm);
            let lacking = self.hops().filter(|(_, hop)| hop.steps < number);
            let steps = lacking.map(|(place, hop)| {
                let swarm = &swarm;
                async move { (place, hop.step(swarm, step, (before, after)).await) }
            });
            match halt_of(futures::future::join_all(steps).await) {
                Ok(()) => break,
                Err(halt) => self.mend(halt, before).await?,
            }
        }
        self.unfinished = false;
        Ok(())
    }

    /// Gives every server its part of other values. A server takes values before the first step alone, so
    /// that each is asked to forget its part, and then given it anew.
    pub(super) async fn adopt(&mut self, state: &TrainingState) -> Result<(), TrainError> {
        self.let_go().await;
        self.begin(state).await
    }

    /// Asks servers to forget their parts.
    async fn let_go(&mut self) {
        let routes = std::mem::take(&mut self.routes);
        let hops = routes.into_iter().flat_map(|route| route.hops);
        if std::mem::replace(&mut self.unfinished, false) {
            // What these have yet to say is of something else; they notice that their links are gone.
            drop(hops);
        } else {
            let closes = hops.map(|hop| hop.close(&self.swarm));
            futures::future::join_all(closes).await;
        }
    }

    pub(super) async fn evaluate(
        &mut self,
        model: &Arc<ClientModel>,
        state: &Arc<TrainingState>,
        microbatches: &mut [Microbatch],
    ) -> Result<f64, TrainError> {
        self.forward(Some(model), state, microbatches).await?;
        Ok(loss(microbatches))
    }

    /// Brings microbatches whose gradients are known at the end back to the first block. Servers add
    /// to their gradients of the adapter what it has, with which no step is ever taken.
    pub(in crate::train) async fn bring_back(
        &mut self,
        state: &TrainingState,
        microbatches: &mut [Microbatch],
    ) -> Result<(), TrainError> {
        self.begin(state).await?;
        self.unfinished = true;
        self.hops().for_each(|(_, hop)| hop.begin_step());
        loop {
            let pass = Pass { swarm: &self.swarm, loss: None, way: Way::Together };
            match pipeline::run(pass, &mut self.routes, microbatches).await {
                Ok(()) => break,
                Err(halt) => self.mend(halt, state).await?,
            }
        }
        self.unfinished = false;
        Ok(())
    }

    pub(in crate::train) async fn forward(
        &mut self,
        model: Option<&Arc<ClientModel>>,
        state: &TrainingState,
        microbatches: &mut [Microbatch],
    ) -> Result<(), TrainError> {
        self.check(microbatches)?;
        self.begin(state).await?;
        self.unfinished = true;
        loop {
            let loss = model.map(|model| (model, None));
            let pass = Pass { swarm: &self.swarm, loss, way: Way::Forward };
            match pipeline::run(pass, &mut self.routes, microbatches).await {
                Ok(()) => break,
                Err(halt) => self.mend(halt, state).await?,
            }
        }
        self.unfinished = false;
        Ok(())
    }

    /// Whether servers take these microbatches, as they were told when they were opened.
    fn check(&self, microbatches: &[Microbatch]) -> Result<(), TrainError> {
        let max = self.terms.tokens_max;
        let longest = microbatches.iter().map(Microbatch::tokens).max();
        match longest.filter(|tokens| *tokens > max) {
            Some(tokens) => Err(TrainError::TooLong { tokens, max }),
            None => Ok(()),
        }
    }

    /// Reads the gradients that the servers of one route have added.
    async fn read(&mut self, state: &mut Arc<TrainingState>, loss: f64) -> Result<(), Halt> {
        let swarm = Arc::clone(&self.swarm);
        let stretches = Arc::clone(state);
        let unread = self.hops().filter(|(_, hop)| !hop.progress.read);
        let reads = unread.map(|(place, hop)| {
            let (swarm, stretch) = (&swarm, stretches.stretch(hop.blocks()));
            async move {
                let gradients = hop.gradients(swarm, stretch.clone()).await;
                (place, gradients.map(|gradients| (hop, stretch, gradients)))
            }
        });
        let reads = futures::future::join_all(reads).await;
        drop(stretches);
        let mut ended = Vec::new();
        for (place, read) in reads {
            let written = read.and_then(|(hop, stretch, gradients)| {
                let kind = StateKind::Gradients;
                let written = Arc::make_mut(state).write(kind, stretch.start, &gradients);
                // One of them is no number, which may be the model's fault as well as the server's.
                written.map_err(|_| diverged(loss))?;
                hop.progress.read = true;
                Ok(())
            });
            ended.push((place, written));
        }
        halt_of(ended)
    }

    /// All servers, with the name of their route and their place on it.
    fn hops(&mut self) -> impl Iterator<Item = ((usize, usize), &mut OpenHop)> {
        self.routes.iter_mut().flat_map(|route| {
            let places = route.hops.iter_mut().enumerate();
            places.map(|(place, hop)| ((route.name, place), hop))
        })
    }

    pub(in crate::train) fn routes(&self) -> Vec<Vec<TrainingHop>> {
        let hop = |hop: &OpenHop| TrainingHop { peer: Some(hop.hop.peer), blocks: hop.blocks() };
        self.routes.iter().map(|route| route.hops.iter().map(hop).collect()).collect()
    }

    pub(in crate::train) const fn replaced(&self) -> usize {
        self.replaced
    }

    pub(in crate::train) async fn close(mut self) {
        self.let_go().await;
    }
}

/// The sum of the losses, in the order of the microbatches.
fn loss(microbatches: &[Microbatch]) -> f64 {
    microbatches.iter().filter_map(|microbatch| microbatch.loss).fold(0.0, |sum, loss| sum + loss)
}

/// What came of something at several servers.
fn halt_of(ended: Vec<((usize, usize), Result<(), Fault>)>) -> Result<(), Halt> {
    let mut failed = Vec::new();
    for ((route, place), result) in ended {
        match result {
            Ok(()) => {}
            Err(Fault::Training(error)) => return Err(Halt::Training(error)),
            Err(Fault::Hop(reason)) => failed.push((route, place, reason)),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Halt::Hops(failed)) }
}

fn diverged(loss: f64) -> TrainError {
    TrainError::Diverged { loss, gradient_norm: f64::NAN }
}

#[cfg(test)]
mod tests;
