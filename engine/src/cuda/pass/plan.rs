//! What a pass consists of: the rows of its sessions, and where each thing lies that is copied.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use candle_core::Tensor;
use umbel_shard::Experts;

use super::super::cache::{HEAD_PADDING, Sequence};
use super::super::matrix::{FEW_TOKENS, Limits, Order, STAGE_COLUMNS, activation_bytes, int};
use crate::kernel::RopeTable;
use crate::kv::table::KvTable;
use crate::train::{ModuleSizes, TargetModule};

/// Rows of a sequence, its tokens times the heads that share one of keys, that one block attends for.
pub(super) const FEW_ROWS: usize = 64;

/// Rows of a tile of the matrix unit.
pub(super) const TILE_ROWS: usize = 16;

/// Positions that are attended to by themselves: `SPLIT` of `cuda/attention.cu`.
pub(super) const SPLIT: usize = 128;

/// The largest head for which there are kernels in bfloat16.
pub(in crate::cuda) const HEAD_SIZE_MAX: usize = 256;

/// What passes through the blocks of a model have in common.
#[derive(Debug, Clone)]
pub(in crate::cuda) struct Geometry {
    pub(in crate::cuda) hidden_size: usize,
    pub(in crate::cuda) intermediate_size: usize,
    pub(in crate::cuda) experts: Option<Experts>,
    pub(in crate::cuda) heads: usize,
    pub(in crate::cuda) kv_heads: usize,
    pub(in crate::cuda) head_size: usize,
    pub(in crate::cuda) epsilon: f32,
    pub(in crate::cuda) rope: Arc<RopeTable>,
    /// Whether all is computed in binary32.
    pub(in crate::cuda) plain: bool,
}

impl Geometry {
    pub(in crate::cuda) fn shape(&self, window: usize) -> Shape {
        Shape {
            heads: int(self.heads),
            kv_heads: int(self.kv_heads),
            head_size: int(self.head_size),
            window: int(window),
        }
    }

    /// The size of a head where it is padded.
    pub(super) fn padded(&self) -> usize {
        self.head_size.next_multiple_of(HEAD_PADDING)
    }

    /// How activations of so many tokens lie: one way in all of a pass.
    pub(super) fn order(&self, tokens: usize, limits: Limits) -> Order {
        let sizes = [self.hidden_size, self.intermediate_size, self.heads * self.head_size];
        let suits = sizes.iter().all(|size| size.is_multiple_of(STAGE_COLUMNS));
        if limits.group_units && suits && tokens > FEW_TOKENS && !self.plain {
            Order::Cores
        } else {
            Order::Lanes
        }
    }

    /// Rows and columns of a module's matrix; `None` where experts stand in its place.
    pub(in crate::cuda) fn module_shape(&self, module: TargetModule) -> Option<[usize; 2]> {
        let sizes = ModuleSizes {
            hidden: self.hidden_size,
            intermediate: self.experts.is_none().then_some(self.intermediate_size),
            queries: self.heads * self.head_size,
            keys: self.kv_heads * self.head_size,
        };
        sizes.shape(module)
    }

    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Bytes of activations for so many tokens.
    pub(in crate::cuda) fn activation_bytes(&self, tokens: usize, columns: usize) -> usize {
        activation_bytes(self.plain, tokens, columns)
    }
}

/// `Shape` of `cuda/cache.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cuda) struct Shape {
    pub(super) heads: i32,
    pub(super) kv_heads: i32,
    pub(super) head_size: i32,
    pub(super) window: i32,
}

/// What a session brings: its cache, whose tokens stand from its position on, and as many rows.
pub(crate) struct SessionRows<'a> {
    pub(crate) table: &'a mut KvTable,
    pub(crate) tokens: usize,
    pub(crate) hidden: Tensor,
}

/// A split of a sequence of few rows: `Split` of `cuda/attention.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Split {
    pub(super) sequence: i32,
    pub(super) index: i32,
    pub(super) before: i32,
    pub(super) unused: i32,
}

impl Split {
    /// One for nobody.
    const NONE: Self = Self { sequence: -1, index: 0, before: 0, unused: 0 };
}

/// How many splits are launched where there are so many: steps of an eighth of a power of two let passes
/// share a graph while their sessions grow, and few blocks are for nobody.
fn launched(splits: usize) -> usize {
    splits.next_multiple_of((splits.next_power_of_two() / 8).max(1))
}

/// The rows of a pass, sequence after sequence: those of few rows first.
pub(super) struct Plan {
    pub(super) tokens: usize,
    pub(super) sequences: Vec<Sequence>,
    pub(super) sequence_of_row: Vec<i32>,
    pub(super) turns: Vec<[f32; 2]>,
    /// How many sequences are of few rows.
    pub(super) few: usize,
    /// The most rows of such a sequence, and of one that is not.
    pub(super) few_rows_max: usize,
    pub(super) rows_max: usize,
    /// The splits of all sequences of few rows, and some for nobody. In binary32 there are none.
    pub(super) splits: Vec<Split>,
    /// How many partial results each head has of them.
    pub(super) partials: usize,
}

impl Plan {
    /// `stretches` are in the order of their rows.
    pub(super) fn new(geometry: &Geometry, stretches: &[&mut SessionRows<'_>]) -> Self {
        let mut plan = Self {
            tokens: 0,
            sequences: Vec::with_capacity(stretches.len()),
            sequence_of_row: Vec::new(),
            turns: Vec::new(),
            few: 0,
            few_rows_max: 0,
            rows_max: 0,
            splits: Vec::new(),
            partials: 0,
        };
        for (index, stretch) in stretches.iter().enumerate() {
            let (position, tokens) = (stretch.table.position(), stretch.tokens);
            let cache = stretch.table.device_cache();
            plan.sequences.push(cache.sequence(position, tokens, plan.tokens));
            plan.sequence_of_row.extend(std::iter::repeat_n(int(index), tokens));
            for position in position..position + tokens {
                geometry.rope.append_turns(position, &mut plan.turns);
            }
            plan.tokens += tokens;
            let rows = tokens * geometry.group();
            if rows <= FEW_ROWS {
                plan.few += 1;
                plan.few_rows_max = plan.few_rows_max.max(rows);
                if !geometry.plain {
                    plan.split(index, position + tokens, tokens);
                }
            } else {
                plan.rows_max = plan.rows_max.max(rows);
            }
        }
        plan.splits.resize(launched(plan.splits.len()), Split::NONE);
        plan
    }

    /// Cuts the `positions` of a sequence that has `tokens` rows in the pass.
    fn split(&mut self, sequence: usize, positions: usize, tokens: usize) {
        let splits = positions.div_ceil(SPLIT);
        let (sequence, before) = (int(sequence), int(self.partials));
        let split = |index| Split { sequence, index: int(index), before, unused: 0 };
        self.splits.extend((0..splits).map(split));
        self.partials += splits * tokens;
    }

    /// Where the parts of what is copied begin, and where they end.
    pub(super) fn places(&self, geometry: &Geometry) -> Places {
        let hidden = self.tokens * geometry.hidden_size * 4;
        let turns = hidden.next_multiple_of(16);
        let sequences = turns + self.tokens * (geometry.head_size / 2) * 8;
        let rows = sequences + self.sequences.len() * size_of::<Sequence>();
        let splits = (rows + self.tokens * 4).next_multiple_of(size_of::<Split>());
        Places { turns, sequences, rows, splits, end: splits + size_of_val(&self.splits[..]) }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) turns: usize,
    pub(super) sequences: usize,
    pub(super) rows: usize,
    pub(super) splits: usize,
    pub(super) end: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_splits_are_launched_for_nobody() {
        for splits in 0..5000 {
            let launched = launched(splits);
            assert!(launched >= splits && (launched - splits) * 4 <= splits, "{splits}");
            assert!(launched <= splits.next_power_of_two(), "{splits}");
        }
        let distinct: std::collections::BTreeSet<_> = (1..=4096).map(launched).collect();
        assert!(distinct.len() <= 8 + 4 * 9, "{}", distinct.len());
    }
}
