//! Experts during training: forward over whole sequences, and back.
//!
//! A token's output is the sum of what its experts make of it times their weights, so that its gradient
//! reaches each expert times the weight, and each weight as the product with what the expert made. Which
//! experts a token goes through is taken for given: it changes in steps, where there is no gradient.
//!
//! The matrices of experts are frozen: adapters have no part of them.

use super::dense::{add_scaled, dot};
use super::lora::Layer;
use super::swiglu;
use crate::kernel;
use crate::model::experts::ExpertMlp;
use crate::model::llama::Mlp;
use crate::operation::linear::Linear;
use crate::operation::route::{Group, Routing};

/// The experts of a block, and what is called between parts of the work.
#[derive(Clone, Copy)]
pub(super) struct TrainedExperts<'a> {
    pub(super) mlp: &'a ExpertMlp,
    pub(super) pause: &'a dyn Fn(),
}

/// What an expert computes of its tokens.
struct Activations {
    gate: Vec<f32>,
    up: Vec<f32>,
    gated: Vec<f32>,
    output: Vec<f32>,
}

impl TrainedExperts<'_> {
    /// What the experts make of `normed`; both are `[tokens, hidden]`.
    pub(super) fn forward(&self, normed: &[f32]) -> Vec<f32> {
        let routing = self.mlp.route(&self.layer(self.mlp.router()).forward(normed));
        let outputs = routing.groups().iter().map(|group| {
            let input = group.gather(normed, self.size());
            self.activations(self.mlp.expert(group.expert), &input).output
        });
        routing.sum(&outputs.collect::<Vec<_>>(), self.size())
    }

    /// From the gradient of what the experts make of `normed` to that of `normed`.
    pub(super) fn backward(&self, normed: &[f32], gradient: &[f32]) -> Vec<f32> {
        let logits = self.layer(self.mlp.router()).forward(normed);
        let routing = self.mlp.route(&logits);
        let groups = routing.groups().iter();
        let (outputs, of_inputs): (Vec<_>, Vec<_>) =
            groups.map(|group| self.backward_group(&routing, group, normed, gradient)).unzip();
        let mut of_weights = Vec::new();
        let mut of_normed = vec![0.0; normed.len()];
        let rows = gradient.chunks_exact(self.size());
        let tokens = of_normed.chunks_exact_mut(self.size()).zip(rows);
        for ((of_normed, gradient), steps) in tokens.zip(routing.of_tokens()) {
            for step in steps {
                let row = step.row * self.size()..(step.row + 1) * self.size();
                of_weights.push(dot(gradient, &outputs[step.group][row.clone()]));
                add_scaled(of_normed, 1.0, &of_inputs[step.group][row]);
            }
        }
        (self.pause)();
        let of_logits = routing.of_logits(&of_weights, &logits);
        self.layer(self.mlp.router()).backward(normed, &of_logits, &mut of_normed);
        of_normed
    }

    /// What an expert makes of its tokens, and the gradient of what enters it.
    fn backward_group(
        &self,
        routing: &Routing,
        group: &Group,
        normed: &[f32],
        gradient: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let expert = self.mlp.expert(group.expert);
        let input = group.gather(normed, self.size());
        let Activations { gate, up, gated, output } = self.activations(expert, &input);
        let mut of_output = group.gather(gradient, self.size());
        let weights = routing.weights_of(group);
        for (row, weight) in of_output.chunks_exact_mut(self.size()).zip(weights) {
            row.iter_mut().for_each(|value| *value *= weight);
        }
        let mut of_gated = vec![0.0; gated.len()];
        self.layer(&expert.down_proj).backward(&gated, &of_output, &mut of_gated);
        let [of_gate, of_up] = swiglu::gradients(&gate, &up, &of_gated);
        let mut of_input = vec![0.0; input.len()];
        self.layer(&expert.gate_proj).backward(&input, &of_gate, &mut of_input);
        self.layer(&expert.up_proj).backward(&input, &of_up, &mut of_input);
        (output, of_input)
    }

    fn activations(&self, expert: &Mlp, input: &[f32]) -> Activations {
        let gate = self.layer(&expert.gate_proj).forward(input);
        let up = self.layer(&expert.up_proj).forward(input);
        let mut gated = gate.clone();
        kernel::swiglu(&mut gated, &up);
        let output = self.layer(&expert.down_proj).forward(&gated);
        Activations { gate, up, gated, output }
    }

    /// Values of a hidden state.
    fn size(&self) -> usize {
        self.mlp.router().columns()
    }

    fn layer<'b>(&'b self, linear: &'b Linear) -> Layer<'b> {
        Layer { linear, lora: None, pause: self.pause }
    }
}
