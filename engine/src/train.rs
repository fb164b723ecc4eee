//! Gradients through the blocks of a span, and adapters that learn from them.
//!
//! A [`TrainingPass`] takes whole sequences through blocks without a cache. Its
//! [`forward`](TrainingPass::forward) keeps what enters each block and nothing else; its
//! [`backward`](TrainingPass::backward) goes through the blocks from the last to the first, computes
//! the activations of one block again from its input, and hands the gradient on (Chen et al. 2016,
//! <https://arxiv.org/abs/1604.06174>). So memory grows with the activations of one block. The
//! weights of the model are frozen: gradients pass through them, and only the [`Adapter`] has its own.
//!
//! Matrices multiply forward as they do when the model answers, with the activations rounded as the
//! span's [`Arithmetic`](crate::Arithmetic) says; gradients pass through this rounding unchanged.
//!
//! The bits of a token's result, and of the gradient of its input, do not depend on the number of
//! threads, on the split into spans, or on the other sequences of a pass.
//!
//! | module | what it holds |
//! |---|---|
//! | [`adapter`] | LoRA, DoRA and prompts: their values, and PEFT's files |
//! | [`prompt`] | learned vectors before texts and in blocks |
//! | [`optimizer`] | AdamW |
//! | [`state`] | both, and the gradients of a step |
//! | [`loss`] | cross-entropy at the ends of the model |
//! | `block` | one block forward and backward |
//! | `lora`, `attention`, `norm`, `swiglu`, `dense` | its parts |
//! | `dora` | rows that are scaled to learned norms |
//! | `dropout` | masks that a replay draws again |

pub mod adapter;
mod attention;
mod block;
pub(crate) mod dense;
pub(crate) mod dora;
mod dropout;
mod experts;
mod lora;
pub mod loss;
mod norm;
pub mod optimizer;
pub mod prompt;
mod settings;
pub mod state;
mod swiglu;

use std::fmt;

use umbel_protocol::Span;

pub(crate) use adapter::ModuleSizes;
pub use adapter::{
    Adapter, AdapterConfig, AdapterError, PEFT_WEIGHTS_FILE, Parameters, PeftFiles, TargetModule,
    module_shape,
};
pub use loss::{Loss, LossError};
pub use optimizer::{AdamW, Optimizer, RowOptimizer, StepError};
pub use state::TrainingState;

use crate::cuda::{
    BlockGradients, CudaError, GPU_HEAD_SIZE_MAX, GpuBackward, GpuForward, GpuSpan, GpuTraining,
    PairGradient,
};
use crate::hidden::HiddenStates;
use crate::operation;
use crate::span::HostedSpan;
use adapter::LoraMatrices;
use block::TrainedBlock;
pub(crate) use block::linear_of;
pub(crate) use dropout::stream_of;

/// One text of a microbatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Its tokens, the first of which stands at position 0.
    pub tokens: usize,
    /// What the dropout of an adapter is drawn from: another number for each sequence and step.
    pub dropout_seed: u64,
}

/// Sequences on their way through some blocks of a span.
pub struct TrainingPass<'a> {
    hosted: &'a HostedSpan,
    blocks: Span,
    adapter: Option<&'a Adapter>,
    sequences: &'a [Sequence],
    lengths: Vec<usize>,
    positions: Vec<usize>,
    pause: &'a dyn Fn(),
    /// Whether it is over, whatever is still to be computed.
    is_over: &'a dyn Fn() -> bool,
    drops: bool,
}

/// What a pass forward leaves.
#[derive(Debug)]
pub struct Forward {
    /// What entered each block: what the way back needs.
    pub inputs: Vec<HiddenStates>,
    /// What left the last block.
    pub output: HiddenStates,
}

/// What the way back gives.
#[derive(Debug)]
pub struct Backward {
    /// The gradient of what entered the first block.
    pub input: HiddenStates,
    /// Those of the adapter's values; empty without an adapter.
    pub parameters: Parameters,
}

impl<'a> TrainingPass<'a> {
    /// Takes `sequences`, one after the other, through `blocks` of `hosted` with what `adapter` adds.
    ///
    /// # Errors
    /// [`TrainError`] where the blocks are not here, or the adapter is not for them.
    pub fn new(
        hosted: &'a HostedSpan,
        blocks: Span,
        adapter: Option<&'a Adapter>,
        sequences: &'a [Sequence],
    ) -> Result<Self, TrainError> {
        if !hosted.span().covers(blocks) {
            return Err(TrainError::NotHosted { blocks, hosted: hosted.span() });
        }
        if sequences.is_empty() || sequences.iter().any(|sequence| sequence.tokens == 0) {
            return Err(TrainError::NoToken);
        }
        hosted.can_train()?;
        if let Some(adapter) = adapter {
            check_adapter(hosted, blocks, adapter)?;
        }
        let (drops, is_over) = (true, &|| false);
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens).collect();
        let positions = lengths.iter().flat_map(|&tokens| 0..tokens).collect();
        let pause = &|| ();
        Ok(Self { hosted, blocks, adapter, sequences, lengths, positions, pause, is_over, drops })
    }

    /// Drops nothing, whatever the adapter says: for evaluation.
    #[must_use]
    pub fn without_dropout(self) -> Self {
        Self { drops: false, ..self }
    }

    /// Calls `pause` again and again, on the thread that computes, so that others may compute
    /// meanwhile: at least after each product of a matrix with some 64 tokens, and after the attention
    /// of each sequence, or of a long one in as many heads of keys as there are threads.
    #[must_use]
    pub fn pausing(self, pause: &'a dyn Fn()) -> Self {
        Self { pause, ..self }
    }

    /// Asks before each block, on the thread that computes, whether to give up.
    #[must_use]
    pub fn until(self, is_over: &'a dyn Fn() -> bool) -> Self {
        Self { is_over, ..self }
    }

    /// From what enters the first block to what leaves the last, `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`TrainError`] where `input` has not a row for each token, it is to give up, or a GPU fails.
    pub fn forward(&self, input: &HiddenStates) -> Result<Forward, TrainError> {
        self.check(input)?;
        if let Some(blocks) = self.hosted.gpu_blocks() {
            let through = self.on_gpu(blocks)?.forward(&input.to_values(), self.is_over)?;
            let GpuForward { inputs, output } = through.ok_or(TrainError::Over)?;
            let inputs = inputs.into_iter().map(|values| self.states(values)).collect();
            return Ok(Forward { inputs, output: self.states(output) });
        }
        let mut inputs = Vec::with_capacity(self.blocks.blocks().len());
        let mut hidden = input.clone();
        self.hosted.device().run(|| {
            for index in self.blocks.blocks() {
                self.check_over()?;
                let output = with_values(&hidden, |hidden| self.block(index).forward(hidden));
                inputs.push(std::mem::replace(&mut hidden, self.states(output)));
            }
            Ok(Forward { inputs, output: hidden })
        })
    }

    /// From what entered each block and the gradient of what left the last one.
    ///
    /// # Errors
    /// [`TrainError`] where a tensor has not a row for each token, there is not an input for each
    /// block, it is to give up, or a GPU fails.
    pub fn backward(
        &self,
        inputs: &[HiddenStates],
        gradient: &HiddenStates,
    ) -> Result<Backward, TrainError> {
        let expected = self.blocks.blocks().len();
        if inputs.len() != expected {
            return Err(TrainError::Inputs { found: inputs.len(), expected });
        }
        inputs.iter().chain([gradient]).try_for_each(|states| self.check(states))?;
        let mut gradient = gradient.to_values();
        if let Some(blocks) = self.hosted.gpu_blocks() {
            let inputs: Vec<_> = inputs.iter().map(HiddenStates::to_values).collect();
            let back = self.on_gpu(blocks)?.backward(&inputs, gradient, self.is_over)?;
            let GpuBackward { gradient, found } = back.ok_or(TrainError::Over)?;
            return Ok(Backward { input: self.states(gradient), parameters: parameters_of(found) });
        }
        let mut parameters = Parameters::default();
        self.hosted.device().run(|| {
            for (index, input) in self.blocks.blocks().zip(inputs).rev() {
                self.check_over()?;
                gradient = with_values(input, |input| {
                    self.block(index).backward(input, &gradient, &mut parameters)
                });
            }
            Ok(Backward { input: self.states(gradient), parameters })
        })
    }

    fn check_over(&self) -> Result<(), TrainError> {
        if (self.is_over)() { Err(TrainError::Over) } else { Ok(()) }
    }

    fn block(&self, index: u32) -> TrainedBlock<'_> {
        let parts = self.hosted.parts(index);
        let rows = (&*self.lengths, &*self.positions);
        TrainedBlock::new(index, parts, self.adapter, self.dropped(), rows, self.pause)
    }

    fn on_gpu<'b>(&'b self, blocks: &'b GpuSpan) -> Result<GpuTraining<'b>, CudaError> {
        let adapter = self.adapter.map(|adapter| (adapter, self.dropped()));
        GpuTraining::new((blocks, self.blocks), &self.lengths, adapter, self.pause)
    }

    /// The sequences in which something is dropped.
    const fn dropped(&self) -> &[Sequence] {
        if self.drops { self.sequences } else { &[] }
    }

    fn states(&self, values: Vec<f32>) -> HiddenStates {
        HiddenStates::from_values(values, self.hosted.hidden_size())
            .expect("blocks keep the shape of their input")
    }

    fn check(&self, states: &HiddenStates) -> Result<(), TrainError> {
        let expected = [self.positions.len(), self.hosted.hidden_size()];
        let found = [states.token_count(), states.hidden_size()];
        if found == expected { Ok(()) } else { Err(TrainError::Shape { expected, found }) }
    }
}

/// Gradients that a GPU has found.
fn parameters_of(found: Vec<BlockGradients>) -> Parameters {
    let mut parameters = Parameters::default();
    for BlockGradients { index, pairs, prompt } in found {
        for PairGradient { module, rank, a, b, magnitudes } in pairs {
            let matrices = LoraMatrices::new(a, b, rank);
            let matrices =
                if magnitudes.is_empty() { matrices } else { matrices.with_magnitudes(magnitudes) };
            parameters.matrices.insert((index, module), matrices);
        }
        parameters.block_prompts.extend(prompt.map(|prompt| (index, prompt)));
    }
    parameters
}

/// Whether an adapter has the blocks, and each of its pairs the shape of its matrix.
pub(crate) fn check_adapter(
    hosted: &HostedSpan,
    blocks: Span,
    adapter: &Adapter,
) -> Result<(), TrainError> {
    if !adapter.blocks().covers(blocks) {
        return Err(TrainError::NotAdapted { blocks, adapted: adapter.blocks() });
    }
    for ((block, module), matrices) in adapter.parameters().iter() {
        if !blocks.contains(block) {
            continue;
        }
        let expected = hosted.module_shape(block, module);
        let expected = expected.ok_or(TrainError::Experts { block, module })?;
        let found = matrices.shape();
        if found != expected {
            return Err(TrainError::OtherModel { block, module, expected, found });
        }
    }
    let tokens = adapter.config().block_prompt_tokens;
    for (&block, prompt) in &adapter.parameters().block_prompts {
        let (expected, found) = (hosted.hidden_size(), prompt.len() / tokens.max(1));
        if found != expected && blocks.contains(block) {
            return Err(TrainError::OtherWidth { expected, found });
        }
    }
    Ok(())
}

fn with_values<R>(states: &HiddenStates, read: impl FnOnce(&[f32]) -> R) -> R {
    operation::with_values(states.tensor(), read)
        .expect("hidden states are contiguous binary32 on the processor")
}

impl fmt::Debug for TrainingPass<'_> {
    /// The shape; never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tokens, sequences) = (self.positions.len(), self.lengths.len());
        write!(f, "TrainingPass({tokens} tokens of {sequences} sequences through {})", self.blocks)
    }
}

/// A pass that was not computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// The blocks are not here: ask the server that has them.
    #[error("blocks {blocks} are not among the hosted blocks {hosted}")]
    NotHosted {
        /// The blocks asked for.
        blocks: Span,
        /// The blocks that are here.
        hosted: Span,
    },
    /// The adapter lacks a block.
    #[error("the adapter has blocks {adapted}, not all of {blocks}")]
    NotAdapted {
        /// The blocks asked for.
        blocks: Span,
        /// Those of the adapter.
        adapted: Span,
    },
    /// The adapter is for another model.
    #[error(
        "the adapter adds to a {found:?} matrix where {} of block {block} is {expected:?}: is it for \
         another model?",
        module.name()
    )]
    OtherModel {
        /// The block.
        block: u32,
        /// The matrix in it.
        module: TargetModule,
        /// Rows and columns of the model's matrix.
        expected: [usize; 2],
        /// Those that the adapter is for.
        found: [usize; 2],
    },
    /// The adapter is for a model without experts.
    #[error(
        "the adapter adds to {} of block {block}, where experts stand in its place: is it for another \
         model?",
        module.name()
    )]
    Experts {
        /// The block.
        block: u32,
        /// The matrix that is not there.
        module: TargetModule,
    },
    /// The prompts of the adapter are for hidden states of another size.
    #[error(
        "the adapter adds {found} values to a token where hidden states have {expected}: is it for \
         another model?"
    )]
    OtherWidth {
        /// Values of a token between the model's blocks.
        expected: usize,
        /// Those that the adapter has for a token.
        found: usize,
    },
    /// Heads for which a GPU's kernels have no room.
    #[error("heads have {found} values; on a GPU gradients go through at most {GPU_HEAD_SIZE_MAX}")]
    HeadsOnGpu {
        /// Values of a head.
        found: usize,
    },
    /// Experts, for whose gradients a GPU has no kernels.
    #[error(
        "gradients through experts are computed on the processor alone, and the blocks are on a GPU"
    )]
    ExpertsOnGpu,
    /// It was to give up before its last block.
    #[error("the pass was given up")]
    Over,
    /// The GPU has no memory for the pass, or is lost.
    #[error("the GPU could not compute the pass")]
    Gpu(#[from] CudaError),
    /// A sequence without a token, or no sequence.
    #[error("no token to learn from: a sequence is empty")]
    NoToken,
    /// Another shape than the sequences and the model have.
    #[error("the tensor is {found:?}; the sequences and the model make it {expected:?}")]
    Shape {
        /// Tokens, and values of each.
        expected: [usize; 2],
        /// Those of the tensor.
        found: [usize; 2],
    },
    /// Not an input for each block.
    #[error("{found} inputs for {expected} blocks")]
    Inputs {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
}

#[expect(clippy::cast_possible_truncation, reason = "gradients and adapters are binary32")]
const fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests;
