//! Experts: MLPs of which each token goes through a few.
//!
//! Paper: Shazeer et al. 2017, <https://arxiv.org/abs/1701.06538>.
//!
//! The router gives each token a logit for each expert. The token goes through those with the largest; what
//! they make of it is added up with weights, the softmax of their logits. All tokens of a pass that go
//! through an expert go through it together, so that its matrices are read once. What a token's experts make
//! of it is added in the order of their numbers, so that its bits do not depend on the tokens beside it.

use candle_core::Tensor;
use umbel_shard::Experts;
use umbel_shard::layout::ExpertNames;

use super::llama::{BlockMlp, Mlp};
use crate::block::{MlpParts, Pass};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::{self, Arithmetic};
use crate::operation::linear::Linear;
use crate::operation::route::{Routing, route};
use crate::operation::with_values;

/// The experts of a block, and what chooses among them.
pub(crate) struct ExpertMlp {
    router: Linear,
    experts: Vec<Mlp>,
    choice: Experts,
}

impl ExpertMlp {
    /// Takes the tensors of the block `name`.
    pub(super) fn load(checkpoint: Checkpoint<'_>, name: &str) -> Result<Self, LoadTensorError> {
        let config = checkpoint.config;
        let choice = config.experts.ok_or(LoadTensorError::NoExperts { family: config.family })?;
        let names = ExpertNames::of(config.family);
        // A choice hangs by a hair where two logits are alike: activations are not rounded for it.
        let exact = Checkpoint { arithmetic: Arithmetic::Exact, ..checkpoint };
        let router = format!("{name}.{}", names.router);
        let expert = |index| {
            let parts = names.expert(index).map(|part| format!("{name}.{part}"));
            Mlp::load(checkpoint, parts)
        };
        Ok(Self {
            router: exact.linear(&router, [choice.count, config.hidden_size], false)?,
            experts: (0..choice.count).map(expert).collect::<Result<_, _>>()?,
            choice,
        })
    }

    /// What chooses: from a hidden state to a logit for each expert.
    pub(crate) const fn router(&self) -> &Linear {
        &self.router
    }

    /// One of the experts.
    pub(crate) fn expert(&self, index: usize) -> &Mlp {
        &self.experts[index]
    }

    /// The ways of tokens with these logits, `[tokens, experts]`.
    pub(crate) fn route(&self, logits: &[f32]) -> Routing {
        route(self.choice, logits)
    }

    /// What the experts make of `hidden`; both are `[tokens, hidden]`.
    fn compute(&self, hidden: &[f32]) -> Vec<f32> {
        let size = self.router.columns();
        let routing = self.route(&self.router.multiply(hidden));
        let inputs = routing.gather(hidden, size);
        let experts = || routing.groups().iter().map(|group| &self.experts[group.expert]);
        let first = experts().zip(&inputs).map(|(expert, input)| {
            let Mlp { gate_proj, up_proj, .. } = expert;
            ([gate_proj, up_proj], &input[..])
        });
        let gated = Linear::multiply_groups(&first.collect::<Vec<_>>()).into_iter();
        let gated = gated.map(|[mut gate, up]| {
            kernel::swiglu(&mut gate, &up);
            gate
        });
        let gated: Vec<_> = gated.collect();
        let second = experts().zip(&gated).map(|(expert, gated)| ([&expert.down_proj], &gated[..]));
        let outputs = Linear::multiply_groups(&second.collect::<Vec<_>>()).into_iter();
        let outputs: Vec<_> = outputs.map(|[output]| output).collect();
        routing.sum(&outputs, size)
    }
}

impl BlockMlp for ExpertMlp {
    fn forward(&self, hidden: &Tensor, _pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let outputs = with_values(hidden, |hidden| self.compute(hidden))?;
        Tensor::from_vec(outputs, hidden.shape(), hidden.device())
    }

    fn parts(&self) -> MlpParts<'_> {
        MlpParts::Experts(self)
    }
}
