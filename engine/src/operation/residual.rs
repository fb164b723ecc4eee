//! The additions around which a block is built.

use candle_core::{CpuStorage, Error, InplaceOp2, Layout, Result, Tensor};

use super::{values, values_mut};
use crate::kernel;

/// Adds `input` to `change`, which nobody else holds, in its place; both are `[tokens, values]`.
///
/// Candle's own addition takes another tensor and, for long ones, threads of its own that wait for
/// each other without sleeping, on the cores that ours compute on.
pub(crate) fn add(change: Tensor, input: &Tensor) -> Result<Tensor> {
    change.inplace_op2(input, &Add)?;
    Ok(change)
}

struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "residual addition"
    }

    fn cpu_fwd(
        &self,
        change: &mut CpuStorage,
        change_layout: &Layout,
        input: &CpuStorage,
        input_layout: &Layout,
    ) -> Result<()> {
        let input = values(self.name(), input, input_layout)?;
        let change = values_mut(self.name(), change, change_layout)?;
        if change.len() != input.len() {
            let (lhs, rhs) = (change_layout.shape().clone(), input_layout.shape().clone());
            return Err(Error::ShapeMismatchBinaryOp { lhs, rhs, op: self.name() }.bt());
        }
        kernel::add(change, input);
        Ok(())
    }
}
