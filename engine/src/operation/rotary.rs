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
    position: usize,
}

impl Rotary {
    /// For `heads` of the size for which `table` was made, the first token at `position`.
    pub(crate) fn new(
        table: &Arc<RopeTable>,
        heads: usize,
        head_size: usize,
        position: usize,
    ) -> Self {
        Self { table: Arc::clone(table), heads, head_size, position }
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
        kernel::rope(&self.table, &mut output, self.heads, self.position);
        Ok(computed(output, tokens, columns))
    }
}
