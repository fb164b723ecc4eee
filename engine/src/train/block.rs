//! One block forward over whole sequences, and its gradients.
//!
//! The order of operations is that of [`model::llama`](crate::model); the families that the engine
//! knows differ in biases, in norms of queries and keys, in windows, and in having
//! [experts](super::experts).

use std::borrow::Cow;

use super::adapter::{Adapter, LoraMatrices, Parameters, TargetModule};
use super::attention::{self, Attended};
use super::dropout::Mask;
use super::experts::TrainedExperts;
use super::lora::{Layer, Lora};
use super::{Sequence, norm, prompt, swiglu};
use crate::block::{BlockParts, MlpParts};
use crate::kernel::{self, RopeTable};
use crate::operation::linear::Linear;
use crate::operation::rms_norm::RmsNorm;

/// A block with what an adapter adds to it, and the sequences that go through it.
pub(super) struct TrainedBlock<'a> {
    index: u32,
    parts: BlockParts<'a>,
    adapter: Option<&'a Adapter>,
    /// Those in which something is dropped: all that go through, or none.
    sequences: &'a [Sequence],
    lengths: &'a [usize],
    positions: &'a [usize],
    pause: &'a dyn Fn(),
}

/// Queries or keys between their projection and attention.
struct Turned {
    /// Before they are normed, where they are.
    projected: Vec<f32>,
    /// At their positions.
    turned: Vec<f32>,
}

/// What the first half of a block computes.
struct AttentionActivations {
    normed: Vec<f32>,
    queries: Turned,
    keys: Turned,
    values: Vec<f32>,
    attended: Vec<f32>,
    /// The residual path behind it.
    hidden: Vec<f32>,
}

/// What the second half computes.
struct MlpActivations {
    normed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    gated: Vec<f32>,
}

impl<'a> TrainedBlock<'a> {
    pub(super) const fn new(
        index: u32,
        parts: BlockParts<'a>,
        adapter: Option<&'a Adapter>,
        sequences: &'a [Sequence],
        (lengths, positions): (&'a [usize], &'a [usize]),
        pause: &'a dyn Fn(),
    ) -> Self {
        Self { index, parts, adapter, sequences, lengths, positions, pause }
    }

    /// From what enters the block to what leaves it, `[tokens, hidden]`.
    pub(super) fn forward(&self, input: &[f32]) -> Vec<f32> {
        let hidden = self.attend(&self.prompted(input)).hidden;
        let mut output = match self.experts() {
            None => self.layer(TargetModule::Down).forward(&self.gate(&hidden).gated),
            Some(experts) => experts.forward(&self.parts.post_attention_layernorm.apply(&hidden)),
        };
        kernel::add(&mut output, &hidden);
        output
    }

    /// From the block's input and the gradient of its output to that of its input; those of the
    /// adapter's matrices go to `found`. Everything between is computed again.
    pub(super) fn backward(
        &self,
        input: &[f32],
        gradient: &[f32],
        found: &mut Parameters,
    ) -> Vec<f32> {
        let input = self.prompted(input);
        let activations = self.attend(&input);
        let of_hidden = self.backward_mlp(&activations.hidden, gradient, found);
        let of_input = self.backward_attention(&input, &activations, of_hidden, found);
        if let Some(prompt) = self.prompt() {
            // A sum has the gradients of what is added.
            let gradient =
                prompt::sum_of_first(&of_input, self.lengths, self.width(), prompt.len());
            found.block_prompts.insert(self.index, gradient);
        }
        of_input
    }

    /// What the adapter adds to the first tokens of each sequence.
    fn prompt(&self) -> Option<&'a [f32]> {
        self.adapter?.parameters().prompt_of(self.index)
    }

    fn width(&self) -> usize {
        self.parts.q_proj.columns()
    }

    /// What enters the block with what the adapter adds to it.
    fn prompted<'b>(&self, input: &'b [f32]) -> Cow<'b, [f32]> {
        let Some(prompt) = self.prompt() else { return Cow::Borrowed(input) };
        let mut input = input.to_vec();
        let rows = self.lengths.iter().map(|&tokens| 0..tokens);
        prompt::add(prompt, rows, self.width(), &mut input);
        Cow::Owned(input)
    }

    fn attend(&self, input: &[f32]) -> AttentionActivations {
        let normed = self.parts.input_layernorm.apply(input);
        let shape = self.parts.attention;
        let project = |module| self.layer(module).forward(&normed);
        let queries = project(TargetModule::Query);
        let queries = self.turn(queries, self.parts.q_norm, shape.heads);
        let keys = self.turn(project(TargetModule::Key), self.parts.k_norm, shape.kv_heads);
        let values = project(TargetModule::Value);
        let attended = self.attended(&queries, &keys, &values).forward(self.pause);
        let mut hidden = self.layer(TargetModule::Output).forward(&attended);
        kernel::add(&mut hidden, input);
        AttentionActivations { normed, queries, keys, values, attended, hidden }
    }

    /// What stands in the place of the MLP, where there are experts.
    fn experts(&self) -> Option<TrainedExperts<'_>> {
        match self.parts.mlp {
            MlpParts::Dense { .. } => None,
            MlpParts::Experts(mlp) => Some(TrainedExperts { mlp, pause: self.pause }),
        }
    }

    fn gate(&self, hidden: &[f32]) -> MlpActivations {
        let normed = self.parts.post_attention_layernorm.apply(hidden);
        let gate = self.layer(TargetModule::Gate).forward(&normed);
        let up = self.layer(TargetModule::Up).forward(&normed);
        let mut gated = gate.clone();
        kernel::swiglu(&mut gated, &up);
        MlpActivations { normed, gate, up, gated }
    }

    /// Norms heads where the family does, and turns them to their positions.
    fn turn(&self, projected: Vec<f32>, norm: Option<&RmsNorm>, heads: usize) -> Turned {
        let mut turned = norm.map_or_else(|| projected.clone(), |norm| norm.apply(&projected));
        kernel::rope_at(self.parts.rope, &mut turned, heads, self.positions);
        Turned { projected, turned }
    }

    fn attended<'b>(
        &'b self,
        queries: &'b Turned,
        keys: &'b Turned,
        values: &'b [f32],
    ) -> Attended<'b> {
        let (queries, keys) = (&queries.turned, &keys.turned);
        Attended { shape: self.parts.attention, queries, keys, values, lengths: self.lengths }
    }

    /// From the gradient of the block's output to that of the residual path between the halves.
    fn backward_mlp(&self, hidden: &[f32], gradient: &[f32], found: &mut Parameters) -> Vec<f32> {
        let norm = self.parts.post_attention_layernorm;
        let of_normed = match self.experts() {
            None => self.backward_dense(hidden, gradient, found),
            Some(experts) => experts.backward(&norm.apply(hidden), gradient),
        };
        let mut of_hidden = gradient.to_vec();
        norm::add_gradient(norm, hidden, &of_normed, &mut of_hidden);
        of_hidden
    }

    /// From the gradient of the block's output to that of what enters its MLP.
    fn backward_dense(&self, hidden: &[f32], gradient: &[f32], found: &mut Parameters) -> Vec<f32> {
        let MlpActivations { normed, gate, up, gated } = self.gate(hidden);
        let mut of_gated = vec![0.0; gated.len()];
        self.backward_layer(TargetModule::Down, &gated, gradient, &mut of_gated, found);
        let [of_gate, of_up] = swiglu::gradients(&gate, &up, &of_gated);
        let mut of_normed = vec![0.0; normed.len()];
        self.backward_layer(TargetModule::Gate, &normed, &of_gate, &mut of_normed, found);
        self.backward_layer(TargetModule::Up, &normed, &of_up, &mut of_normed, found);
        of_normed
    }

    /// From the gradient of the residual path between the halves to that of the block's input.
    fn backward_attention(
        &self,
        input: &[f32],
        activations: &AttentionActivations,
        of_hidden: Vec<f32>,
        found: &mut Parameters,
    ) -> Vec<f32> {
        let AttentionActivations { normed, queries, keys, values, attended, .. } = activations;
        let shape = self.parts.attention;
        let mut of_attended = vec![0.0; attended.len()];
        self.backward_layer(TargetModule::Output, attended, &of_hidden, &mut of_attended, found);
        let of = self.attended(queries, keys, values).backward(&of_attended, self.pause);
        let attention::Gradients { queries: of_queries, keys: of_keys, values: of_values } = of;
        let of_queries = self.turn_back(queries, of_queries, self.parts.q_norm, shape.heads);
        let of_keys = self.turn_back(keys, of_keys, self.parts.k_norm, shape.kv_heads);
        let mut of_normed = vec![0.0; normed.len()];
        for (module, gradient) in [
            (TargetModule::Query, &of_queries),
            (TargetModule::Key, &of_keys),
            (TargetModule::Value, &of_values),
        ] {
            self.backward_layer(module, normed, gradient, &mut of_normed, found);
        }
        let mut of_input = of_hidden;
        norm::add_gradient(self.parts.input_layernorm, input, &of_normed, &mut of_input);
        of_input
    }

    /// From the gradient of turned heads to that of projected ones.
    fn turn_back(
        &self,
        heads: &Turned,
        mut gradient: Vec<f32>,
        norm: Option<&RmsNorm>,
        head_count: usize,
    ) -> Vec<f32> {
        turn_back(self.parts.rope, &mut gradient, head_count, self.positions);
        let Some(norm) = norm else { return gradient };
        let mut of_projected = vec![0.0; gradient.len()];
        norm::add_gradient(norm, &heads.projected, &gradient, &mut of_projected);
        of_projected
    }

    fn backward_layer(
        &self,
        module: TargetModule,
        input: &[f32],
        gradient: &[f32],
        of_input: &mut [f32],
        found: &mut Parameters,
    ) {
        let matrices = self.layer(module).backward(input, gradient, of_input);
        if let Some(matrices) = matrices {
            found.matrices.insert((self.index, module), matrices);
        }
    }

    fn layer(&self, module: TargetModule) -> Layer<'_> {
        let lora = self.adapter.and_then(|adapter| {
            let matrices: &LoraMatrices = adapter.parameters().at(self.index, module)?;
            let (scale, dropout) = (adapter.config().scale(), adapter.config().dropout);
            let dropout = if self.sequences.is_empty() { 0.0 } else { dropout };
            let mask = Mask::new(dropout, self.index, module, self.sequences);
            Some(Lora { matrices, scale, mask })
        });
        let linear = linear_of(&self.parts, module).expect("no module of an MLP among experts");
        Layer { linear, lora, pause: self.pause }
    }
}

/// The matrix of `module`; `None` where experts stand in its place.
pub(crate) const fn linear_of<'a>(
    parts: &BlockParts<'a>,
    module: TargetModule,
) -> Option<&'a Linear> {
    match (module, parts.mlp) {
        (TargetModule::Query, _) => Some(parts.q_proj),
        (TargetModule::Key, _) => Some(parts.k_proj),
        (TargetModule::Value, _) => Some(parts.v_proj),
        (TargetModule::Output, _) => Some(parts.o_proj),
        (TargetModule::Gate, MlpParts::Dense { gate_proj, .. }) => Some(gate_proj),
        (TargetModule::Up, MlpParts::Dense { up_proj, .. }) => Some(up_proj),
        (TargetModule::Down, MlpParts::Dense { down_proj, .. }) => Some(down_proj),
        (TargetModule::Gate | TargetModule::Up | TargetModule::Down, MlpParts::Experts(_)) => None,
    }
}

/// Turns gradients of heads by the opposite angles, in their place: the transposed rotation.
///
/// With the signs of the second halves changed before and after, a rotation is its transpose.
fn turn_back(table: &RopeTable, values: &mut [f32], heads: usize, positions: &[usize]) {
    let change_signs = |values: &mut [f32]| {
        for head in values.chunks_exact_mut(table.head_size()) {
            head[table.head_size() / 2..].iter_mut().for_each(|value| *value = -*value);
        }
    };
    change_signs(values);
    kernel::rope_at(table, values, heads, positions);
    change_signs(values);
}
