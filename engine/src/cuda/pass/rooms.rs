//! Memory that a pass is computed in.

use super::super::cache::Sequence;
use super::super::cells::CELL_ROWS;
use super::super::driver::{Buffer, CudaError, Pinned};
use super::super::gpu::Gpu;
use super::experts::ExpertRooms;
use super::plan::{Geometry, Plan, SessionRows, Split};
use crate::kernel::parallel;
use crate::operation::with_values;
use crate::train::adapter::RANK_MAX;

/// Memory for so many tokens of one model, and so many partial results of attention.
pub(super) struct Rooms {
    pub(super) geometry: RoomsKey,
    pub(super) tokens: usize,
    /// What a pass begins with, in one piece: hidden states, turns, sequences, the sequence of
    /// each row, and splits.
    pub(super) staged: Pinned,
    pub(super) step: Buffer,
    pub(super) normed: Buffer,
    pub(super) projected: Buffer,
    pub(super) queries: Buffer,
    pub(super) attended: Buffer,
    pub(super) gate_up: Buffer,
    pub(super) gated: Buffer,
    pub(super) partials: Buffer,
    /// Splits that are done, of each sequence of few rows and head of keys.
    pub(super) counts: Buffer,
    /// What a model with experts needs in the place of gates and what they gate.
    pub(super) experts: Option<ExpertRooms>,
    /// What passes with adapters need besides, from the first on.
    pub(super) adapted: Option<AdaptedRooms>,
}

/// Memory for what adapters add.
pub(super) struct AdaptedRooms {
    /// Products with A.
    pub(super) inner: Buffer,
    /// Gates and up projections in tiles, before they are gated.
    pub(super) gate_up: Buffer,
    /// Products that are scaled before they are added to the hidden states.
    pub(super) product: Buffer,
}

impl AdaptedRooms {
    fn new(gpu: &Gpu, geometry: &Geometry, tokens: usize) -> Result<Self, CudaError> {
        let Geometry { hidden_size, plain, .. } = *geometry;
        let intermediate_size = gated_size(geometry);
        let room = |values: usize| Buffer::zeroed(gpu.context(), tokens * values * 4);
        let gate_up = if plain { 0 } else { 2 * intermediate_size.next_multiple_of(CELL_ROWS / 2) };
        let (inner, gate_up) = (room(RANK_MAX)?, room(gate_up)?);
        Ok(Self { inner, gate_up, product: room(hidden_size)? })
    }
}

/// Values that a token has between the matrices of the one MLP: none where experts stand in its place.
fn gated_size(geometry: &Geometry) -> usize {
    if geometry.experts.is_some() { 0 } else { geometry.intermediate_size }
}

/// What a model's rooms are made for.
pub(super) type RoomsKey = [usize; 8];

/// What one thread copies at a time.
const COPIED_TOGETHER: usize = 1 << 18;

/// Copies with all threads, where there is much.
fn copy(from: &[u8], to: &mut [u8]) {
    let parts = from.chunks(COPIED_TOGETHER).zip(to.chunks_mut(COPIED_TOGETHER));
    parallel::for_each(parts, |(from, to)| to.copy_from_slice(from));
}

/// The same values in memory of their own. Memory that is fresh from the system costs more than the
/// copy, so threads share that too.
pub(super) fn copied(values: &[f32]) -> Vec<f32> {
    let mut own = vec![0.0; values.len()];
    copy(bytemuck::cast_slice(values), bytemuck::cast_slice_mut(&mut own));
    own
}

/// What attention of few rows leaves to be joined, with room to grow; there are no fewer partial results of
/// a head than splits.
pub(super) fn partial_bytes(geometry: &Geometry, plan: &Plan) -> usize {
    if plan.splits.is_empty() {
        return 0;
    }
    plan.partials.next_power_of_two() * partials_stride(geometry)
}

/// Bytes of a partial result of all heads.
fn partials_stride(geometry: &Geometry) -> usize {
    geometry.heads * (geometry.padded() + 2) * 4
}

impl Rooms {
    pub(super) fn key(geometry: &Geometry) -> RoomsKey {
        [
            geometry.hidden_size,
            geometry.intermediate_size,
            geometry.heads,
            geometry.kv_heads,
            geometry.head_size,
            geometry.experts.map_or(0, |experts| experts.count),
            geometry.experts.map_or(0, |experts| experts.per_token),
            usize::from(geometry.plain),
        ]
    }

    pub(super) fn new(
        gpu: &Gpu,
        geometry: &Geometry,
        tokens: usize,
        partials: usize,
    ) -> Result<Self, CudaError> {
        let room = |bytes| Buffer::zeroed(gpu.context(), bytes);
        let activations = |columns| room(geometry.activation_bytes(tokens, columns));
        let Geometry { hidden_size, heads, kv_heads, head_size, plain, .. } = *geometry;
        let intermediate_size = gated_size(geometry);
        // A sequence has at least a row.
        let of_token = hidden_size * 4 + head_size * 4 + size_of::<Sequence>() + 4;
        let splits = (partials / partials_stride(geometry) + 1) * size_of::<Split>();
        let step = tokens * of_token + 16 + splits;
        let queries = if plain { head_size * 4 } else { geometry.padded() * 2 };
        Ok(Self {
            geometry: Self::key(geometry),
            tokens,
            staged: Pinned::new(gpu.context(), step)?,
            step: room(step)?,
            normed: activations(hidden_size)?,
            projected: room(tokens * (heads + 2 * kv_heads) * head_size * 4)?,
            queries: room(tokens * heads * queries)?,
            attended: activations(heads * head_size)?,
            gate_up: room(if plain { tokens * 2 * intermediate_size * 4 } else { 0 })?,
            gated: activations(intermediate_size)?,
            partials: room(partials)?,
            counts: room(tokens * kv_heads * 4)?,
            experts: ExpertRooms::new(gpu, geometry, tokens)?,
            adapted: None,
        })
    }

    /// Makes room for what adapters add, where there is none yet.
    pub(super) fn make_adapted(&mut self, gpu: &Gpu, geometry: &Geometry) -> Result<(), CudaError> {
        if self.adapted.is_none() {
            self.adapted = Some(AdaptedRooms::new(gpu, geometry, self.tokens)?);
        }
        Ok(())
    }

    pub(super) fn stage(
        &mut self,
        geometry: &Geometry,
        plan: &Plan,
        stretches: &[&mut SessionRows<'_>],
    ) {
        let places = plan.places(geometry);
        let staged = self.staged.as_mut_slice();
        let mut place = 0;
        for stretch in stretches {
            let bytes = stretch.tokens * geometry.hidden_size * 4;
            let to = &mut staged[place..place + bytes];
            with_values(&stretch.hidden, |values| copy(bytemuck::cast_slice(values), to))
                .expect("hidden states are the processor's");
            place += bytes;
        }
        let mut put = |start: usize, bytes: &[u8]| {
            staged[start..start + bytes.len()].copy_from_slice(bytes);
        };
        put(places.turns, bytemuck::cast_slice(&plan.turns));
        put(places.sequences, bytemuck::cast_slice(&plan.sequences));
        put(places.rows, bytemuck::cast_slice(&plan.sequence_of_row));
        put(places.splits, bytemuck::cast_slice(&plan.splits));
    }
}
