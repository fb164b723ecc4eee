//! How the kernels of `cuda/train.cu` are launched.

use bytemuck::{Pod, Zeroable};

use super::super::block::{GateUp, GpuBlock};
use super::super::cells::CELL_COLUMNS;
use super::super::driver::{Buffer, CudaError, Launch};
use super::super::matrix::{FEW_TOKENS, Order, ToActivations, address, int};
use super::super::pass::{Geometry, Shape};
use super::{AttentionActivations, GpuTraining, matrix_of};

/// Threads of a block in which each has a value.
const THREADS: usize = 256;

/// Heads of a block, a warp each.
const HEADS_TOGETHER: usize = THREADS / 32;

/// `Turning` of `cuda/train.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Turning {
    projected: u64,
    turned: u64,
    turns: u64,
    norm: u64,
    stride: i32,
    first: i32,
    heads: i32,
    size: i32,
    epsilon: f32,
    unused: i32,
}

/// `Attended` of `cuda/train.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Attended {
    queries: u64,
    keys: u64,
    values: u64,
    output: u64,
    softmax: u64,
    bounds: u64,
    shape: Shape,
    scale: f32,
    stride: i32,
    first: i32,
    unused: i32,
}

/// `GateUp` of `cuda/train.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ToGateUp {
    values: u64,
    size: i32,
    stride: i32,
    tiles: i32,
    unused: i32,
}

impl GpuTraining<'_> {
    fn train(&self, name: &str, grid: [usize; 3], threads: usize) -> Result<Launch, CudaError> {
        Ok(Launch::new(self.gpu.program().kernel("train", name, 0)?, grid, threads))
    }

    fn launch(&self, launch: Launch) -> Result<(), CudaError> {
        self.gpu.stream().launch(launch)
    }

    /// Rows as what a matrix is multiplied with.
    pub(super) fn packed(&self, rows: &Buffer, columns: usize) -> Result<Buffer, CudaError> {
        if self.geometry.plain {
            return self.copied(rows);
        }
        // Kernels for few tokens read where the others would lie.
        let room = self.tokens.next_multiple_of(FEW_TOKENS);
        let bytes = self.geometry.activation_bytes(room, columns);
        let packed = Buffer::zeroed(self.gpu.context(), bytes)?;
        let words = columns.next_multiple_of(CELL_COLUMNS) / 2;
        let launch = self.train("pack_rows", [words.div_ceil(THREADS), self.tokens, 1], THREADS)?;
        let to = ToActivations::new(&packed, columns, Order::Lanes);
        self.launch(launch.with(rows.address()).with(int(columns)).with(to))?;
        Ok(packed)
    }

    pub(super) fn copied(&self, rows: &Buffer) -> Result<Buffer, CudaError> {
        let copy = Buffer::new(self.gpu.context(), rows.bytes())?;
        self.gpu.stream().copy(rows, &copy)?;
        Ok(copy)
    }

    pub(super) fn norm(&self, hidden: &Buffer, weight: &Buffer) -> Result<Buffer, CudaError> {
        let Geometry { hidden_size, epsilon, .. } = *self.geometry;
        let normed = self.rows(hidden_size)?;
        let kernel = self.gpu.program().kernel("rotary", "rms_norm_f32", 0)?;
        let launch = Launch::new(kernel, [self.tokens, 1, 1], THREADS)
            .with(hidden.address())
            .with(weight.address())
            .with(epsilon)
            .with(int(hidden_size))
            .with(normed.address());
        self.launch(launch)?;
        Ok(normed)
    }

    pub(super) fn norm_back(
        &self,
        input: &Buffer,
        gradient: &Buffer,
        weight: &Buffer,
        output: &Buffer,
    ) -> Result<(), CudaError> {
        let launch = self.train("norm_back", [self.tokens, 1, 1], THREADS)?;
        let addresses = launch.with(input.address()).with(gradient.address());
        let rest = addresses.with(weight.address()).with(self.geometry.epsilon);
        self.launch(rest.with(int(self.geometry.hidden_size)).with(output.address()))
    }

    fn turning(&self, projected: &Buffer, turned: &Buffer, norm: Option<&Buffer>) -> Turning {
        let Geometry { heads, kv_heads, head_size, epsilon, .. } = *self.geometry;
        Turning {
            projected: projected.address(),
            turned: turned.address(),
            turns: self.turns.address(),
            norm: address(norm),
            stride: int((heads + 2 * kv_heads) * head_size),
            first: 0,
            heads: int(heads),
            size: int(head_size),
            epsilon,
            unused: 0,
        }
    }

    /// As `turning`, of keys.
    fn turning_keys(&self, projected: &Buffer, turned: &Buffer, norm: Option<&Buffer>) -> Turning {
        let Geometry { heads, kv_heads, head_size, .. } = *self.geometry;
        let (first, heads) = (int(heads * head_size), int(kv_heads));
        Turning { first, heads, ..self.turning(projected, turned, norm) }
    }

    /// A warp for each of so many heads of each token.
    fn heads_grid(&self, heads: usize) -> [usize; 3] {
        [self.tokens, heads.div_ceil(HEADS_TOGETHER), 1]
    }

    pub(super) fn turn_heads(
        &self,
        block: &GpuBlock,
        projected: &Buffer,
        queries: &Buffer,
        keys: &Buffer,
    ) -> Result<(), CudaError> {
        let Geometry { heads, kv_heads, .. } = *self.geometry;
        let of_queries = self.turning(projected, queries, block.query_norm.as_ref());
        let of_keys = self.turning_keys(projected, keys, block.key_norm.as_ref());
        for (turning, heads) in [(of_queries, heads), (of_keys, kv_heads)] {
            let launch = self.train("turn_heads", self.heads_grid(heads), THREADS)?;
            self.launch(launch.with(turning))?;
        }
        Ok(())
    }

    fn attended(&self, block: &GpuBlock, activations: &AttentionActivations) -> Attended {
        let Geometry { heads, kv_heads, head_size, .. } = *self.geometry;
        Attended {
            queries: activations.queries.address(),
            keys: activations.keys.address(),
            values: activations.projected.address(),
            output: activations.attended.address(),
            softmax: activations.softmax.address(),
            bounds: self.bounds.address(),
            shape: self.geometry.shape(block.window),
            scale: 1.0 / (head_size as f32).sqrt(),
            stride: int((heads + 2 * kv_heads) * head_size),
            first: int((heads + kv_heads) * head_size),
            unused: 0,
        }
    }

    pub(super) fn attend_rows(
        &self,
        block: &GpuBlock,
        activations: &AttentionActivations,
    ) -> Result<(), CudaError> {
        let grid = self.heads_grid(self.geometry.heads);
        let launch = self.train("attend_rows", grid, THREADS)?;
        self.launch(launch.with(self.attended(block, activations)))?;
        self.end_part()
    }

    /// From the gradient of what queries saw to that of projected queries, keys and values.
    pub(super) fn attend_back(
        &self,
        block: &GpuBlock,
        activations: &AttentionActivations,
        gradient: &Buffer,
    ) -> Result<Buffer, CudaError> {
        let Geometry { heads, kv_heads, head_size, .. } = *self.geometry;
        let attended = self.attended(block, activations);
        let of_projected = self.rows((heads + 2 * kv_heads) * head_size)?;
        let of_queries = self.rows(heads * head_size)?;
        let of_keys = self.rows(kv_heads * head_size)?;
        let launch = self.train("attend_rows_back_queries", self.heads_grid(heads), THREADS)?;
        self.launch(launch.with(attended).with(gradient.address()).with(of_queries.address()))?;
        self.end_part()?;
        let launch = self.train("attend_rows_back_keys", self.heads_grid(kv_heads), THREADS)?;
        let launch = launch.with(attended).with(gradient.address());
        self.launch(launch.with(of_keys.address()).with(of_projected.address()))?;
        self.end_part()?;
        let AttentionActivations { projected, queries, keys, .. } = activations;
        let turned_queries = self.turning(projected, queries, block.query_norm.as_ref());
        let turned_keys = self.turning_keys(projected, keys, block.key_norm.as_ref());
        let parts = [(turned_queries, heads, &of_queries), (turned_keys, kv_heads, &of_keys)];
        for (turning, heads, of_turned) in parts {
            let launch = self.train("turn_heads_back", self.heads_grid(heads), THREADS)?;
            let launch = launch.with(turning).with(of_turned.address());
            self.launch(launch.with(of_projected.address()))?;
        }
        Ok(of_projected)
    }

    fn to_gate_up(&self, block: &GpuBlock, gate_up: &Buffer) -> ToGateUp {
        let gates = &block.dense().gate_up;
        ToGateUp {
            values: gate_up.address(),
            size: int(self.geometry.intermediate_size),
            stride: int(matrix_of(gates).rows()),
            tiles: i32::from(matches!(gates, GateUp::Tiles(_))),
            unused: 0,
        }
    }

    fn features_grid(&self) -> [usize; 3] {
        [self.geometry.intermediate_size.div_ceil(THREADS), self.tokens, 1]
    }

    /// Gated features of gates and up projections.
    pub(super) fn gate(&self, block: &GpuBlock, gate_up: &Buffer) -> Result<Buffer, CudaError> {
        let gated = self.rows(self.geometry.intermediate_size)?;
        let launch = self.train("gate_rows", self.features_grid(), THREADS)?;
        self.launch(launch.with(self.to_gate_up(block, gate_up)).with(gated.address()))?;
        Ok(gated)
    }

    /// Makes of gates and up projections, in their place, their gradients.
    pub(super) fn gate_back(
        &self,
        block: &GpuBlock,
        gate_up: &Buffer,
        of_gated: &Buffer,
    ) -> Result<(), CudaError> {
        let launch = self.train("gate_rows_back", self.features_grid(), THREADS)?;
        self.launch(launch.with(self.to_gate_up(block, gate_up)).with(of_gated.address()))
    }
}
