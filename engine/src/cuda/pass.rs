//! A pass through blocks in a device's memory: what is copied there, which kernels run, what comes back.
//!
//! Hidden states stay in binary32 between blocks; what a matrix multiplies is rounded to bfloat16, by
//! the kernel that makes it. The sums for a token are in one order whatever shares its pass, so
//! results are batch invariant as they are on the processor.
//!
//! A pass of few tokens, as in decoding, is noted as a graph when it first occurs, and started by one
//! call from then on: what differs from pass to pass is in memory that the graph's kernels read.

mod adapt;
mod experts;
mod plan;
mod rooms;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::adapter::{AdapterId, GpuAdapter};
use super::block::{BlockId, DenseMlp, GateUp, GpuBlock, GpuMlp, Module};
use super::cache::{PagePool, PrepareError};
use super::driver::{Buffer, CudaError, Graph, Kernel, Launch, SharedMemory};
use super::gpu::Gpu;
use super::matrix::{
    FEW_TOKENS, Input, Matrix, Order, Target, ToActivations, ToGated, ToRows, address, int,
};
use super::norm;
pub(crate) use plan::SessionRows;
use plan::{FEW_ROWS, Places, Plan, TILE_ROWS};
pub(super) use plan::{Geometry, HEAD_SIZE_MAX, Shape};
use rooms::{Rooms, copied, partial_bytes};

use crate::kernel::KV_BLOCK_VALUES;
use crate::train::TargetModule;

/// Positions whose keys and values are in shared memory together: `CHUNK` there.
const CHUNK: usize = 64;

/// The largest head whose keys in 8 bits leave no room for scores: `attend_together` there.
const HEAD_SIZE_SMALL: usize = 32;

/// The largest head of which two chunks are there at once: `stages_of` there.
const HEAD_SIZE_MEDIUM: usize = 128;

/// Passes that are noted: of each batch size that occurs, with a few numbers of splits.
const GRAPHS_MAX: usize = 256;

/// `Heads` of `cuda/rotary.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Heads {
    shape: Shape,
    query_scale: f32,
    epsilon: f32,
    query_norm: u64,
    key_norm: u64,
}

/// Where queries and pages lie: `ToBf16` and `ToF32` of `cuda/rotary.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ToCache {
    queries: u64,
    pages: u64,
}

/// `Partials` of `cuda/attention.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Partials {
    values: u64,
    counts: u64,
}

/// What all passes of a device compute in; it grows with the largest.
#[derive(Default)]
pub(crate) struct Workspace {
    graphs: Graphs,
    rooms: Option<Rooms>,
}

/// Passes that have occurred, and those of them that were noted.
type Graphs = BTreeMap<GraphKey, Option<Graph>>;

/// Passes that launch the same kernels with the same arguments.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GraphKey {
    /// Addresses come back when blocks are dropped and others are loaded; names do not.
    blocks: Vec<BlockId>,
    adapter: Option<AdapterId>,
    pages: u64,
    in_bytes: bool,
    tokens: usize,
    sequences: usize,
    splits: usize,
    in_tiles: bool,
}

impl Workspace {
    /// Makes room for a pass; what was noted for the rooms before is forgotten with them.
    fn make_room(&mut self, gpu: &Gpu, geometry: &Geometry, plan: &Plan) -> Result<(), CudaError> {
        let key = Rooms::key(geometry);
        let partials = partial_bytes(geometry, plan);
        let suits = |rooms: &Rooms| {
            rooms.geometry == key
                && rooms.tokens >= plan.tokens
                && rooms.partials.bytes() >= partials
        };
        if self.rooms.as_ref().is_some_and(suits) {
            return Ok(());
        }
        let former = self.rooms.take().filter(|rooms| rooms.geometry == key);
        self.graphs.clear();
        let (tokens, former_partials) =
            former.as_ref().map_or((0, 0), |rooms| (rooms.tokens, rooms.partials.bytes()));
        let adapted = former.as_ref().is_some_and(|rooms| rooms.adapted.is_some());
        drop(former);
        let wanted = plan.tokens.max(FEW_TOKENS).next_multiple_of(FEW_TOKENS).max(tokens);
        match Rooms::new(gpu, geometry, wanted, partials.max(former_partials)) {
            Ok(rooms) => {
                self.rooms = Some(rooms);
                Ok(())
            }
            Err(error) => {
                // Smaller passes go on as before.
                if tokens > 0 {
                    self.rooms = Rooms::new(gpu, geometry, tokens, former_partials).ok();
                    if let Some(rooms) = self.rooms.as_mut().filter(|_| adapted) {
                        // Sessions with adapters ask for it themselves where it is missing.
                        let _made = rooms.make_adapted(gpu, geometry);
                    }
                }
                Err(error)
            }
        }
    }
}

/// Takes the rows of all `stretches` through `blocks`, which all of them go through, in one pass. What
/// comes back are the rows of each, in their order.
pub(super) fn run(
    gpu: &Gpu,
    geometry: &Geometry,
    (first, blocks): (u32, &[Arc<GpuBlock>]),
    stretches: &mut [SessionRows<'_>],
) -> Result<Vec<Vec<f32>>, PrepareError> {
    let cache = stretches[0].table.device_cache();
    let (pool, in_bytes) = (Arc::clone(cache.pool()), cache.is_in_bytes());
    let adapter = cache.adapter().cloned();
    let mut workspace = gpu.workspace();
    gpu.context().bind()?;
    gpu.stream().whole(|| {
        let session = (&*pool, in_bytes, adapter.as_deref());
        run_in(&mut workspace, (gpu, geometry), (first, blocks), session, stretches)
    })
}

/// As `run`, for who has the workspace; where it fails, kernels may be under way. All `stretches` have
/// their pages in one pool, in 8 bits or not, and one adapter.
fn run_in(
    workspace: &mut Workspace,
    (gpu, geometry): (&Gpu, &Geometry),
    (first, blocks): (u32, &[Arc<GpuBlock>]),
    (pool, in_bytes, adapter): (&PagePool, bool, Option<&GpuAdapter>),
    stretches: &mut [SessionRows<'_>],
) -> Result<Vec<Vec<f32>>, PrepareError> {
    for stretch in &mut *stretches {
        let (position, tokens) = (stretch.table.position(), stretch.tokens);
        stretch.table.device_cache_mut().prepare(position, tokens)?;
    }
    let mut order: Vec<usize> = (0..stretches.len()).collect();
    order.sort_by_key(|&index| stretches[index].tokens * geometry.group() > FEW_ROWS);
    let mut in_order: Vec<Option<&mut SessionRows<'_>>> = stretches.iter_mut().map(Some).collect();
    let in_order: Vec<&mut SessionRows<'_>> =
        order.iter().map(|&index| in_order[index].take().expect("each has one place")).collect();
    let plan = Plan::new(geometry, &in_order);
    workspace.make_room(gpu, geometry, &plan)?;
    let Workspace { graphs, rooms } = workspace;
    let rooms = rooms.as_mut().expect("room was made just now");
    if adapter.is_some() {
        rooms.make_adapted(gpu, geometry)?;
    }
    rooms.stage(geometry, &plan, &in_order);
    let places = plan.places(geometry);
    gpu.stream().upload(&rooms.staged, places.end, &rooms.step)?;
    let cells = geometry.order(plan.tokens, gpu.limits());
    let pass =
        Pass { gpu, geometry, plan: &plan, rooms, places, pool, in_bytes, order: cells, adapter };
    if plan.few == plan.sequences.len() && plan.tokens <= FEW_TOKENS {
        let key = GraphKey {
            blocks: blocks.iter().map(|block| block.id).collect(),
            adapter: adapter.map(GpuAdapter::id),
            pages: pool.memory().address(),
            in_bytes,
            tokens: plan.tokens,
            sequences: plan.sequences.len(),
            splits: plan.splits.len(),
            in_tiles: pass.is_in_tiles(),
        };
        pass.run_noted(graphs, key, first, blocks)?;
    } else {
        pass.enqueue(first, blocks)?;
    }
    let hidden_bytes = plan.tokens * geometry.hidden_size * 4;
    gpu.stream().download(&rooms.step, hidden_bytes, &mut rooms.staged)?;
    gpu.stream().synchronize()?;
    let mut rows = bytemuck::cast_slice::<u8, f32>(&rooms.staged.as_slice()[..hidden_bytes]);
    let mut results: Vec<Vec<f32>> = order.iter().map(|_| Vec::new()).collect();
    for (&index, stretch) in order.iter().zip(&in_order) {
        let (own, rest) = rows.split_at(stretch.tokens * geometry.hidden_size);
        results[index] = copied(own);
        rows = rest;
    }
    Ok(results)
}

/// A pass with everything in its place.
struct Pass<'a> {
    gpu: &'a Gpu,
    geometry: &'a Geometry,
    plan: &'a Plan,
    rooms: &'a Rooms,
    places: Places,
    pool: &'a PagePool,
    /// Whether keys and values are kept in 8 bits.
    in_bytes: bool,
    order: Order,
    /// What is added for all of its sessions.
    adapter: Option<&'a GpuAdapter>,
}

impl Pass<'_> {
    /// Enqueues the kernels of blocks, the first of which has the number `first` in its model.
    fn enqueue(&self, first: u32, blocks: &[Arc<GpuBlock>]) -> Result<(), CudaError> {
        for (index, block) in (first..).zip(blocks) {
            let number = i32::try_from(index).expect("blocks are counted in hundreds");
            self.add_prompt(index)?;
            self.norm(&block.input_norm)?;
            for (start, matrix) in &block.qkv {
                self.project(matrix, *start, block.qkv_bias.as_ref())?;
            }
            self.adapt_projected(index, block)?;
            self.place(block, number)?;
            self.attend(block, number)?;
            self.add(TargetModule::Output, index, block, &self.rooms.attended)?;
            match &block.mlp {
                GpuMlp::Dense(mlp) => {
                    self.norm(&block.post_norm)?;
                    self.gate(index, block, mlp)?;
                    self.add(TargetModule::Down, index, block, &self.rooms.gated)?;
                }
                GpuMlp::Experts(experts) => self.add_experts(block, experts)?,
            }
        }
        Ok(())
    }

    /// Enqueues them by the graph of `key`. The first time they are enqueued one by one, since a driver
    /// that compiles kernels cannot note; the second time they are noted.
    fn run_noted(
        &self,
        graphs: &mut Graphs,
        key: GraphKey,
        first: u32,
        blocks: &[Arc<GpuBlock>],
    ) -> Result<(), CudaError> {
        let stream = self.gpu.stream();
        let run = match graphs.get(&key) {
            Some(Some(graph)) => stream.run(graph),
            Some(None) => stream.capture(|| self.enqueue(first, blocks)).and_then(|graph| {
                stream.run(&graph)?;
                graphs.insert(key, Some(graph));
                Ok(())
            }),
            None => {
                self.enqueue(first, blocks)?;
                if graphs.len() == GRAPHS_MAX {
                    graphs.clear();
                }
                graphs.insert(key, None);
                return Ok(());
            }
        };
        match run {
            // Nothing has run yet, and one by one they need no more memory: some drivers take what a graph
            // needs when it is made, others when it first runs.
            Err(error) if !error.is_fatal() => {
                if error.is_out_of_memory() {
                    graphs.clear();
                }
                self.enqueue(first, blocks)
            }
            run => run,
        }
    }

    /// The hidden states, where a pass begins and ends.
    fn hidden(&self) -> u64 {
        self.rooms.step.address()
    }

    /// Activations in a room, as what a matrix is multiplied with.
    fn input<'b>(&self, values: &'b Buffer) -> Input<'b> {
        Input { values, tokens: self.plan.tokens, order: self.order }
    }

    fn norm(&self, weight: &Buffer) -> Result<(), CudaError> {
        let Geometry { hidden_size, epsilon, plain, .. } = *self.geometry;
        let (weight, to) = ((weight, epsilon, hidden_size), &self.rooms.normed);
        norm::launch(self.gpu, weight, (self.hidden(), self.plan.tokens), (to, plain, self.order))
    }

    /// Queries, keys and values, or those of them that are of one type.
    fn project(
        &self,
        matrix: &Matrix,
        start: usize,
        bias: Option<&Buffer>,
    ) -> Result<(), CudaError> {
        let Geometry { heads, kv_heads, head_size, .. } = *self.geometry;
        let to = ToRows {
            output: self.rooms.projected.address(),
            bias: address(bias),
            residual: 0,
            stride: int((heads + 2 * kv_heads) * head_size),
            first_row: int(start),
        };
        matrix.multiply(self.gpu, self.input(&self.rooms.normed), Target::Rows(to))
    }

    /// Norms and turns heads, and puts keys and values into their pages.
    fn place(&self, block: &GpuBlock, number: i32) -> Result<(), CudaError> {
        const THREADS: usize = 256;
        let Geometry { heads, kv_heads, head_size, epsilon, plain, .. } = *self.geometry;
        let grid = [self.plan.tokens, (heads + 2 * kv_heads).div_ceil(THREADS / 32), 1];
        let heads = Heads {
            shape: self.geometry.shape(block.window),
            // Scores are powers of 2 from here on.
            query_scale: std::f32::consts::LOG2_E / (head_size as f32).sqrt(),
            epsilon,
            query_norm: address(block.query_norm.as_ref()),
            key_norm: address(block.key_norm.as_ref()),
        };
        let (name, shared) = match (plain, self.in_bytes) {
            (true, false) => ("place_f32", 0),
            (false, false) => ("place_bf16", 0),
            // A head for each warp.
            (true, true) => ("place_bytes_f32", THREADS / 32 * head_size * 4),
            (false, true) => ("place_bytes_bf16", THREADS / 32 * head_size * 4),
        };
        let kernel = self.gpu.program().kernel("rotary", name, shared)?;
        let to =
            ToCache { queries: self.rooms.queries.address(), pages: self.pool.memory().address() };
        let launch = Launch::new(kernel, grid, THREADS)
            .shared(shared)
            .with(self.rooms.projected.address())
            .with(heads)
            .with(self.in_step(self.places.turns))
            .with(self.in_step(self.places.sequences))
            .with(self.in_step(self.places.rows))
            .with(number)
            .with(to);
        self.gpu.stream().launch(launch)
    }

    fn in_step(&self, place: usize) -> u64 {
        self.rooms.step.address() + place as u64
    }

    fn attend(&self, block: &GpuBlock, number: i32) -> Result<(), CudaError> {
        let shape = self.geometry.shape(block.window);
        if self.geometry.plain {
            return self.attend_plain(shape, number);
        }
        if self.plan.few > 0 {
            self.attend_few(shape, number)?;
        }
        if self.plan.few < self.plan.sequences.len() {
            self.attend_many(shape, number)?;
        }
        Ok(())
    }

    fn attend_plain(&self, shape: Shape, number: i32) -> Result<(), CudaError> {
        const THREADS: usize = 128;
        let name = if self.in_bytes { "attend_bytes_f32" } else { "attend_f32" };
        let kernel = self.gpu.program().kernel("plain", name, 0)?;
        let grid = [self.plan.tokens, self.geometry.heads, 1];
        let launch = Launch::new(kernel, grid, THREADS)
            .with(self.rooms.queries.address())
            .with(self.pool.memory().address())
            .with(shape)
            .with(self.in_step(self.places.sequences))
            .with(self.in_step(self.places.rows))
            .with(number)
            .with(self.rooms.attended.address());
        self.gpu.stream().launch(launch)
    }

    /// Whether no sequence of few rows has more than one tile of them, for which all warps of a block
    /// attend.
    fn is_in_tiles(&self) -> bool {
        let sizes = HEAD_SIZE_SMALL + 1..=HEAD_SIZE_MEDIUM;
        self.plan.few_rows_max <= TILE_ROWS && sizes.contains(&self.geometry.padded())
    }

    fn attend_few(&self, shape: Shape, number: i32) -> Result<(), CudaError> {
        const THREADS: usize = 128;
        let partials =
            Partials { values: self.rooms.partials.address(), counts: self.rooms.counts.address() };
        let shared = self.stage_bytes();
        let kernel = self.attention(if self.is_in_tiles() { "tile" } else { "few" }, shared)?;
        let grid = [self.plan.splits.len(), self.geometry.kv_heads, 1];
        let launch = Launch::new(kernel, grid, THREADS)
            .shared(shared)
            .with(self.rooms.queries.address())
            .with(self.pool.memory().address())
            .with(shape)
            .with(self.in_step(self.places.sequences))
            .with(self.in_step(self.places.splits))
            .with(number)
            .with(partials)
            .with(self.attended());
        self.gpu.stream().launch(launch)
    }

    fn attend_many(&self, shape: Shape, number: i32) -> Result<(), CudaError> {
        const THREADS: usize = 128;
        let shared = self.stage_bytes();
        let kernel = self.attention("many", shared)?;
        let many = self.plan.sequences.len() - self.plan.few;
        let grid = [self.plan.rows_max.div_ceil(FEW_ROWS), self.geometry.kv_heads, many];
        let launch = Launch::new(kernel, grid, THREADS)
            .shared(shared)
            .with(self.rooms.queries.address())
            .with(self.pool.memory().address())
            .with(shape)
            .with(self.in_step(self.places.sequences))
            .with(int(self.plan.few))
            .with(number)
            .with(self.attended());
        self.gpu.stream().launch(launch)
    }

    /// The kernel for sequences of `few` or of `many` rows, or of one `tile` of them.
    fn attention(&self, rows: &str, shared_bytes: usize) -> Result<Kernel, CudaError> {
        let pages = if self.in_bytes { "bytes" } else { "bf16" };
        let padded = self.geometry.padded();
        let name = format!("attend_{rows}_{pages}_{padded}");
        let large = if padded > HEAD_SIZE_MEDIUM { "_large" } else { "" };
        // The cache behind it is where the products around it keep what is on its way.
        let blocks = if self.in_bytes { 3 } else { 2 };
        let shared = SharedMemory { bytes: shared_bytes, blocks: Some(blocks) };
        self.gpu.program().kernel(&format!("attention_{pages}{large}"), &name, shared)
    }

    /// Keys and values of a chunk, for each stage; of 8 bits with the scales of each 32.
    fn stage_bytes(&self) -> usize {
        let padded = self.geometry.padded();
        let side = if self.in_bytes { padded + padded / KV_BLOCK_VALUES * 2 } else { padded * 2 };
        let stages = if padded > HEAD_SIZE_MEDIUM { 1 } else { 2 };
        stages * CHUNK * 2 * side
    }

    fn attended(&self) -> ToActivations {
        let columns = self.geometry.heads * self.geometry.head_size;
        ToActivations::new(&self.rooms.attended, columns, self.order)
    }

    /// Adds the product of a module's matrix to the hidden states.
    fn add(
        &self,
        module: TargetModule,
        index: u32,
        block: &GpuBlock,
        input: &Buffer,
    ) -> Result<(), CudaError> {
        let Module { matrix, bias, .. } = block.module(self.geometry, module);
        let scaled = self.scaled_product(index, module);
        let output = scaled.map_or_else(|| self.hidden(), Buffer::address);
        let to = ToRows {
            output,
            bias: address(bias),
            // What is scaled first is added later.
            residual: if scaled.is_some() { 0 } else { output },
            stride: int(self.geometry.hidden_size),
            first_row: 0,
        };
        matrix.multiply(self.gpu, self.input(input), Target::Rows(to))?;
        self.adapt(index, block, module, (input, output), self.hidden())
    }

    fn gate(&self, index: u32, block: &GpuBlock, mlp: &DenseMlp) -> Result<(), CudaError> {
        let bias = address(mlp.gate_up_bias.as_ref());
        let (size, input) = (self.geometry.intermediate_size, self.input(&self.rooms.normed));
        match &mlp.gate_up {
            GateUp::Tiles(matrix) => {
                let output = ToActivations::new(&self.rooms.gated, size, self.order);
                match self.adapted_gates(index) {
                    None => {
                        matrix.multiply(self.gpu, input, Target::Gated(ToGated { output, bias }))
                    }
                    Some(gate_up) => self.gate_adapted(index, block, (matrix, gate_up), output),
                }
            }
            GateUp::Plain(matrix) => {
                const THREADS: usize = 256;
                self.project_gates(index, block, matrix, &self.rooms.gate_up)?;
                let kernel = self.gpu.program().kernel("plain", "gated_f32", 0)?;
                let grid = [size.div_ceil(THREADS), self.plan.tokens, 1];
                let launch = Launch::new(kernel, grid, THREADS)
                    .with(self.rooms.gate_up.address())
                    .with(int(size))
                    .with(self.rooms.gated.address());
                self.gpu.stream().launch(launch)
            }
        }
    }

    /// Gates and up projections in rows, with what is added to them.
    fn project_gates(
        &self,
        index: u32,
        block: &GpuBlock,
        matrix: &Matrix,
        rows: &Buffer,
    ) -> Result<(), CudaError> {
        let to = ToRows {
            output: rows.address(),
            bias: address(block.dense().gate_up_bias.as_ref()),
            residual: 0,
            stride: int(matrix.rows()),
            first_row: 0,
        };
        matrix.multiply(self.gpu, self.input(&self.rooms.normed), Target::Rows(to))?;
        for module in [TargetModule::Gate, TargetModule::Up] {
            let place = (&self.rooms.normed, rows.address());
            self.adapt(index, block, module, place, rows.address())?;
        }
        Ok(())
    }
}
