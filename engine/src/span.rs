//! The blocks of one server.

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use umbel_protocol::Span;
use umbel_shard::{ModelConfig, Weights};

use crate::block::Block;
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::device::Device;
use crate::hidden::HiddenStates;
use crate::kernel::{Arithmetic, RopeTable};
use crate::kv::table::{KvTable, PageShape};
use crate::model;

/// Consecutive blocks of a model, ready to compute.
pub struct HostedSpan {
    span: Span,
    hidden_size: usize,
    page: PageShape,
    blocks: Vec<Box<dyn Block>>,
    device: Device,
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
        if span.end() > config.block_count {
            return Err(LoadSpanError::NoSuchBlocks { span, block_count: config.block_count });
        }
        let rope = Arc::new(RopeTable::new(&config.rope, config.head_size));
        let checkpoint = Checkpoint { config, weights, arithmetic };
        let load = |index| model::load_block(checkpoint, index, &rope);
        let blocks = span.blocks().map(load).collect::<Result<_, _>>()?;
        Ok(Self {
            span,
            hidden_size: config.hidden_size,
            page: PageShape::of(config),
            blocks,
            device: Device::shared(),
        })
    }

    /// The same blocks, computed by `device` instead of the process's shared threads.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
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
        let output = self.device.run(|| self.pass(table, input.tensor()))?;
        table.advance(input.token_count());
        Ok(HiddenStates::computed(output))
    }

    fn pass(&self, table: &mut KvTable, input: &Tensor) -> Result<Tensor, ForwardError> {
        let position = table.position();
        let hosted = self.span.blocks().zip(&self.blocks);
        let blocks = table.blocks();
        let passed = hosted.filter(|&(index, _)| blocks.contains(index));
        let mut hidden = input.clone();
        for ((index, block), cache) in passed.zip(table.caches_mut()) {
            hidden = block
                .forward(&hidden, cache, position)
                .map_err(|source| ForwardError::Compute { block: index, source })?;
        }
        Ok(hidden)
    }
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
        /// What the library said.
        source: candle_core::Error,
    },
}

#[cfg(test)]
mod tests;
