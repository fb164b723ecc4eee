//! The blocks of one server.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use umbel_protocol::Span;
use umbel_shard::{ModelConfig, Weights};

use crate::block::{Block, BlockParts, Pass, Stretch};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::cuda::{
    CudaError, GPU_HEAD_SIZE_MAX, Gpu, GpuSpan, LoadGpuSpanError, PrepareError, SessionRows,
};
use crate::device::Device;
use crate::hidden::HiddenStates;
use crate::kernel::{Arithmetic, RopeTable};
use crate::kv::arena::KvArena;
use crate::kv::table::{KvTable, PageShape};
use crate::model;
use crate::operation::adapt;
use crate::train::{Adapter, TargetModule, TrainError, check_adapter, linear_of};

/// Consecutive blocks of a model, ready to compute. A clone shares the weights.
#[derive(Clone)]
pub struct HostedSpan {
    span: Span,
    hidden_size: usize,
    page: PageShape,
    blocks: Blocks,
    device: Device,
}

/// The blocks, by whose memory they are in.
#[derive(Clone)]
enum Blocks {
    /// The processor's.
    Host(Vec<Arc<dyn Block>>),
    /// A GPU's.
    Gpu(GpuSpan),
}

impl HostedSpan {
    /// Takes the blocks of `span` out of `weights`: matrices are packed for this machine, or shared
    /// where the kernels take them as they are.
    ///
    /// # Errors
    /// [`LoadSpanError`] where a tensor is missing or has another shape than `config` asks for.
    pub fn load(
        config: &ModelConfig,
        weights: &Weights,
        span: Span,
    ) -> Result<Self, LoadSpanError> {
        Self::load_with(Arithmetic::default(), config, weights, span)
    }

    /// As [`HostedSpan::load_with`], but blocks that are in one of `held`, of the same model and multiplied
    /// alike, are shared with it: they are in memory once.
    ///
    /// # Errors
    /// As [`HostedSpan::load`].
    pub fn load_beside(
        held: &[Self],
        arithmetic: Arithmetic,
        config: &ModelConfig,
        weights: &Weights,
        span: Span,
    ) -> Result<Self, LoadSpanError> {
        if span.end() > config.block_count {
            return Err(LoadSpanError::NoSuchBlocks { span, block_count: config.block_count });
        }
        let rope = Arc::new(RopeTable::new(&config.rope, config.head_size));
        let checkpoint = Checkpoint { config, weights, arithmetic };
        let load = |index| match held.iter().find_map(|held| held.block(index)) {
            Some(block) => Ok(Arc::clone(block)),
            None => model::load_block(checkpoint, index, &rope).map(Arc::from),
        };
        let blocks = span.blocks().map(load).collect::<Result<_, _>>()?;
        Ok(Self::of(config, span, Blocks::Host(blocks)))
    }

    fn of(config: &ModelConfig, span: Span, blocks: Blocks) -> Self {
        let (hidden_size, page) = (config.hidden_size, PageShape::of(config));
        Self { span, hidden_size, page, blocks, device: Device::shared() }
    }

    /// As [`HostedSpan::load`], with activations multiplied as `arithmetic` says.
    ///
    /// # Errors
    /// As [`HostedSpan::load`].
    pub fn load_with(
        arithmetic: Arithmetic,
        config: &ModelConfig,
        weights: &Weights,
        span: Span,
    ) -> Result<Self, LoadSpanError> {
        Self::load_beside(&[], arithmetic, config, weights, span)
    }

    /// As [`HostedSpan::load_beside`], into the memory of `gpu`. What is in binary32 throughout is
    /// computed in it; else activations are rounded to bfloat16 where they are multiplied, and
    /// quantized weights where they are unpacked.
    ///
    /// # Errors
    /// As [`HostedSpan::load`], and where the device has no room for the blocks.
    pub fn load_on(
        gpu: &Gpu,
        held: &[Self],
        config: &ModelConfig,
        weights: &Weights,
        span: Span,
    ) -> Result<Self, LoadSpanError> {
        if span.end() > config.block_count {
            return Err(LoadSpanError::NoSuchBlocks { span, block_count: config.block_count });
        }
        let rope = Arc::new(RopeTable::new(&config.rope, config.head_size));
        let checkpoint = Checkpoint { config, weights, arithmetic: Arithmetic::default() };
        let held: Vec<_> = held.iter().filter_map(Self::gpu_blocks).collect();
        let blocks = GpuSpan::load(gpu, &held, checkpoint, span, &rope)?;
        Ok(Self::of(config, span, Blocks::Gpu(blocks)))
    }

    /// The GPU that the blocks are on, if they are on one.
    #[must_use]
    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu_blocks().map(GpuSpan::gpu)
    }

    /// Whether gradients can go back through the blocks: a GPU has kernels for usual heads alone, and none
    /// for experts.
    ///
    /// # Errors
    /// [`TrainError`], which says what there are no kernels for.
    pub fn can_train(&self) -> Result<(), TrainError> {
        let Some(blocks) = self.gpu_blocks() else { return Ok(()) };
        let found = blocks.head_size();
        if found > GPU_HEAD_SIZE_MAX {
            return Err(TrainError::HeadsOnGpu { found });
        }
        if blocks.has_experts() {
            return Err(TrainError::ExpertsOnGpu);
        }
        Ok(())
    }

    /// Room for the keys and values of `tokens_max` tokens, in binary32, where the blocks are.
    ///
    /// # Errors
    /// [`CudaError`] where a GPU has not so much memory.
    pub fn arena(&self, config: &ModelConfig, tokens_max: usize) -> Result<KvArena, CudaError> {
        match &self.blocks {
            Blocks::Host(_) => Ok(KvArena::new(config, self.span, tokens_max)),
            Blocks::Gpu(blocks) => {
                let (gpu, dtype) = (blocks.gpu(), blocks.cache_type());
                KvArena::on_device(gpu, config, self.span, tokens_max, dtype)
            }
        }
    }

    /// The same blocks, computed by `device` instead of the process's shared threads.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Those of the blocks that `span` has too, if there are any.
    #[must_use]
    pub fn part(&self, span: Span) -> Option<Self> {
        let span = self.span.intersection(span)?;
        let blocks = match &self.blocks {
            Blocks::Host(_) => {
                Blocks::Host(span.blocks().filter_map(|index| self.block(index)).cloned().collect())
            }
            Blocks::Gpu(blocks) => Blocks::Gpu(blocks.part(span)),
        };
        Some(Self { span, blocks, ..self.clone() })
    }

    /// The block of this index, where it is one of the hosted ones and in the processor's memory.
    fn block(&self, index: u32) -> Option<&Arc<dyn Block>> {
        match &self.blocks {
            Blocks::Host(blocks) => blocks.get(index.checked_sub(self.span.start())? as usize),
            Blocks::Gpu(_) => None,
        }
    }

    /// The blocks that are here.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Values of one token between the blocks.
    #[must_use]
    pub const fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// The blocks on a GPU, if they are on one.
    pub(crate) const fn gpu_blocks(&self) -> Option<&GpuSpan> {
        match &self.blocks {
            Blocks::Host(_) => None,
            Blocks::Gpu(blocks) => Some(blocks),
        }
    }

    /// Where the blocks are computed.
    pub(crate) const fn device(&self) -> &Device {
        &self.device
    }

    /// What the block `index`, which is one of the hosted ones, is made of.
    ///
    /// # Panics
    /// Where the blocks are on a GPU.
    pub(crate) fn parts(&self, index: u32) -> BlockParts<'_> {
        self.block(index).expect("the processor has the block").parts()
    }

    /// Rows and columns of a module's matrix in a block, which is one of the hosted ones; `None` where
    /// experts stand in its place.
    pub(crate) fn module_shape(&self, block: u32, module: TargetModule) -> Option<[usize; 2]> {
        match &self.blocks {
            Blocks::Gpu(blocks) => blocks.module_shape(module),
            Blocks::Host(_) => {
                let linear = linear_of(&self.parts(block), module)?;
                Some([linear.rows(), linear.columns()])
            }
        }
    }

    /// Has the tokens of a session go through the blocks with what `adapter` adds from now on. It is a
    /// session without tokens, or with those of pages that were computed with the same adapter.
    ///
    /// # Errors
    /// [`TrainError`] where the adapter lacks a block of the session's or is for another model, or the
    /// blocks are on a GPU without room for it.
    pub fn adapt(&self, table: &mut KvTable, adapter: Arc<Adapter>) -> Result<(), TrainError> {
        let (blocks, hosted) = (table.blocks(), self.span);
        if !hosted.covers(blocks) {
            return Err(TrainError::NotHosted { blocks, hosted });
        }
        check_adapter(self, blocks, &adapter)?;
        if let Blocks::Gpu(on_gpu) = &self.blocks {
            table.device_cache_mut().set_adapter(on_gpu.adapter(&adapter)?);
        }
        table.set_adapter(adapter);
        Ok(())
    }

    /// Takes the tokens of `input`, which stand at [`KvTable::position`] and after it, through the
    /// blocks for which `table` was opened, and adds their keys and values to it.
    ///
    /// # Errors
    /// [`ForwardError`]; the table is then as it was before.
    ///
    /// # Panics
    /// Where `table` is of another model's arena: a bug of ours.
    pub fn forward(
        &self,
        table: &mut KvTable,
        input: &HiddenStates,
    ) -> Result<HiddenStates, ForwardError> {
        let mut results = self.forward_batch(&mut [(table, input)]);
        results.pop().expect("there is a result for each session")
    }

    /// As [`HostedSpan::forward`] for several sessions in one pass: each block reads its weights
    /// once for the tokens of all sessions that go through it. No bit of a result differs from what
    /// the session alone would get, and the error of one is none of the others'.
    ///
    /// # Panics
    /// Where a table is of another model's arena: a bug of ours.
    pub fn forward_batch(
        &self,
        batch: &mut [(&mut KvTable, &HiddenStates)],
    ) -> Vec<Result<HiddenStates, ForwardError>> {
        let checks: Vec<_> = batch.iter().map(|(table, input)| self.check(table, input)).collect();
        let sound = batch.iter_mut().zip(&checks).filter(|(_, check)| check.is_ok());
        let mut parts: Vec<_> = sound.map(|((table, input), _)| Part::new(table, input)).collect();
        if let Blocks::Gpu(blocks) = &self.blocks {
            return on_gpu(blocks, checks, parts);
        }
        let failure = self.device.run(|| self.pass(&mut parts)).err();
        let mut parts = parts.into_iter();
        let results = checks.into_iter().map(|check| {
            check?;
            let part = parts.next().expect("every sound session has its part");
            match &failure {
                None => Ok(part.finish()),
                Some((block, source)) => {
                    Err(ForwardError::Compute { block: *block, source: Arc::clone(source) })
                }
            }
        });
        results.collect()
    }

    /// Whether a session can go through the blocks.
    fn check(&self, table: &KvTable, input: &HiddenStates) -> Result<(), ForwardError> {
        if !self.span.covers(table.blocks()) {
            return Err(ForwardError::NotHosted { blocks: table.blocks(), hosted: self.span });
        }
        assert_eq!(table.shape(), self.page, "a table holds the heads of its own model");
        if input.hidden_size() != self.hidden_size {
            let (expected, found) = (self.hidden_size, input.hidden_size());
            return Err(ForwardError::WrongHiddenSize { expected, found });
        }
        if input.token_count() > table.free_tokens() {
            return Err(ForwardError::TableFull {
                tokens: input.token_count(),
                position: table.position(),
                capacity: table.capacity(),
            });
        }
        Ok(())
    }

    /// Takes all parts through their blocks. They are joined anew only where a session's blocks
    /// begin or end; mostly all sessions have the same blocks.
    fn pass(&self, parts: &mut [Part<'_>]) -> Result<(), (u32, Arc<candle_core::Error>)> {
        let ends = |part: &Part<'_>| [part.table.blocks().start(), part.table.blocks().end()];
        let mut cuts: Vec<u32> = parts.iter().flat_map(ends).collect();
        cuts.sort_unstable();
        cuts.dedup();
        for cut in cuts.windows(2) {
            let passes = |part: &&mut Part<'_>| part.table.blocks().contains(cut[0]);
            let mut together: Vec<_> = parts.iter_mut().filter(passes).collect();
            if !together.is_empty() {
                self.pass_together(cut[0]..cut[1], &mut together)?;
            }
        }
        Ok(())
    }

    /// Takes parts through blocks that all of them go through.
    fn pass_together(
        &self,
        blocks: Range<u32>,
        parts: &mut [&mut Part<'_>],
    ) -> Result<(), (u32, Arc<candle_core::Error>)> {
        let positions: Arc<[usize]> = parts.iter().flat_map(|part| part.positions()).collect();
        let mut hidden = join(parts).map_err(|source| (blocks.start, source.into()))?;
        for index in blocks.clone() {
            let block = self.block(index).expect("the processor has the block");
            let stretches = parts.iter_mut().map(|part| part.stretch(index)).collect();
            let positions = Arc::clone(&positions);
            let mut pass = Pass { block: index, positions, stretches };
            let forward = adapt::add_prompts(&pass, hidden)
                .and_then(|hidden| block.forward(&hidden, &mut pass));
            hidden = forward.map_err(|source| (index, source.into()))?;
        }
        divide(&hidden, parts).map_err(|source| (blocks.end - 1, source.into()))
    }
}

/// What one session brings into a pass, on its way through the blocks.
struct Part<'a> {
    table: &'a mut KvTable,
    tokens: usize,
    hidden: Tensor,
    adapter: Option<Arc<Adapter>>,
}

impl<'a> Part<'a> {
    fn new(table: &'a mut KvTable, input: &HiddenStates) -> Self {
        let adapter = table.adapter().cloned();
        Self { table, tokens: input.token_count(), hidden: input.tensor().clone(), adapter }
    }

    fn positions(&self) -> Range<usize> {
        let position = self.table.position();
        position..position + self.tokens
    }

    /// The session's tokens and cache in block `index`, which is one of its blocks.
    fn stretch(&mut self, index: u32) -> Stretch<'_> {
        let (position, tokens) = (self.table.position(), self.tokens);
        let place = (index - self.table.blocks().start()) as usize;
        let adapter = self.adapter.as_deref();
        Stretch { cache: &mut self.table.caches_mut()[place], position, tokens, adapter }
    }

    fn finish(self) -> HiddenStates {
        self.table.advance(self.tokens);
        HiddenStates::computed(self.hidden)
    }
}

/// Takes the parts of the sessions whose check is sound through blocks on a GPU.
fn on_gpu(
    blocks: &GpuSpan,
    checks: Vec<Result<(), ForwardError>>,
    mut parts: Vec<Part<'_>>,
) -> Vec<Result<HiddenStates, ForwardError>> {
    let sessions = parts.iter_mut().map(|part| {
        let (tokens, hidden) = (part.tokens, part.hidden.clone());
        let rows = SessionRows { table: &mut *part.table, tokens, hidden };
        (rows.table.blocks(), rows)
    });
    let mut results = blocks.forward(sessions.collect()).into_iter().zip(parts);
    let results = checks.into_iter().map(|check| {
        check?;
        let (rows, part) = results.next().expect("every sound session has its part");
        let rows = rows.map_err(|source| ForwardError::Gpu { source: GpuError(source) })?;
        part.table.advance(part.tokens);
        Ok(HiddenStates::from_values(rows, part.hidden.dims()[1]).expect("a pass keeps the shape"))
    });
    results.collect()
}

/// The rows of all parts, one part after the other.
fn join(parts: &[&mut Part<'_>]) -> candle_core::Result<Tensor> {
    match parts {
        [alone] => Ok(alone.hidden.clone()),
        _ => {
            let all: Vec<_> = parts.iter().map(|part| &part.hidden).collect();
            Tensor::cat(&all, 0)
        }
    }
}

/// Gives each part its rows, without a copy.
fn divide(hidden: &Tensor, parts: &mut [&mut Part<'_>]) -> candle_core::Result<()> {
    let mut start = 0;
    for part in parts {
        part.hidden = hidden.narrow(0, start, part.tokens)?;
        start += part.tokens;
    }
    Ok(())
}

impl fmt::Debug for HostedSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostedSpan({} of hidden size {})", self.span, self.hidden_size)
    }
}

/// A span that could not be loaded: the checkpoint is not the model that its configuration says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadSpanError {
    /// Blocks that the model does not have.
    #[error("the model has {block_count} blocks; {span} is not among them")]
    NoSuchBlocks {
        /// The blocks asked for.
        span: Span,
        /// How many the model has.
        block_count: u32,
    },
    /// A tensor is missing or has another shape.
    #[error(transparent)]
    Tensor(#[from] LoadTensorError),
    /// The GPU has no memory for them, or is lost.
    #[error("the blocks cannot be put on the GPU")]
    Gpu(#[from] CudaError),
    /// Heads for which the GPU has no kernel.
    #[error(
        "the model's heads have {found} values, and the GPU's kernels take at most 256; serve it on \
         the CPU"
    )]
    HeadSize {
        /// Values of a head.
        found: usize,
    },
}

impl From<LoadGpuSpanError> for LoadSpanError {
    fn from(error: LoadGpuSpanError) -> Self {
        match error {
            LoadGpuSpanError::Tensor(error) => Self::Tensor(error),
            LoadGpuSpanError::Cuda(error) => Self::Gpu(error),
            LoadGpuSpanError::HeadSize { found } => Self::HeadSize { found },
        }
    }
}

/// A pass that was not computed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The session's blocks are not here: ask the server that has them.
    #[error("blocks {blocks} are not among the hosted blocks {hosted}")]
    NotHosted {
        /// The blocks of the session.
        blocks: Span,
        /// The blocks that are here.
        hosted: Span,
    },
    /// Hidden states of another model.
    #[error("hidden states have {found} values a token; this model has {expected}")]
    WrongHiddenSize {
        /// Values of one token in this model.
        expected: usize,
        /// Values of one token in the input.
        found: usize,
    },
    /// More tokens than the session was opened for: open one with more room.
    #[error("{tokens} tokens at position {position} exceed the session's room of {capacity}")]
    TableFull {
        /// Tokens of the input.
        tokens: usize,
        /// Tokens in the cache.
        position: usize,
        /// The most that the session can hold.
        capacity: usize,
    },
    /// The tensor library refused; a bug of ours or memory that ran out.
    #[error("block {block} could not be computed")]
    Compute {
        /// The block.
        block: u32,
        /// What the library said: of one pass, to all its sessions.
        source: Arc<candle_core::Error>,
    },
    /// The GPU has no memory for the pass, or is lost.
    #[error("the GPU could not compute the pass")]
    Gpu {
        /// What its driver said: of one pass, to all its sessions.
        source: GpuError,
    },
}

/// Why a GPU did not compute.
#[derive(Debug, Clone)]
pub struct GpuError(Arc<PrepareError>);

impl GpuError {
    /// Whether the device can be used no more by this process.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(&*self.0, PrepareError::Cuda(error) if error.is_fatal())
    }
}

impl From<CudaError> for GpuError {
    fn from(error: CudaError) -> Self {
        Self(Arc::new(error.into()))
    }
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for GpuError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
pub(crate) mod tests;
