//! The gated activation of the MLP (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use candle_core::{CpuStorage, Error, InplaceOp2, Layout, Result, Tensor};

use super::{values, values_mut};
use crate::kernel;

/// `silu(gate) * up`, value by value, in the place of `gate`, which nobody else holds; both are
/// `[tokens, values]`.
pub(crate) fn swiglu(gate: Tensor, up: &Tensor) -> Result<Tensor> {
    gate.inplace_op2(up, &Swiglu)?;
    Ok(gate)
}

struct Swiglu;

impl InplaceOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &mut CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<()> {
        let up = values(self.name(), up, up_layout)?;
        let gate = values_mut(self.name(), gate, gate_layout)?;
        if gate.len() != up.len() {
            let (lhs, rhs) = (gate_layout.shape().clone(), up_layout.shape().clone());
            return Err(Error::ShapeMismatchBinaryOp { lhs, rhs, op: self.name() }.bt());
        }
        kernel::swiglu(gate, up);
        Ok(())
    }
}
