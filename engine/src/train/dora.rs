//! Rows of a matrix with what an adapter adds to it, scaled to learned norms (DoRA; Liu et al. 2024,
//! <https://arxiv.org/abs/2402.09353>): `y = g (W x + scale B A x) + b`, where `g` is the magnitude of a
//! row divided by the norm that the row of `W + scale B A` has.
//!
//! As in PEFT, the norm counts as a constant in gradients, and where inputs are dropped `W` is multiplied
//! with all of them once and with what is left of them `g - 1` times.
//!
//! Norms are computed from the sums themselves, a tile at a time. They could also be put together from
//! those of `W` and products of `A` with it, which takes as many multiplications and cancels: with `B = 0`
//! each `g` has to be 1 and no number beside it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use umbel_protocol::Span;

use super::adapter::{Adapter, LoraMatrices, TargetModule};
use super::block::linear_of;
use super::dense::add_scaled;
use super::{TrainError, narrow};
use crate::kernel::PackedMatrix;
use crate::kernel::packed::unpack::{TILE_COLUMNS, TILE_ROWS};
use crate::kernel::parallel::for_each;
use crate::operation::linear::Linear;
use crate::span::HostedSpan;

/// Sums of squares that are kept side by side, so that compilers make vectors of them.
const LANES: usize = 8;

/// Ranks between two pauses: fewer than there are tokens between them, since these loops are plain and the
/// kernels of products are not.
const PAUSE_RANKS: usize = 16;

/// What the rows of a product are scaled by.
#[derive(Debug)]
pub(crate) struct RowScales {
    /// The norms of rows of `W + scale B A`. A row of zeros has the least norm there is, so that it
    /// stays one.
    norms: Vec<f32>,
    /// The magnitudes divided by them.
    pub(super) factors: Vec<f32>,
}

/// The scales that were computed last, and for which weights: they hold until a value of the adapter
/// changes, which is once a step, and for an adapter that answers always.
#[derive(Default)]
pub(super) struct Computed(Mutex<Option<(Weak<PackedMatrix>, Arc<RowScales>)>>);

impl Computed {
    fn of(&self, linear: &Linear) -> Option<Arc<RowScales>> {
        let computed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (weights, scales) = computed.as_ref()?;
        let are_same = std::ptr::eq(weights.as_ptr(), Arc::as_ptr(linear.shared_weight()));
        are_same.then(|| Arc::clone(scales))
    }

    fn hold(&self, linear: &Linear, scales: &Arc<RowScales>) {
        let computed = (Arc::downgrade(linear.shared_weight()), Arc::clone(scales));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(computed);
    }

    /// Forgets them: a value has changed.
    pub(super) fn forget(&mut self) {
        *self.0.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Clone for Computed {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}

impl std::fmt::Debug for Computed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Computed")
    }
}

impl PartialEq for Computed {
    /// What follows from the values makes no difference beside them.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl LoraMatrices {
    /// What rows are scaled by where they have magnitudes, with `pause` between parts of the work.
    pub(crate) fn row_scales(
        &self,
        linear: &Linear,
        scale: f32,
        pause: &dyn Fn(),
    ) -> Option<Arc<RowScales>> {
        if self.magnitudes.is_empty() {
            return None;
        }
        if let Some(scales) = self.computed.of(linear) {
            return Some(scales);
        }
        // Nobody waits for it here: a pass that the pause lets go first would never come to an end.
        let mut norms = row_norms(linear.weight(), Some((self, scale)), pause);
        norms.iter_mut().for_each(|norm| *norm = norm.max(f32::MIN_POSITIVE));
        let factors = self.magnitudes.iter().zip(&norms).map(|(m, norm)| m / norm).collect();
        let scales = Arc::new(RowScales { norms, factors });
        self.computed.hold(linear, &scales);
        Some(scales)
    }

    /// Whether what rows are scaled by is computed, where they have magnitudes.
    fn has_row_scales(&self, linear: &Linear) -> bool {
        self.magnitudes.is_empty() || self.computed.of(linear).is_some()
    }
}

impl RowScales {
    /// From rows of `W x + b`, or of what is left of `x` in `base`, to those of the scaled sum; `added` is
    /// `scale B A x`.
    pub(crate) fn apply(
        &self,
        bias: Option<&[f32]>,
        output: &mut [f32],
        base: Option<&[f32]>,
        added: &[f32],
    ) {
        let rows = self.factors.len();
        for (token, (output, added)) in
            output.chunks_exact_mut(rows).zip(added.chunks_exact(rows)).enumerate()
        {
            for (row, (output, added)) in output.iter_mut().zip(added).enumerate() {
                let base = base.map_or(*output, |base| base[token * rows + row]);
                let base = bias.map_or(base, |bias| base - bias[row]);
                let factor = self.factors[row];
                *output += (factor - 1.0) * base + factor * added;
            }
        }
    }

    /// The gradient of the sum before it is scaled.
    pub(super) fn of_sum(&self, gradient: &[f32]) -> Vec<f32> {
        self.scaled(gradient, |factor| factor)
    }

    /// The gradient of the product with what is left of dropped inputs.
    pub(super) fn of_dropped(&self, gradient: &[f32]) -> Vec<f32> {
        self.scaled(gradient, |factor| factor - 1.0)
    }

    fn scaled(&self, gradient: &[f32], by: impl Fn(f32) -> f32) -> Vec<f32> {
        let mut scaled = gradient.to_vec();
        for row in scaled.chunks_exact_mut(self.factors.len()) {
            row.iter_mut().zip(&self.factors).for_each(|(value, factor)| *value *= by(*factor));
        }
        scaled
    }

    /// The gradients of the magnitudes, from that of the output, rows of `W x + b` and `scale B A x`.
    pub(super) fn of_magnitudes(
        &self,
        bias: Option<&[f32]>,
        gradient: &[f32],
        base: &[f32],
        added: &[f32],
    ) -> Vec<f32> {
        let rows = self.norms.len();
        let mut found = vec![0.0; rows];
        let sums = base.chunks_exact(rows).zip(added.chunks_exact(rows));
        for (gradient, (base, added)) in gradient.chunks_exact(rows).zip(sums) {
            for (row, found) in found.iter_mut().enumerate() {
                let base = bias.map_or(base[row], |bias| base[row] - bias[row]);
                *found += gradient[row] * (base + added[row]);
            }
        }
        found.iter_mut().zip(&self.norms).for_each(|(found, norm)| *found /= norm);
        found
    }
}

/// The norm of each row of a frozen matrix with what an adapter adds to it, with `pause` between parts of
/// the work. Each sum is one in binary64 and one order, so that it is the same number on every processor.
pub(super) fn row_norms(
    weight: &PackedMatrix,
    lora: Option<(&LoraMatrices, f32)>,
    pause: &dyn Fn(),
) -> Vec<f32> {
    let mut norms = vec![0.0; weight.rows()];
    let parts = 1 + lora.map_or(0, |(matrices, _)| matrices.rank()) / PAUSE_RANKS;
    let mut panels: Vec<_> = norms.chunks_mut(weight.panel_rows()).enumerate().collect();
    let of_part = panels.len().div_ceil(parts).max(1);
    for part in panels.chunks_mut(of_part) {
        for_each(part, |(panel, norms)| norms_of_panel(weight, *panel, lora, norms));
        pause();
    }
    norms
}

fn norms_of_panel(
    weight: &PackedMatrix,
    panel: usize,
    lora: Option<(&LoraMatrices, f32)>,
    norms: &mut [f32],
) {
    let columns = weight.columns();
    let mut tile = [[0.0; TILE_COLUMNS]; TILE_ROWS];
    let mut sums = [[0.0_f64; LANES]; TILE_ROWS];
    for tile_index in 0..columns.div_ceil(TILE_COLUMNS) {
        weight.unpack(panel, tile_index, &mut tile);
        if let Some((matrices, scale)) = lora {
            let start = tile_index * TILE_COLUMNS;
            let width = TILE_COLUMNS.min(columns - start);
            for (row, values) in weight.rows_of_panel(panel).zip(&mut tile) {
                let b = &matrices.b()[row * matrices.rank()..][..matrices.rank()];
                for (factor, a) in b.iter().zip(matrices.a().chunks_exact(columns)) {
                    add_scaled(&mut values[..width], scale * factor, &a[start..start + width]);
                }
            }
        }
        for (sums, values) in sums.iter_mut().zip(&tile).take(norms.len()) {
            for values in values.as_chunks::<LANES>().0 {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += f64::from(*value) * f64::from(*value);
                }
            }
        }
    }
    for (norm, sums) in norms.iter_mut().zip(&sums) {
        *norm = narrow(sums.iter().sum::<f64>().sqrt());
    }
}

impl HostedSpan {
    /// The norm of each row of a module's frozen matrix, with which the magnitudes of DoRA begin; `pause`
    /// is called between parts of the work. It is the same on every processor, and
    /// on a GPU that has the weights as they are: in binary32 or bfloat16. Others are rounded there.
    ///
    /// # Errors
    /// [`TrainError`] where the block is not here, or a GPU fails.
    pub fn row_norms(
        &self,
        block: u32,
        module: TargetModule,
        pause: &dyn Fn(),
    ) -> Result<Vec<f32>, TrainError> {
        if !self.span().contains(block) {
            let blocks = Span::new(block, block.saturating_add(1));
            let blocks = blocks.unwrap_or(self.span());
            return Err(TrainError::NotHosted { blocks, hosted: self.span() });
        }
        if let Some(blocks) = self.gpu_blocks() {
            blocks.module_shape(module).ok_or(TrainError::Experts { block, module })?;
            return Ok(blocks.row_norms(block, module)?);
        }
        let parts = self.parts(block);
        let linear = linear_of(&parts, module).ok_or(TrainError::Experts { block, module })?;
        Ok(self.device().run(|| row_norms(linear.weight(), None, pause)))
    }

    /// Computes what passes with `adapter` need of a block beside its values, so that none has to: the norms
    /// by which magnitudes (DoRA) are divided. They take as many multiplications as a prompt of as many
    /// tokens as the adapter has ranks; `pause` is called between parts of the work. On a GPU it is done
    /// when a session takes the adapter up.
    ///
    /// # Panics
    /// Where the block is not here: [`HostedSpan::adapt`] says so.
    pub fn prepare(&self, block: u32, adapter: &Adapter, pause: &dyn Fn()) {
        let scale = adapter.config().scale();
        self.device().run(|| {
            for (matrices, linear) in self.pairs(block, adapter) {
                matrices.row_scales(linear, scale, pause);
            }
        });
    }

    /// Whether all of that is computed for some blocks.
    ///
    /// # Panics
    /// As [`HostedSpan::prepare`].
    #[must_use]
    pub fn is_prepared(&self, blocks: Span, adapter: &Adapter) -> bool {
        let mut pairs = blocks.blocks().flat_map(|block| self.pairs(block, adapter));
        pairs.all(|(matrices, linear)| matrices.has_row_scales(linear))
    }

    /// The matrices that an adapter has for a block, and those that they add to, on the processor.
    fn pairs<'a>(
        &'a self,
        block: u32,
        adapter: &'a Adapter,
    ) -> impl Iterator<Item = (&'a LoraMatrices, &'a Linear)> {
        let parts = self.gpu_blocks().is_none().then(|| self.parts(block));
        parts.into_iter().flat_map(move |parts| {
            TargetModule::ALL.into_iter().filter_map(move |module| {
                Some((adapter.parameters().at(block, module)?, linear_of(&parts, module)?))
            })
        })
    }

    /// As many norms as `range` has, of those that the magnitudes of `adapter` begin with, in the order of
    /// [`Adapter::set_magnitudes`]; `None` where there are not as many. Nothing is computed of the others.
    ///
    /// # Errors
    /// As [`HostedSpan::row_norms`].
    pub fn first_magnitudes(
        &self,
        adapter: &Adapter,
        range: std::ops::Range<u64>,
        pause: &dyn Fn(),
    ) -> Result<Option<Vec<f32>>, TrainError> {
        let mut found = Vec::new();
        let mut start = 0;
        for ((block, module), matrices) in adapter.parameters().iter() {
            let end = start + matrices.magnitudes().len() as u64;
            let (first, last) = (range.start.max(start), range.end.min(end));
            if first < last {
                let place = |at: u64| usize::try_from(at - start).expect("it is within the matrix");
                let norms = self.row_norms(block, module, pause)?;
                let norms = norms.get(place(first)..place(last)).ok_or_else(|| {
                    let found = matrices.shape();
                    match self.module_shape(block, module) {
                        Some(expected) => TrainError::OtherModel { block, module, expected, found },
                        None => TrainError::Experts { block, module },
                    }
                })?;
                found.extend_from_slice(norms);
            }
            start = end;
        }
        Ok((found.len() as u64 == range.end.saturating_sub(range.start)).then_some(found))
    }
}
