//! The gated activation of the MLP (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::{computed, rows_of, values};
use crate::kernel;

/// `silu(gate) * up`, value by value; both are `[tokens, values]`.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, Swiglu)
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, columns) = gate_layout.shape().dims2()?;
        rows_of(self.name(), up_layout, columns)?;
        let gate = values(self.name(), gate, gate_layout)?;
        let up = values(self.name(), up, up_layout)?;
        let mut output = vec![0.0; gate.len()];
        kernel::swiglu(gate, up, &mut output);
        Ok(computed(output, tokens, columns))
    }
}
