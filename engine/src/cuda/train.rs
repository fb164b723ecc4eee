//! Blocks of a device over whole sequences, forward and back: gradients pass through frozen weights, and an
//! adapter has its own.
//!
//! Products are those of inference, with activations rounded to bfloat16 before a matrix (not in a model
//! of binary32), through which gradients pass unchanged. All else is in binary32: attention, which has no
//! cache, and what an adapter adds.
//!
//! Whoever waits for the device has it between two parts of a block: products, and attention. All that is
//! held meanwhile is of the training alone: what passes share, their rooms and where matrices are
//! unpacked, is used within a part.

mod adapt;
mod kernels;

use std::cell::Cell;
use std::sync::MutexGuard;

use umbel_protocol::Span;

use super::block::{GateUp, GpuBlock};
use super::driver::{Buffer, CudaError};
use super::gpu::Gpu;
use super::matrix::{Input, Matrix, Order, Target, ToRows, address, int};
use super::pass::{Geometry, Workspace};
use super::span::{GpuSpan, download};
use crate::train::{Adapter, Sequence, TargetModule, prompt};
pub(crate) use adapt::PairGradient;
use adapt::{Adaptation, AdaptedBlock, Found};

/// The largest head whose values a warp has in its registers: 32 times `LANE_VALUES` of `cuda/train.cu`.
pub(crate) const HEAD_SIZE_MAX: usize = 256;

/// Sequences on their way through blocks on a device.
pub(crate) struct GpuTraining<'a> {
    gpu: &'a Gpu,
    geometry: &'a Geometry,
    blocks: Vec<(u32, &'a GpuBlock)>,
    lengths: &'a [usize],
    tokens: usize,
    /// A cosine and a sine for each pair of a token.
    turns: Buffer,
    /// The first and the end of each token's sequence.
    bounds: Buffer,
    adaptation: Option<Adaptation<'a>>,
    /// While it computes; not between two parts.
    computing: Cell<Option<MutexGuard<'a, Workspace>>>,
    pause: &'a dyn Fn(),
}

/// What the first half of a block computes; rows in binary32.
struct AttentionActivations {
    normed: Buffer,
    projected: Buffer,
    queries: Buffer,
    keys: Buffer,
    attended: Buffer,
    softmax: Buffer,
    /// The residual path behind it.
    hidden: Buffer,
}

/// What came of the way through the blocks.
pub(crate) struct GpuForward {
    /// What entered each.
    pub(crate) inputs: Vec<Vec<f32>>,
    /// What left the last.
    pub(crate) output: Vec<f32>,
}

/// What came of the way back.
pub(crate) struct GpuBackward {
    /// Of what entered the first block.
    pub(crate) gradient: Vec<f32>,
    /// Of the adapter, from the last block to the first.
    pub(crate) found: Vec<BlockGradients>,
}

/// The gradients of the adapter's part of one block.
pub(crate) struct BlockGradients {
    pub(crate) index: u32,
    pub(crate) pairs: Vec<PairGradient>,
    pub(crate) prompt: Option<Vec<f32>>,
}

impl<'a> GpuTraining<'a> {
    /// Sequences of so many tokens each through `blocks` of `span`, with what an adapter adds; `dropped`
    /// are those in which something is dropped, all or none. `pause` is called between the parts of a block,
    /// when the device has nothing to do and others may compute on it.
    pub(crate) fn new(
        (span, blocks): (&'a GpuSpan, Span),
        lengths: &'a [usize],
        adapter: Option<(&'a Adapter, &[Sequence])>,
        pause: &'a dyn Fn(),
    ) -> Result<Self, CudaError> {
        let (gpu, geometry) = (span.gpu(), span.geometry());
        gpu.context().bind()?;
        let (mut turns, mut bounds, mut start) = (Vec::new(), Vec::new(), 0);
        for &length in lengths {
            (0..length).for_each(|position| geometry.rope.append_turns(position, &mut turns));
            bounds.extend(std::iter::repeat_n([int(start), int(start + length)], length));
            start += length;
        }
        let mut this = Self {
            gpu,
            geometry,
            blocks: blocks.blocks().zip(span.blocks(blocks)).collect(),
            lengths,
            tokens: start,
            turns: Buffer::of(gpu.context(), &turns)?,
            bounds: Buffer::of(gpu.context(), &bounds)?,
            adaptation: None,
            computing: Cell::new(None),
            pause,
        };
        if let Some((adapter, dropped)) = adapter {
            this.adaptation = Some(Adaptation::new(&this, adapter, dropped)?);
        }
        Ok(this)
    }

    /// Takes rows through the blocks; `None` where it is to give up before a block.
    pub(crate) fn forward(
        &self,
        input: &[f32],
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<GpuForward>, CudaError> {
        let mut hidden = input.to_vec();
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for &(index, block) in &self.blocks {
            if is_over() {
                return Ok(None);
            }
            let output = self.computing(|| {
                let of = self.adapted(index, block)?;
                let input = self.prompted(index, &hidden)?;
                let attention = self.attend(&of, &input)?;
                let (_, gate_up) = self.gate_up(&of, &attention.hidden)?;
                let gated = self.gate(block, &gate_up)?;
                self.add(&of, TargetModule::Down, &gated, &attention.hidden)?;
                self.downloaded(&attention.hidden)
            })?;
            inputs.push(std::mem::replace(&mut hidden, output));
            (self.pause)();
        }
        Ok(Some(GpuForward { inputs, output: hidden }))
    }

    /// Brings the gradient of what left the last block back to the first, from what entered each; `None`
    /// where it is to give up before a block.
    pub(crate) fn backward(
        &self,
        inputs: &[Vec<f32>],
        gradient: Vec<f32>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<GpuBackward>, CudaError> {
        let (mut gradient, mut all) = (gradient, Vec::new());
        for (&(index, block), input) in self.blocks.iter().zip(inputs).rev() {
            if is_over() {
                return Ok(None);
            }
            let pairs;
            (gradient, pairs) = self.computing(|| {
                let of = self.adapted(index, block)?;
                let (input, of_output) = (self.prompted(index, input)?, self.uploaded(&gradient)?);
                let found = self.back(&of, &input, &of_output)?;
                Ok((self.downloaded(&of_output)?, self.found(found)?))
            })?;
            // A sum has the gradients of what is added.
            let prompt = self.prompt(index).map(|of| {
                prompt::sum_of_first(&gradient, self.lengths, self.geometry.hidden_size, of.len())
            });
            all.push(BlockGradients { index, pairs, prompt });
            (self.pause)();
        }
        Ok(Some(GpuBackward { gradient, found: all }))
    }

    /// Does the work of a block, of which parts end by [`end_part`](Self::end_part).
    fn computing<R>(&self, work: impl FnOnce() -> Result<R, CudaError>) -> Result<R, CudaError> {
        self.computing.set(Some(self.gpu.workspace()));
        let result = self.gpu.context().bind().and_then(|()| work());
        self.computing.set(None);
        result
    }

    /// Has others compute who wait for it, once all is done that was launched.
    fn end_part(&self) -> Result<(), CudaError> {
        self.gpu.stream().synchronize()?;
        self.computing.set(None);
        (self.pause)();
        self.computing.set(Some(self.gpu.workspace()));
        self.gpu.context().bind()
    }

    /// The product of a matrix and of rows that were packed for it, which is a part.
    fn multiply(&self, matrix: &Matrix, packed: &Buffer, to: ToRows) -> Result<(), CudaError> {
        matrix.multiply(self.gpu, self.input(packed), Target::Rows(to))?;
        self.end_part()
    }

    fn prompt(&self, index: u32) -> Option<&'a [f32]> {
        self.adaptation.as_ref()?.prompt(index)
    }

    /// What enters a block, with what the adapter adds to it.
    fn prompted(&self, index: u32, hidden: &[f32]) -> Result<Buffer, CudaError> {
        let Some(prompt) = self.prompt(index) else { return self.uploaded(hidden) };
        let mut hidden = hidden.to_vec();
        let rows = self.lengths.iter().map(|&tokens| 0..tokens);
        prompt::add(prompt, rows, self.geometry.hidden_size, &mut hidden);
        self.uploaded(&hidden)
    }

    /// Makes of the gradient of a block's output, in its place, that of its input; gives those of the
    /// adapter.
    fn back(
        &self,
        of: &AdaptedBlock<'_>,
        input: &Buffer,
        gradient: &Buffer,
    ) -> Result<Vec<Found>, CudaError> {
        use TargetModule::{Down, Gate, Key, Output, Query, Up, Value};
        let Geometry { hidden_size, intermediate_size, heads, head_size, .. } = *self.geometry;
        let (block, mut found) = (of.block, Vec::new());
        let attention = self.attend(of, input)?;
        let (normed, gate_up) = self.gate_up(of, &attention.hidden)?;
        let of_gated = self.rows(intermediate_size)?;
        let gated = self.gate(block, &gate_up)?;
        self.back_through(of, &[Down], (&gated, gradient), &of_gated, &mut found)?;
        drop(gated);
        self.gate_back(block, &gate_up, &of_gated)?;
        let of_normed = self.rows(hidden_size)?;
        self.back_through(of, &[Gate, Up], (&normed, &gate_up), &of_normed, &mut found)?;
        self.norm_back(&attention.hidden, &of_normed, &block.post_norm, gradient)?;

        let of_attended = self.rows(heads * head_size)?;
        let of_output = (&attention.attended, gradient);
        self.back_through(of, &[Output], of_output, &of_attended, &mut found)?;
        let of_projected = self.attend_back(block, &attention, &of_attended)?;
        let of_normed = self.rows(hidden_size)?;
        let through = (&attention.normed, &of_projected);
        self.back_through(of, &[Query, Key, Value], through, &of_normed, &mut found)?;
        self.norm_back(input, &of_normed, &block.input_norm, gradient)?;
        Ok(found)
    }

    /// The first half of a block.
    fn attend(
        &self,
        of: &AdaptedBlock<'_>,
        input: &Buffer,
    ) -> Result<AttentionActivations, CudaError> {
        let Geometry { hidden_size, heads, kv_heads, head_size, .. } = *self.geometry;
        let (block, stride) = (of.block, (heads + 2 * kv_heads) * head_size);
        let normed = self.norm(input, &block.input_norm)?;
        let packed = self.packed(&normed, hidden_size)?;
        let projected = self.rows(stride)?;
        for (start, matrix) in &block.qkv {
            let to = ToRows {
                output: projected.address(),
                bias: address(block.qkv_bias.as_ref()),
                residual: 0,
                stride: int(stride),
                first_row: int(*start),
            };
            self.multiply(matrix, &packed, to)?;
        }
        for module in [TargetModule::Query, TargetModule::Key, TargetModule::Value] {
            self.adapt(of, module, (&normed, &projected), &projected)?;
        }
        let (queries, keys) = (self.rows(heads * head_size)?, self.rows(kv_heads * head_size)?);
        self.turn_heads(block, &projected, &queries, &keys)?;
        let (attended, softmax) = (self.rows(heads * head_size)?, self.rows(heads * 3)?);
        let hidden = self.copied(input)?;
        let activations =
            AttentionActivations { normed, projected, queries, keys, attended, softmax, hidden };
        self.attend_rows(block, &activations)?;
        let AttentionActivations { attended, hidden, .. } = &activations;
        self.add(of, TargetModule::Output, attended, hidden)?;
        Ok(activations)
    }

    /// What enters the matrices of the second half of a block, and its gates and up projections.
    fn gate_up(
        &self,
        of: &AdaptedBlock<'_>,
        hidden: &Buffer,
    ) -> Result<(Buffer, Buffer), CudaError> {
        let normed = self.norm(hidden, &of.block.post_norm)?;
        // Both are rows of one matrix.
        let gate_up = self.product(of.block.module(self.geometry, TargetModule::Gate), &normed)?;
        for module in [TargetModule::Gate, TargetModule::Up] {
            self.adapt(of, module, (&normed, &gate_up), &gate_up)?;
        }
        Ok((normed, gate_up))
    }

    /// Adds the product of a module's matrix and rows to `hidden`.
    fn add(
        &self,
        of: &AdaptedBlock<'_>,
        module: TargetModule,
        rows: &Buffer,
        hidden: &Buffer,
    ) -> Result<(), CudaError> {
        let place = of.block.module(self.geometry, module);
        if of.is_scaled(module) {
            let product = self.product(place, rows)?;
            return self.adapt(of, module, (rows, &product), hidden);
        }
        let packed = self.packed(rows, place.matrix.columns())?;
        let to = ToRows {
            output: hidden.address(),
            bias: address(place.bias),
            residual: hidden.address(),
            stride: int(self.geometry.hidden_size),
            first_row: 0,
        };
        self.multiply(place.matrix, &packed, to)?;
        self.adapt(of, module, (rows, hidden), hidden)
    }

    fn input<'b>(&self, values: &'b Buffer) -> Input<'b> {
        Input { values, tokens: self.tokens, order: Order::Lanes }
    }

    /// Zeros, `columns` for each token.
    fn rows(&self, columns: usize) -> Result<Buffer, CudaError> {
        Buffer::zeroed(self.gpu.context(), self.tokens * columns * size_of::<f32>())
    }

    fn uploaded(&self, rows: &[f32]) -> Result<Buffer, CudaError> {
        Buffer::of(self.gpu.context(), rows)
    }

    fn downloaded(&self, rows: &Buffer) -> Result<Vec<f32>, CudaError> {
        download(self.gpu, rows)
    }
}

const fn matrix_of(gate_up: &GateUp) -> &Matrix {
    match gate_up {
        GateUp::Tiles(matrix) | GateUp::Plain(matrix) => matrix,
    }
}
