//! What adapters add to the product of a matrix: `y = W x + b + scale B A x` (Hu et al. 2021,
//! <https://arxiv.org/abs/2106.09685>), or rows of that which are scaled to learned norms
//! ([`dora`](crate::train::dora)), for the rows of the sessions that have one; and what they add to the
//! hidden states of a session's first tokens.
//!
//! The rows of all sessions with the same adapter go through its two matrices together, and rows
//! without one are not touched. Each output is one sum in one order, as in training, so that the bits
//! of a row depend on no other.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::linear::Linear;
use super::{rows_of, values, values_mut, with_values};
use crate::block::{Pass, Stretch};
use crate::train::adapter::{LoraMatrices, TargetModule};
use crate::train::dense::times_transposed;
use crate::train::dora::RowScales;
use crate::train::prompt;

/// Adds to `product`, which nobody else holds, what the adapters of a pass have for `module`; `input`
/// is what was multiplied.
pub(crate) fn add(
    pass: &Pass<'_>,
    (module, linear): (TargetModule, &Linear),
    input: &Tensor,
    product: Tensor,
) -> Result<Tensor> {
    let groups = Group::of(pass, module, linear);
    if !groups.is_empty() {
        product.inplace_op2(input, &Adapted(groups))?;
    }
    Ok(product)
}

/// Adds to what enters a block what the adapters of its pass have for the first tokens of each session.
/// Most passes have no such token, and go on with `hidden` as it is.
pub(crate) fn add_prompts(pass: &Pass<'_>, hidden: Tensor) -> Result<Tensor> {
    let width = hidden.dim(1)?;
    if pass.stretches.iter().all(|stretch| prompt_of(stretch, pass.block, width).is_none()) {
        return Ok(hidden);
    }
    // Whoever handed the rows in may still read them.
    let mut rows = with_values(&hidden, <[f32]>::to_vec)?;
    let mut start = 0;
    for stretch in &pass.stretches {
        let end = start + stretch.tokens * width;
        if let Some(prompt) = prompt_of(stretch, pass.block, width) {
            let positions = stretch.position..stretch.position + stretch.tokens;
            prompt::add(prompt, [positions], width, &mut rows[start..end]);
        }
        start = end;
    }
    Tensor::from_vec(rows, hidden.shape(), hidden.device())
}

/// What is added to some of a session's tokens before a block; a session goes on behind its prompt.
fn prompt_of<'a>(stretch: &Stretch<'a>, block: u32, width: usize) -> Option<&'a [f32]> {
    let prompt = stretch.adapter?.parameters().prompt_of(block)?;
    (stretch.position * width < prompt.len()).then_some(prompt)
}

/// Rows with the same matrices.
struct Group<'a> {
    matrices: &'a LoraMatrices,
    scale: f32,
    rows: Vec<Range<usize>>,
    /// What the rows of the product are scaled by, where they are, and what was added to them.
    scales: Option<Arc<RowScales>>,
    bias: Option<&'a [f32]>,
}

impl<'a> Group<'a> {
    fn of(pass: &'a Pass<'_>, module: TargetModule, linear: &'a Linear) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut start = 0;
        for stretch in &pass.stretches {
            let rows = start..start + stretch.tokens;
            start = rows.end;
            let Some(adapter) = stretch.adapter else { continue };
            let Some(matrices) = adapter.parameters().at(pass.block, module) else { continue };
            match groups.iter_mut().find(|group| std::ptr::eq(group.matrices, matrices)) {
                Some(group) => group.rows.push(rows),
                None => {
                    let scale = adapter.config().scale();
                    let scales = matrices.row_scales(linear, scale, &|| ());
                    let (rows, bias) = (vec![rows], linear.bias());
                    groups.push(Self { matrices, scale, rows, scales, bias });
                }
            }
        }
        groups
    }

    fn add(&self, input: &[f32], product: &mut [f32]) {
        let [outputs, inputs] = self.matrices.shape();
        let gather = |rows: &Range<usize>| &input[rows.start * inputs..rows.end * inputs];
        let input = match self.rows.as_slice() {
            [alone] => gather(alone).to_vec(),
            rows => rows.iter().flat_map(gather).copied().collect(),
        };
        let inner = times_transposed(&input, self.matrices.a(), inputs);
        let mut added = times_transposed(&inner, self.matrices.b(), self.matrices.rank());
        let mut added = added.as_mut_slice();
        for rows in &self.rows {
            let product = &mut product[rows.start * outputs..rows.end * outputs];
            let added = added.split_off_mut(..product.len()).expect("a sum for each output");
            added.iter_mut().for_each(|added| *added *= self.scale);
            match &self.scales {
                None => product.iter_mut().zip(added).for_each(|(y, added)| *y += *added),
                Some(scales) => scales.apply(self.bias, product, None, added),
            }
        }
    }
}

struct Adapted<'a>(Vec<Group<'a>>);

impl InplaceOp2 for Adapted<'_> {
    fn name(&self) -> &'static str {
        "adapter"
    }

    fn cpu_fwd(
        &self,
        product: &mut CpuStorage,
        product_layout: &Layout,
        input: &CpuStorage,
        input_layout: &Layout,
    ) -> Result<()> {
        for group in &self.0 {
            let [outputs, inputs] = group.matrices.shape();
            rows_of(self.name(), product_layout, outputs)?;
            rows_of(self.name(), input_layout, inputs)?;
            let input = values(self.name(), input, input_layout)?;
            group.add(input, values_mut(self.name(), product, product_layout)?);
        }
        Ok(())
    }
}
