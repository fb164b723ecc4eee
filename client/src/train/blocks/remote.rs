//! All blocks on the servers of a swarm, each of which holds its part of the adapter.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use umbel_coordinator::route::NoRoute;
use umbel_coordinator::session::{FailureReason, HopFailure, RouteWanted};
use umbel_engine::train::TrainingState;
use umbel_protocol::training::{OptimizerStep, StateKind};
use umbel_protocol::{ErrorCode, PeerId, Span};

use super::hop::{Fault, OpenHop, Terms};
use super::{Microbatch, Taken, TrainingHop};
use crate::model::ClientModel;
use crate::swarm::Swarm;
use crate::swarm::route::Search;
use crate::train::TrainError;

/// Failures in one step before the training gives up: a route of some ten servers that are all
/// replaced, and replaced again.
const FAILURES_MAX: usize = 32;

/// Room in a server's cache that routes ask for; a training needs none.
const CACHE_TOKENS: u32 = 1;

/// After how long a server that has failed may be tried again, where there is no other.
const FORGIVEN_AFTER: Duration = Duration::from_secs(2);

/// Why a server was given up last.
#[derive(Debug, Clone, Default)]
struct LastFailure {
    /// In words.
    detail: String,
    /// It had too little room, and said how much.
    no_room: Option<String>,
}

impl LastFailure {
    /// What it means that nobody else is left.
    fn nobody_left(self, source: NoRoute) -> TrainError {
        match self.no_room {
            Some(detail) => TrainError::NoRoom { detail },
            None => TrainError::NoRoute { source, last_failure: self.detail },
        }
    }
}

/// A route of servers that train.
pub struct RemoteBlocks {
    swarm: Arc<Swarm>,
    terms: Terms,
    block_count: u32,
    token_bytes: u32,
    hops: Vec<OpenHop>,
    /// There was a server for every block once.
    opened: bool,
    replaced: usize,
    /// A step was begun and not taken: servers may have gathered gradients of it.
    unfinished: bool,
    failures: usize,
    avoided: BTreeSet<PeerId>,
}

impl RemoteBlocks {
    /// Opens a part of `state` on each server of a route, for microbatches of at most so many tokens.
    ///
    /// # Errors
    /// [`TrainError`] where no route covers the model.
    pub async fn open(
        swarm: Arc<Swarm>,
        model: &ClientModel,
        state: &TrainingState,
        (seed, tokens_max): (u64, u32),
    ) -> Result<Self, TrainError> {
        let hidden_size = model.config().hidden_size;
        let answers = watch::Sender::new(0);
        let terms = Terms { model: model.id(), hidden_size, seed, tokens_max, answers };
        swarm.refresh(terms.model).await;
        let mut blocks = Self {
            swarm,
            terms,
            block_count: model.config().block_count,
            token_bytes: u32::try_from(hidden_size * 4).unwrap_or(u32::MAX),
            hops: Vec::new(),
            opened: false,
            replaced: 0,
            unfinished: false,
            failures: 0,
            avoided: BTreeSet::new(),
        };
        blocks.fill(state, LastFailure::default()).await?;
        Ok(blocks)
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
        self.failures = 0;
        self.avoided.clear();
        if std::mem::replace(&mut self.unfinished, true) {
            self.hops.clear();
            self.fill(state, LastFailure::default()).await?;
        }
        self.hops.iter_mut().for_each(OpenHop::begin_step);
        loop {
            match self.try_learn(model, state, microbatches, weight).await {
                Ok(sum) => return Ok(sum),
                Err((place, fault)) => self.mend(place, fault, state).await?,
            }
        }
    }

    pub(super) async fn take(
        &mut self,
        model: &Arc<ClientModel>,
        microbatches: &mut [Microbatch],
        weight: f32,
        taken: Taken<'_>,
    ) -> Result<(), TrainError> {
        loop {
            match self.try_take(model, microbatches, weight, taken).await {
                Ok(()) => {
                    self.unfinished = false;
                    return Ok(());
                }
                Err((place, fault)) => self.mend(place, fault, taken.before).await?,
            }
        }
    }

    pub(super) async fn evaluate(
        &mut self,
        model: &Arc<ClientModel>,
        state: &Arc<TrainingState>,
        microbatches: &mut [Microbatch],
    ) -> Result<f64, TrainError> {
        let mut sum = 0.0;
        for microbatch in microbatches {
            self.answer(state, microbatch).await?;
            sum += microbatch.foretell(model, 0.0).await?;
        }
        Ok(sum)
    }

    /// Takes a microbatch through, without dropout.
    pub(super) async fn answer(
        &mut self,
        state: &Arc<TrainingState>,
        microbatch: &mut Microbatch,
    ) -> Result<(), TrainError> {
        self.failures = 0;
        self.avoided.clear();
        while let Err((place, fault)) = self.forward(microbatch, true).await {
            self.mend(place, fault, state).await?;
        }
        Ok(())
    }

    /// What is still missing of a step, up to the gradients.
    async fn try_learn(
        &mut self,
        model: &Arc<ClientModel>,
        state: &mut Arc<TrainingState>,
        microbatches: &mut [Microbatch],
        weight: f32,
    ) -> Result<f64, (usize, Fault)> {
        let sum = self.pass(model, microbatches, weight).await?;
        for (place, hop) in self.hops.iter_mut().enumerate() {
            if hop.read {
                continue;
            }
            let stretch = state.stretch(hop.blocks());
            let gradients = hop.gradients(&self.swarm, stretch.clone()).await;
            let gradients = gradients.map_err(|fault| (place, fault))?;
            let written =
                Arc::make_mut(state).write(StateKind::Gradients, stretch.start, &gradients);
            if written.is_err() {
                // One of them is no number, which may be the model's fault as well as the server's.
                let (loss, gradient_norm) = (sum, f64::NAN);
                let diverged = TrainError::Diverged { loss, gradient_norm };
                return Err((place, diverged.into()));
            }
            hop.read = true;
        }
        Ok(sum)
    }

    async fn try_take(
        &mut self,
        model: &Arc<ClientModel>,
        microbatches: &mut [Microbatch],
        weight: f32,
        taken: Taken<'_>,
    ) -> Result<(), (usize, Fault)> {
        // A server that came after the gradients were read has yet to gather them.
        self.pass(model, microbatches, weight).await?;
        let number = taken.after.steps();
        let (learning_rate, factor) = (taken.learning_rate, taken.factor);
        let step = OptimizerStep { number, learning_rate, factor };
        let swarm = &self.swarm;
        let hops = self.hops.iter_mut().enumerate().filter(|(_, hop)| hop.steps < number);
        let steps = hops.map(|(place, hop)| async move {
            let stepped = hop.step(swarm, step, taken.after).await;
            stepped.map_err(|fault| (place, fault))
        });
        futures::future::join_all(steps).await.into_iter().collect()
    }

    /// Takes all microbatches forward and back through those servers where they have not been.
    async fn pass(
        &mut self,
        model: &Arc<ClientModel>,
        microbatches: &mut [Microbatch],
        weight: f32,
    ) -> Result<f64, (usize, Fault)> {
        let mut sum = 0.0;
        for microbatch in microbatches {
            self.forward(microbatch, false).await?;
            let last = self.hops.len().saturating_sub(1);
            let foretold = microbatch.foretell(model, weight).await;
            sum += foretold.map_err(|error| (last, error.into()))?;
            for (place, hop) in self.hops.iter_mut().enumerate().rev() {
                let back = hop.backward(&self.swarm, microbatch).await;
                back.map_err(|fault| (place, fault))?;
            }
        }
        Ok(sum)
    }

    async fn forward(
        &mut self,
        microbatch: &mut Microbatch,
        evaluate: bool,
    ) -> Result<(), (usize, Fault)> {
        for (place, hop) in self.hops.iter_mut().enumerate() {
            let forward = hop.forward(&self.swarm, microbatch, evaluate).await;
            forward.map_err(|fault| (place, fault))?;
        }
        Ok(())
    }

    /// Puts others in the place of a server that has failed; they are given the state before the step.
    async fn mend(
        &mut self,
        place: usize,
        fault: Fault,
        state: &TrainingState,
    ) -> Result<(), TrainError> {
        let reason = match fault {
            Fault::Training(error) => return Err(error),
            Fault::Hop(reason) => reason,
        };
        let failed = self.hops.remove(place);
        let last_failure = self.blame(HopFailure { hop: failed.hop, reason })?;
        self.replaced += 1;
        self.fill(state, last_failure).await
    }

    /// Opens servers for all blocks that none has.
    async fn fill(
        &mut self,
        state: &TrainingState,
        mut last_failure: LastFailure,
    ) -> Result<(), TrainError> {
        while let Some((place, gap)) = self.gap() {
            let mut search = self.search(gap);
            // Who begins is told at once that the room is too small, and may ask for less.
            search.wanted.needed = self.opened || last_failure.no_room.is_none();
            let route = self.swarm.search(search).await;
            let route = route.map_err(|source| last_failure.clone().nobody_left(source))?;
            for (index, hop) in route.iter().enumerate() {
                match OpenHop::open(&self.swarm, hop, &self.terms, state).await {
                    Ok(open) => self.hops.insert(place + index, open),
                    Err(Fault::Training(error)) => return Err(error),
                    Err(Fault::Hop(reason)) => {
                        last_failure = self.blame(HopFailure { hop: hop.hop, reason })?;
                        break;
                    }
                }
            }
        }
        self.opened = true;
        Ok(())
    }

    /// The first blocks that no server has, and the place of their servers.
    fn gap(&self) -> Option<(usize, Span)> {
        let mut start = 0;
        for (place, hop) in self.hops.iter().enumerate() {
            if let Ok(gap) = Span::new(start, hop.blocks().start()) {
                return Some((place, gap));
            }
            start = hop.blocks().end();
        }
        Span::new(start, self.block_count).ok().map(|gap| (self.hops.len(), gap))
    }

    fn search(&self, gap: Span) -> Search {
        // A server of the route already may have a second place in it, but not one that has failed.
        let wanted = RouteWanted {
            blocks: gap,
            before: None,
            after: None,
            avoided: self.avoided.clone(),
            needed: true,
        };
        Search {
            model: self.terms.model,
            tokens_max: CACHE_TOKENS,
            token_bytes: self.token_bytes,
            wanted,
            prefix: Vec::new(),
            thin: false,
            since: Instant::now(),
            forgiving_from: Instant::now() + FORGIVEN_AFTER,
            urgent: self.failures > 0,
        }
    }

    /// Takes note of a failure.
    fn blame(&mut self, failure: HopFailure) -> Result<LastFailure, TrainError> {
        let no_room = match &failure.reason {
            FailureReason::Refused { code, detail } if *code == ErrorCode::KvFull => {
                Some(detail.clone())
            }
            FailureReason::Refused { .. }
            | FailureReason::LinkLost { .. }
            | FailureReason::NotOpened { .. }
            | FailureReason::Unreachable { .. }
            | FailureReason::Silent { .. }
            | FailureReason::Slow { .. }
            | FailureReason::Leaving
            | FailureReason::Violation(_) => None,
        };
        let detail = format!("{}: {}", failure.hop.peer, failure.reason);
        tracing::warn!(peer = %failure.hop.peer, blocks = %failure.hop.blocks,
            reason = %failure.reason, "a server that trains has failed");
        self.failures += 1;
        if self.failures > FAILURES_MAX {
            let (count, last_failure) = (self.failures, detail);
            return Err(match no_room {
                Some(detail) => TrainError::NoRoom { detail },
                None => TrainError::TooManyFailures { count, last_failure },
            });
        }
        self.avoided.insert(failure.hop.peer);
        // One that cannot train at the moment may well answer others.
        if !matches!(failure.reason, FailureReason::Refused { .. }) {
            self.swarm.blame(&failure);
        }
        Ok(LastFailure { detail, no_room })
    }

    pub(super) fn route(&self) -> Vec<TrainingHop> {
        let hop = |hop: &OpenHop| TrainingHop { peer: Some(hop.hop.peer), blocks: hop.blocks() };
        self.hops.iter().map(hop).collect()
    }

    pub(super) const fn replaced(&self) -> usize {
        self.replaced
    }

    pub(super) async fn close(self) {
        for hop in self.hops {
            hop.close(&self.swarm).await;
        }
    }
}
