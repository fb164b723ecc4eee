//! All blocks of a model in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Every block of a model, for the sessions of this process.
pub struct LocalModel {
    blocks: HostedSpan,
    arena: KvArena,
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
        Ok(Self { blocks: blocks.on(device), arena })
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
        let table = self.arena.open_as(cache, self.blocks.span(), tokens_max as usize)?;
        Ok(LocalChain { model: Arc::clone(self), table: Some(table), tokens_max, lead: None })
    }
}

/// A session through every block in this process.
pub struct LocalChain {
    model: Arc<LocalModel>,
    /// Absent only while a step computes.
    table: Option<KvTable>,
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
        if let Some(table) = &mut self.table
            && adapter.adapter().config().adapts_blocks()
        {
            self.model.blocks.adapt(table, Arc::clone(adapter.adapter()))?;
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
        let Some(mut table) = self.table.take() else {
            return Err(StepError::Interrupted);
        };
        let (table, result, compute) = tokio::task::spawn_blocking(move || {
            let computing = Instant::now();
            let result = compute(&model.blocks, &mut table, position, &hidden);
            (table, result, computing.elapsed())
        })
        .await
        .expect("arithmetic does not panic");
        self.table = Some(table);
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
