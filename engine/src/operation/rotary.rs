//! Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>).

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::{rows_of, values_mut};
use crate::kernel::{self, RopeTable};

/// Turns each head of queries or keys by an angle that grows with the position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotary<'a> {
    /// Made for heads of this size.
    pub(crate) table: &'a RopeTable,
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    /// That of each token.
    pub(crate) positions: &'a [usize],
}

impl Rotary<'_> {
    /// Turns `input`, `[tokens, heads * head_size]`, in its place: nobody else holds it.
    pub(crate) fn forward(self, input: Tensor) -> Result<Tensor> {
        input.inplace_op1(&self)?;
        Ok(input)
    }
}

impl InplaceOp1 for Rotary<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        rows_of(self.name(), layout, self.heads * self.head_size)?;
        let heads = values_mut(self.name(), storage, layout)?;
        kernel::rope_at(self.table, heads, self.heads, self.positions);
        Ok(())
    }
}
