//! Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{computed, rows_of, values};
use crate::kernel::{self, RopeTable};

/// Turns each head of queries or keys by an angle that grows with the position.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    table: Arc<RopeTable>,
    heads: usize,
    head_size: usize,
    positions: Arc<[usize]>,
}

impl Rotary {
    /// For `heads` of the size for which `table` was made, each token at its own of `positions`.
    pub(crate) fn new(
        table: &Arc<RopeTable>,
        heads: usize,
        head_size: usize,
        positions: &Arc<[usize]>,
    ) -> Self {
        let (table, positions) = (Arc::clone(table), Arc::clone(positions));
        Self { table, heads, head_size, positions }
    }

    /// Keeps the shape of `input`, `[tokens, heads * head_size]`.
    pub(crate) fn forward(self, input: &Tensor) -> Result<Tensor> {
        input.apply_op1(self)
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let columns = self.heads * self.head_size;
        let tokens = rows_of(self.name(), layout, columns)?;
        let mut output = values(self.name(), storage, layout)?.to_vec();
        kernel::rope_at(&self.table, &mut output, self.heads, &self.positions);
        Ok(computed(output, tokens, columns))
    }
}
