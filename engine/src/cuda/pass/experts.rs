//! The second half of a block whose MLP is of experts.
//!
//! Where a token goes is known on the device alone, and the host does not wait for it: kernels are launched
//! for as many tiles of rows as there can be, so that passes of as many tokens are the same graph.

use bytemuck::{Pod, Zeroable};
use umbel_shard::Experts;

use super::super::block::{GpuBlock, GpuExperts};
use super::super::driver::{Buffer, CudaError, Launch};
use super::super::gpu::Gpu;
use super::super::matrix::{
    CELL_TOKENS, OfExperts, Order, Routes, Tiling, ToActivations, ToGated, activation_bytes, int,
    tiles_max,
};
use super::super::norm;
use super::Pass;
use super::plan::Geometry;

/// Tokens that go through experts together, at most: enough that 128 experts, of which each token goes
/// through 8, have a whole tile of them.
const TOGETHER_TOKENS_MAX: usize = 1024;

/// What they compute in, at most, where it is not that of one token.
const ROOM_BYTES_MAX: usize = 144 << 20;

/// Pairs of a token and an expert, at most: the dimensions of a grid but the first end at 65,535.
const PAIRS_MAX: usize = 1 << 15;

/// `Choice` of `cuda/experts.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Choice {
    experts: i32,
    per_token: i32,
    normalized: i32,
    tile_rows: i32,
}

/// Bytes of a tile: `RowTile` of `cuda/experts.cuh`.
const TILE_BYTES: usize = 16;

/// Bytes of a number or of a value.
const WORD_BYTES: usize = 4;

/// Memory for some tokens on their way through experts.
pub(super) struct ExpertRooms {
    /// How many tokens there is room for; more go through one such part after the other.
    tokens: usize,
    /// What entered, with a norm, in binary32.
    exact: Buffer,
    /// The same, rounded for matrices that are not in binary32.
    rounded: Buffer,
    logits: Buffer,
    tiles: Buffer,
    /// Of each row.
    row_tokens: Buffer,
    row_experts: Buffer,
    /// Of each pair.
    pair_experts: Buffer,
    pair_rows: Buffer,
    pair_weights: Buffer,
    /// Gates and up projections, where they are in binary32.
    gate_up: Buffer,
    gated: Buffer,
    outputs: Buffer,
}

/// Bytes of each of the rooms.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    exact: usize,
    rounded: usize,
    logits: usize,
    tiles: usize,
    pairs: usize,
    gate_up: usize,
    gated: usize,
    outputs: usize,
}

impl Sizes {
    fn of(geometry: &Geometry, experts: Experts, tokens: usize) -> Self {
        let Geometry { hidden_size, intermediate_size, plain, .. } = *geometry;
        let pairs = tokens * experts.per_token;
        let cells = tiles_max(CELL_TOKENS, pairs, experts.count);
        // The rows of an expert begin with a cell, unless they are plain.
        let gated_rows = if plain { pairs } else { cells * CELL_TOKENS };
        Self {
            exact: tokens * hidden_size * WORD_BYTES,
            rounded: if plain { 0 } else { activation_bytes(false, tokens, hidden_size) },
            logits: tokens * experts.count * WORD_BYTES,
            tiles: cells * TILE_BYTES,
            pairs: pairs * WORD_BYTES,
            gate_up: if plain { pairs * 2 * intermediate_size * WORD_BYTES } else { 0 },
            gated: activation_bytes(plain, gated_rows, intermediate_size),
            outputs: pairs * hidden_size * WORD_BYTES,
        }
    }

    const fn sum(self) -> usize {
        let Self { exact, rounded, logits, tiles, pairs, gate_up, gated, outputs } = self;
        exact + rounded + logits + tiles + 5 * pairs + gate_up + gated + outputs
    }
}

/// How many tokens go through experts together.
fn together(geometry: &Geometry, experts: Experts) -> usize {
    let mut tokens = TOGETHER_TOKENS_MAX;
    let fits = |tokens: usize| {
        tokens * experts.per_token <= PAIRS_MAX
            && Sizes::of(geometry, experts, tokens).sum() <= ROOM_BYTES_MAX
    };
    while tokens > 1 && !fits(tokens) {
        tokens /= 2;
    }
    tokens
}

impl ExpertRooms {
    /// Room for as many of `tokens` as go through experts together; `None` where there are no experts.
    pub(super) fn new(
        gpu: &Gpu,
        geometry: &Geometry,
        tokens: usize,
    ) -> Result<Option<Self>, CudaError> {
        let Some(experts) = geometry.experts else { return Ok(None) };
        let tokens = tokens.min(together(geometry, experts));
        let sizes = Sizes::of(geometry, experts, tokens);
        let room = |bytes| Buffer::zeroed(gpu.context(), bytes);
        Ok(Some(Self {
            tokens,
            exact: room(sizes.exact)?,
            rounded: room(sizes.rounded)?,
            logits: room(sizes.logits)?,
            tiles: room(sizes.tiles)?,
            row_tokens: room(sizes.pairs)?,
            row_experts: room(sizes.pairs)?,
            pair_experts: room(sizes.pairs)?,
            pair_rows: room(sizes.pairs)?,
            pair_weights: room(sizes.pairs)?,
            gate_up: room(sizes.gate_up)?,
            gated: room(sizes.gated)?,
            outputs: room(sizes.outputs)?,
        }))
    }
}

/// Some tokens of a pass, on their way through the experts of a block.
struct Part<'a> {
    gpu: &'a Gpu,
    geometry: &'a Geometry,
    choice: Experts,
    experts: &'a GpuExperts,
    rooms: &'a ExpertRooms,
    /// The address of their hidden states.
    hidden: u64,
    tokens: usize,
}

impl Pass<'_> {
    /// Adds what the experts of a block make of the hidden states to these.
    pub(super) fn add_experts(
        &self,
        block: &GpuBlock,
        experts: &GpuExperts,
    ) -> Result<(), CudaError> {
        let (gpu, geometry) = (self.gpu, self.geometry);
        let choice = geometry.experts.expect("a model has experts in all of its blocks");
        let rooms = self.rooms.experts.as_ref().expect("room was made for experts");
        for start in (0..self.plan.tokens).step_by(rooms.tokens) {
            let tokens = rooms.tokens.min(self.plan.tokens - start);
            let hidden = self.hidden() + (start * geometry.hidden_size * WORD_BYTES) as u64;
            let part = Part { gpu, geometry, choice, experts, rooms, hidden, tokens };
            part.norm(&block.post_norm)?;
            part.compute_logits()?;
            let (routes, tiling) = part.route()?;
            part.multiply(&routes, tiling)?;
            part.combine(&routes)?;
        }
        Ok(())
    }
}

impl Part<'_> {
    const fn pairs(&self) -> usize {
        self.tokens * self.choice.per_token
    }

    fn norm(&self, weight: &Buffer) -> Result<(), CudaError> {
        // `NORM_THREADS` of `cuda/norm.cuh`.
        const THREADS: usize = 512;
        let Geometry { hidden_size, epsilon, plain, .. } = *self.geometry;
        if plain {
            let to = (&self.rooms.exact, true, Order::Lanes);
            let rows = (self.hidden, self.tokens);
            return norm::launch(self.gpu, (weight, epsilon, hidden_size), rows, to);
        }
        let launch = Launch::new(self.kernel("experts_norm")?, [self.tokens, 1, 1], THREADS)
            .with(self.hidden)
            .with(weight.address())
            .with(epsilon)
            .with(int(hidden_size))
            .with(ToActivations::new(&self.rooms.rounded, hidden_size, Order::Lanes))
            .with(self.rooms.exact.address());
        self.gpu.stream().launch(launch)
    }

    fn compute_logits(&self) -> Result<(), CudaError> {
        // `ROUTER_THREADS` and `ROUTER_TOKENS` of `cuda/experts.cu`.
        const THREADS: usize = 128;
        const TOKENS: usize = 8;
        let (name, rows) = match self.tokens {
            ..=TOKENS => ("experts_router_few", 1),
            _ => ("experts_router_many", 4),
        };
        let grid = [self.choice.count.div_ceil(rows), self.tokens.div_ceil(TOKENS), 1];
        let launch = Launch::new(self.kernel(name)?, grid, THREADS)
            .with(self.experts.router.address())
            .with(self.rooms.exact.address())
            .with(int(self.geometry.hidden_size))
            .with(int(self.tokens))
            .with(int(self.choice.count))
            .with(self.rooms.logits.address());
        self.gpu.stream().launch(launch)
    }

    /// Chooses experts, and puts the rows of each together.
    fn route(&self) -> Result<(Routes, Tiling), CudaError> {
        // A warp for each token, as many as a block can have.
        const WARPS_MAX: usize = 32;
        let (rooms, Experts { count, per_token, normalized }) = (self.rooms, self.choice);
        let tiling = Tiling::of(self.tokens, self.pairs(), count);
        let choice = Choice {
            experts: int(count),
            per_token: int(per_token),
            normalized: i32::from(normalized),
            tile_rows: int(tiling.rows),
        };
        let routes = Routes {
            tiles: rooms.tiles.address(),
            tokens: rooms.row_tokens.address(),
            experts: rooms.row_experts.address(),
            rows: rooms.pair_rows.address(),
            weights: rooms.pair_weights.address(),
            tiles_max: int(tiling.tiles_max(self.pairs(), count)),
            count: int(self.tokens),
        };
        let threads = self.tokens.min(WARPS_MAX) * 32;
        let launch = Launch::new(self.kernel("experts_route")?, [1, 1, 1], threads)
            .with(rooms.logits.address())
            .with(choice)
            .with(rooms.pair_experts.address())
            .with(routes);
        self.gpu.stream().launch(launch)?;
        Ok((routes, tiling))
    }

    fn multiply(&self, routes: &Routes, tiling: Tiling) -> Result<(), CudaError> {
        let (gpu, rooms, GpuExperts { gate_up, down, .. }) = (self.gpu, self.rooms, self.experts);
        let size = self.geometry.intermediate_size;
        let of_all = (routes, tiling, self.pairs());
        if self.geometry.plain {
            const THREADS: usize = 256;
            gate_up.multiply(gpu, of_all, OfExperts::Tokens(&rooms.exact, &rooms.gate_up))?;
            let kernel = gpu.program().kernel("plain", "gated_f32", 0)?;
            let grid = [size.div_ceil(THREADS), self.pairs(), 1];
            let launch = Launch::new(kernel, grid, THREADS)
                .with(rooms.gate_up.address())
                .with(int(size))
                .with(rooms.gated.address());
            gpu.stream().launch(launch)?;
        } else {
            let output = ToActivations::new(&rooms.gated, size, Order::Lanes);
            let gated = ToGated { output, bias: 0 };
            gate_up.multiply(gpu, of_all, OfExperts::Gated(&rooms.rounded, gated))?;
        }
        down.multiply(gpu, of_all, OfExperts::Pairs(&rooms.gated, &rooms.outputs))
    }

    fn combine(&self, routes: &Routes) -> Result<(), CudaError> {
        const THREADS: usize = 128;
        let size = self.geometry.hidden_size;
        let grid = [size.div_ceil(THREADS), self.tokens, 1];
        let launch = Launch::new(self.kernel("experts_combine")?, grid, THREADS)
            .with(self.rooms.outputs.address())
            .with(routes.rows)
            .with(routes.weights)
            .with(int(self.choice.per_token))
            .with(int(size))
            .with(self.hidden);
        self.gpu.stream().launch(launch)
    }

    fn kernel(&self, name: &str) -> Result<super::Kernel, CudaError> {
        self.gpu.program().kernel("experts", name, 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use umbel_shard::ModelConfig;

    use super::*;
    use crate::kernel::RopeTable;

    fn geometry(hidden_size: usize, intermediate_size: usize, plain: bool) -> Geometry {
        let config = ModelConfig::llama(1);
        Geometry {
            hidden_size,
            intermediate_size,
            experts: None,
            heads: config.head_count,
            kv_heads: config.kv_head_count,
            head_size: config.head_size,
            epsilon: config.rms_norm_eps,
            rope: Arc::new(RopeTable::new(&config.rope, config.head_size)),
            plain,
        }
    }

    fn experts(count: usize, per_token: usize) -> Experts {
        Experts { count, per_token, normalized: true }
    }

    #[test]
    fn long_passes_go_through_experts_in_parts_of_bounded_room() {
        for (hidden, inner, count, per_token, expected) in [
            // Qwen3-30B-A3B and 235B-A22B, Mixtral 8x7B and 8x22B.
            (2048, 768, 128, 8, 1024),
            (4096, 1536, 128, 8, 512),
            (4096, 14336, 8, 2, 1024),
            (6144, 16384, 8, 2, 512),
            // As large as they may be.
            (1 << 17, 1 << 20, 1024, 1024, 1),
        ] {
            let (geometry, experts) = (geometry(hidden, inner, false), experts(count, per_token));
            let tokens = together(&geometry, experts);
            assert_eq!(tokens, expected, "{hidden} {inner} {count}");
            let bytes = Sizes::of(&geometry, experts, tokens).sum();
            assert!(bytes <= ROOM_BYTES_MAX || tokens == 1, "{bytes}");
            assert!(tokens * per_token <= PAIRS_MAX);
        }
    }

    /// Parts of a pass have no more tokens than there is room for, and need no more than a full one.
    #[test]
    fn fewer_tokens_need_no_more_room() {
        for plain in [false, true] {
            for (count, per_token) in [(6, 3), (128, 8), (40, 33), (1, 1)] {
                let of = |tokens| {
                    Sizes::of(&geometry(72, 100, plain), experts(count, per_token), tokens)
                };
                for tokens in 1..200 {
                    let (fewer, more) = (of(tokens), of(tokens + 1));
                    assert!(fewer.tiles <= more.tiles && fewer.gated <= more.gated);
                    let tiling = Tiling::of(tokens, tokens * per_token, count);
                    let tiles = tiling.tiles_max(tokens * per_token, count);
                    assert!(tiles * TILE_BYTES <= fewer.tiles, "{tokens} of {count}");
                }
            }
        }
    }
}
