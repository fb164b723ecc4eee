//! Blocks of a device over whole sequences, forward and back: gradients pass through frozen weights.
//!
//! Products are those of inference, with activations rounded to bfloat16 before a matrix (not in a model
//! of binary32), through which gradients pass unchanged. Attention has no cache and is in binary32.

mod kernels;

use umbel_protocol::Span;

use super::block::{GateUp, GpuBlock};
use super::driver::{Buffer, CudaError, Pinned};
use super::gpu::Gpu;
use super::matrix::{Gradient, Input, Matrix, Order, Target, ToRows, address, int};
use super::pass::Geometry;
use super::span::GpuSpan;

/// The largest head whose values a warp has in its registers: 32 times `LANE_VALUES` of `cuda/train.cu`.
pub(crate) const HEAD_SIZE_MAX: usize = 256;

/// Sequences on their way through blocks on a device.
pub(crate) struct GpuTraining<'a> {
    gpu: &'a Gpu,
    geometry: &'a Geometry,
    blocks: Vec<&'a GpuBlock>,
    tokens: usize,
    /// A cosine and a sine for each pair of a token.
    turns: Buffer,
    /// The first and the end of each token's sequence.
    bounds: Buffer,
    pause: &'a dyn Fn(),
}

/// What the first half of a block computes; rows in binary32.
struct AttentionActivations {
    projected: Buffer,
    queries: Buffer,
    keys: Buffer,
    attended: Buffer,
    softmax: Buffer,
    /// The residual path behind it.
    hidden: Buffer,
}

impl<'a> GpuTraining<'a> {
    /// Sequences of so many tokens each through `blocks` of `span`. `pause` is called between blocks.
    pub(crate) fn new(
        span: &'a GpuSpan,
        blocks: Span,
        lengths: &[usize],
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
        Ok(Self {
            gpu,
            geometry,
            blocks: span.blocks(blocks),
            tokens: start,
            turns: Buffer::of(gpu.context(), &turns)?,
            bounds: Buffer::of(gpu.context(), &bounds)?,
            pause,
        })
    }

    /// What entered each block, and what left the last.
    pub(crate) fn forward(&self, input: &[f32]) -> Result<(Vec<Vec<f32>>, Vec<f32>), CudaError> {
        let mut hidden = input.to_vec();
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let output = {
                let _computing = self.gpu.workspace();
                self.gpu.context().bind()?;
                let input = self.uploaded(&hidden)?;
                let attention = self.attend(block, &input)?;
                let gate_up = self.gate_up(block, &attention.hidden)?;
                let gated = self.gate(block, &gate_up)?;
                self.add(&block.down, block.down_bias.as_ref(), &gated, &attention.hidden)?;
                self.downloaded(&attention.hidden)?
            };
            inputs.push(std::mem::replace(&mut hidden, output));
            (self.pause)();
        }
        Ok((inputs, hidden))
    }

    /// From what entered each block and the gradient of what left the last to that of what entered the
    /// first.
    pub(crate) fn backward(
        &self,
        inputs: &[Vec<f32>],
        gradient: Vec<f32>,
    ) -> Result<Vec<f32>, CudaError> {
        let mut gradient = gradient;
        for (block, input) in self.blocks.iter().zip(inputs).rev() {
            gradient = {
                let _computing = self.gpu.workspace();
                self.gpu.context().bind()?;
                let (input, of_output) = (self.uploaded(input)?, self.uploaded(&gradient)?);
                self.back(block, &input, &of_output)?;
                self.downloaded(&of_output)?
            };
            (self.pause)();
        }
        Ok(gradient)
    }

    /// Makes of the gradient of a block's output, in its place, that of its input.
    fn back(&self, block: &GpuBlock, input: &Buffer, gradient: &Buffer) -> Result<(), CudaError> {
        let Geometry { hidden_size, intermediate_size, heads, kv_heads, head_size, .. } =
            *self.geometry;
        let attention = self.attend(block, input)?;
        let gate_up = self.gate_up(block, &attention.hidden)?;
        let of_gated = self.rows(intermediate_size)?;
        block.down.add_back(self.gpu, self.gradient(gradient, hidden_size), &of_gated)?;
        self.gate_back(block, &gate_up, &of_gated)?;
        let of_normed = self.rows(hidden_size)?;
        let matrix = matrix_of(&block.gate_up);
        matrix.add_back(self.gpu, self.gradient(&gate_up, matrix.rows()), &of_normed)?;
        self.norm_back(&attention.hidden, &of_normed, &block.post_norm, gradient)?;

        let of_attended = self.rows(heads * head_size)?;
        block.output.add_back(self.gpu, self.gradient(gradient, hidden_size), &of_attended)?;
        let of_projected = self.attend_back(block, &attention, &of_attended)?;
        let of_normed = self.rows(hidden_size)?;
        let stride = (heads + 2 * kv_heads) * head_size;
        for (start, matrix) in &block.qkv {
            let of_all = self.gradient(&of_projected, stride);
            let address = of_all.address + (start * size_of::<f32>()) as u64;
            matrix.add_back(self.gpu, Gradient { address, ..of_all }, &of_normed)?;
        }
        self.norm_back(input, &of_normed, &block.input_norm, gradient)
    }

    /// The first half of a block.
    fn attend(&self, block: &GpuBlock, input: &Buffer) -> Result<AttentionActivations, CudaError> {
        let Geometry { hidden_size, heads, kv_heads, head_size, .. } = *self.geometry;
        let stride = (heads + 2 * kv_heads) * head_size;
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
            matrix.multiply(self.gpu, self.input(&packed), Target::Rows(to))?;
        }
        let (queries, keys) = (self.rows(heads * head_size)?, self.rows(kv_heads * head_size)?);
        self.turn_heads(block, &projected, &queries, &keys)?;
        let (attended, softmax) = (self.rows(heads * head_size)?, self.rows(heads * 3)?);
        let hidden = self.copied(input)?;
        let activations =
            AttentionActivations { projected, queries, keys, attended, softmax, hidden };
        self.attend_rows(block, &activations)?;
        let (bias, of_heads) = (block.output_bias.as_ref(), &activations.attended);
        self.add(&block.output, bias, of_heads, &activations.hidden)?;
        Ok(activations)
    }

    /// Gates and up projections of what enters the second half of a block.
    fn gate_up(&self, block: &GpuBlock, hidden: &Buffer) -> Result<Buffer, CudaError> {
        let matrix = matrix_of(&block.gate_up);
        let normed = self.norm(hidden, &block.post_norm)?;
        let packed = self.packed(&normed, self.geometry.hidden_size)?;
        let gate_up = self.rows(matrix.rows())?;
        let to = ToRows {
            output: gate_up.address(),
            bias: address(block.gate_up_bias.as_ref()),
            residual: 0,
            stride: int(matrix.rows()),
            first_row: 0,
        };
        matrix.multiply(self.gpu, self.input(&packed), Target::Rows(to))?;
        Ok(gate_up)
    }

    /// Adds the product of a matrix and rows to `hidden`.
    fn add(
        &self,
        matrix: &Matrix,
        bias: Option<&Buffer>,
        rows: &Buffer,
        hidden: &Buffer,
    ) -> Result<(), CudaError> {
        let packed = self.packed(rows, matrix.columns())?;
        let to = ToRows {
            output: hidden.address(),
            bias: address(bias),
            residual: hidden.address(),
            stride: int(self.geometry.hidden_size),
            first_row: 0,
        };
        matrix.multiply(self.gpu, self.input(&packed), Target::Rows(to))
    }

    fn input<'b>(&self, values: &'b Buffer) -> Input<'b> {
        Input { values, tokens: self.tokens, order: Order::Lanes }
    }

    fn gradient(&self, rows: &Buffer, stride: usize) -> Gradient {
        Gradient { address: rows.address(), stride, tokens: self.tokens }
    }

    /// Zeros, `columns` for each token.
    fn rows(&self, columns: usize) -> Result<Buffer, CudaError> {
        Buffer::zeroed(self.gpu.context(), self.tokens * columns * size_of::<f32>())
    }

    fn uploaded(&self, rows: &[f32]) -> Result<Buffer, CudaError> {
        Buffer::of(self.gpu.context(), rows)
    }

    fn downloaded(&self, rows: &Buffer) -> Result<Vec<f32>, CudaError> {
        let mut staged = Pinned::new(self.gpu.context(), rows.bytes())?;
        self.gpu.stream().download(rows, rows.bytes(), &mut staged)?;
        self.gpu.stream().synchronize()?;
        Ok(bytemuck::cast_slice::<u8, f32>(&staged.as_slice()[..rows.bytes()]).to_vec())
    }
}

const fn matrix_of(gate_up: &GateUp) -> &Matrix {
    match gate_up {
        GateUp::Tiles(matrix) | GateUp::Plain(matrix) => matrix,
    }
}
