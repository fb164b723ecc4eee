//! The additions around which a block is built.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::values;
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
        let count = values(self.name(), change, change_layout)?.len();
        let input = values(self.name(), input, input_layout)?;
        if input.len() != count {
            return Err(candle_core::Error::ShapeMismatchBinaryOp {
                lhs: change_layout.shape().clone(),
                rhs: input_layout.shape().clone(),
                op: self.name(),
            }
            .bt());
        }
        let CpuStorage::F32(change) = change else {
            unreachable!("its values were read as binary32")
        };
        kernel::add(&mut change[change_layout.start_offset()..][..count], input);
        Ok(())
    }
}
