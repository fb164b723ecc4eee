//! All blocks of a model in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, RwLock};
use umbel_engine::train::TrainError;
use umbel_engine::{
    Arithmetic, Device, ForwardError, HiddenStates, HostedSpan, KvArena, KvTable, OpenTableError,
    TruncateError,
};
use umbel_protocol::{DType, Span};
use umbel_shard::{LoadError, Model, Part};

use super::lead::Lead;
use super::{HopTime, StepError, StepTime};
use crate::adapter::NamedAdapter;
use crate::apart;

/// Every block of a model, for the sessions of this process.
pub struct LocalModel {
    blocks: HostedSpan,
    arena: KvArena,
    /// Tokens of one session for which there is room where there is no other.
    room: usize,
    /// Told whenever a session has left its room.
    left: Arc<Notify>,
    /// Written by who waits for room, one after the other, and read by who does not wait.
    next: RwLock<()>,
}

impl LocalModel {
    /// Loads every block, with room for `kv_tokens` tokens of all sessions together.
    ///
    /// # Errors
    /// [`LoadLocalError`] where the model's files are not what they should be.
    pub fn load(model: &Model, kv_tokens: usize, device: Device) -> Result<Self, LoadLocalError> {
        Self::load_with(Arithmetic::default(), model, kv_tokens, device)
    }

    /// The same, with activations multiplied as `arithmetic` says.
    ///
    /// # Errors
    /// As [`LocalModel::load`].
    pub fn load_with(
        arithmetic: Arithmetic,
        model: &Model,
        kv_tokens: usize,
        device: Device,
    ) -> Result<Self, LoadLocalError> {
        let config = model.config();
        let span = Span::new(0, config.block_count).map_err(|_| LoadLocalError::NoBlocks)?;
        let weights = model.weights(Part::Blocks(span))?;
        let blocks = device.run(|| HostedSpan::load_with(arithmetic, config, &weights, span))?;
        let arena = KvArena::new(config, span, kv_tokens);
        let (room, left, next) = (arena.free_tokens(), Arc::default(), RwLock::default());
        Ok(Self { blocks: blocks.on(device), arena, room, left, next })
    }

    /// The blocks, which a clone shares.
    pub(crate) fn blocks(&self) -> HostedSpan {
        self.blocks.clone()
    }

    /// Opens a session with room for `tokens_max` tokens.
    ///
    /// # Errors
    /// [`OpenTableError`] where the other sessions leave too little room.
    pub fn open(self: &Arc<Self>, tokens_max: u32) -> Result<LocalChain, OpenTableError> {
        self.open_as(DType::F32, tokens_max)
    }

    /// The same, whose keys and values are kept in this type.
    ///
    /// # Errors
    /// As [`LocalModel::open`].
    pub fn open_as(
        self: &Arc<Self>,
        cache: DType,
        tokens_max: u32,
    ) -> Result<LocalChain, OpenTableError> {
        let Ok(_nobody_waits) = self.next.try_read() else {
            // What is free is theirs, or they would wait as long as others come who want less.
            return Err(OpenTableError::Full { tokens: tokens_max as usize, free_tokens: 0 });
        };
        self.open_now(cache, tokens_max)
    }

    /// The same, which waits for the room that other sessions have, behind those who wait already.
    ///
    /// # Errors
    /// [`OpenTableError`] where there is too little room for it even without others.
    pub async fn open_in_turn(
        self: &Arc<Self>,
        cache: DType,
        tokens_max: u32,
    ) -> Result<LocalChain, OpenTableError> {
        let _next = self.next.write().await;
        loop {
            match self.open_now(cache, tokens_max) {
                Err(OpenTableError::Full { .. }) if tokens_max as usize <= self.room => {
                    self.left.notified().await;
                }
                opened => return opened,
            }
        }
    }

    fn open_now(
        self: &Arc<Self>,
        cache: DType,
        tokens_max: u32,
    ) -> Result<LocalChain, OpenTableError> {
        let table = self.arena.open_as(cache, self.blocks.span(), tokens_max as usize)?;
        let place = Place { table, _left: Left(Arc::clone(&self.left)) };
        Ok(LocalChain { model: Arc::clone(self), place: Some(place), tokens_max, lead: None })
    }
}

/// The room of a session, and word of it when it is free again: fields are dropped in their order.
struct Place {
    table: KvTable,
    _left: Left,
}

struct Left(Arc<Notify>);

impl Drop for Left {
    fn drop(&mut self) {
        // One waits at most, and a word that comes before is kept.
        self.0.notify_one();
    }
}

/// A session through every block in this process.
pub struct LocalChain {
    model: Arc<LocalModel>,
    /// Absent only while a step computes.
    place: Option<Place>,
    tokens_max: u32,
    lead: Option<Lead>,
}

impl LocalChain {
    /// The same session, which has had no step, with an adapter. The vectors that stand before the text
    /// take their part of its room.
    ///
    /// # Errors
    /// [`TrainError`] where the adapter is for another model.
    pub fn adapted(mut self, adapter: &NamedAdapter) -> Result<Self, TrainError> {
        self.lead = Lead::of(Some(adapter));
        if let Some(place) = &mut self.place
            && adapter.adapter().config().adapts_blocks()
        {
            self.model.blocks.adapt(&mut place.table, Arc::clone(adapter.adapter()))?;
        }
        Ok(self)
    }

    pub(super) async fn step(
        &mut self,
        position: u32,
        hidden: HiddenStates,
    ) -> Result<(HiddenStates, StepTime), StepError> {
        let started = Instant::now();
        let model = Arc::clone(&self.model);
        // A step that was dropped half-way has taken the table with it.
        let Some(mut place) = self.place.take() else {
            return Err(StepError::Interrupted);
        };
        let (place, result, compute) = apart::compute(move || {
            let computing = Instant::now();
            let result = compute(&model.blocks, &mut place.table, position, &hidden);
            (place, result, computing.elapsed())
        })
        .await;
        self.place = Some(place);
        let time = self.time(started.elapsed(), compute);
        Ok((result?, time))
    }

    pub(super) const fn lead(&self) -> Option<&Lead> {
        self.lead.as_ref()
    }

    pub(super) const fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    pub(super) fn blocks(&self) -> Span {
        self.model.blocks.span()
    }

    /// Sessions of this process wait for one another, and nothing travels.
    fn time(&self, total: Duration, compute: Duration) -> StepTime {
        let queue = total.saturating_sub(compute);
        let blocks = self.blocks();
        let hop = HopTime { peer: None, blocks, compute, queue, network: Duration::ZERO };
        StepTime { total, hops: vec![hop] }
    }
}

fn compute(
    blocks: &HostedSpan,
    table: &mut KvTable,
    position: u32,
    hidden: &HiddenStates,
) -> Result<HiddenStates, LocalStepError> {
    table.truncate(position as usize)?;
    Ok(blocks.forward(table, hidden)?)
}

/// A step that this process could not compute.
#[derive(Debug, thiserror::Error)]
pub enum LocalStepError {
    /// The step begins beyond the end of the cache.
    #[error(transparent)]
    Truncate(#[from] TruncateError),
    /// The arithmetic failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// A model that cannot be computed in this process.
#[derive(Debug, thiserror::Error)]
pub enum LoadLocalError {
    /// The configuration has no block.
    #[error("the model has no blocks")]
    NoBlocks,
    /// A tensor could not be read.
    #[error(transparent)]
    Weights(#[from] LoadError),
    /// A tensor is missing or has another shape than the configuration says.
    #[error(transparent)]
    Span(#[from] umbel_engine::LoadSpanError),
}

#[cfg(test)]
mod tests;
