//! What a model asks of a machine at least: bytes to read for a token, operations for a prompt.

use umbel_engine::limits::Unit;
use umbel_shard::layout::ExpertPart;
use umbel_shard::manifest::ManifestTensor;
use umbel_shard::{Manifest, ModelConfig, WeightType};

use super::machine::Machine;

/// What is read and multiplied, whoever computes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Work {
    /// Bytes of the weights that every step reads once: all blocks but for their experts, the last norm
    /// and the head. Of the embedding it reads a row.
    weight_bytes: f64,
    /// Bytes of all experts, and the share of them that a token goes through.
    experts: (f64, f64),
    /// Bytes of the keys and values of one token, for each block, and how many tokens it looks back.
    kv: Vec<Past>,
    /// Weights of the blocks' matrices that a token meets, by the unit that multiplies them.
    blocks: Vec<(Unit, f64)>,
    /// The same of the head, which only the last token of a prompt needs.
    head: Vec<(Unit, f64)>,
    /// Multiplications and additions of one token's attention with one other in one block.
    attention: f64,
}

/// What one block keeps of the tokens before.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Past {
    token_bytes: f64,
    window: f64,
}

/// A weight and an activation are multiplied and added.
const OPERATIONS_PER_PRODUCT: f64 = 2.0;

impl Work {
    /// What a model of this shape asks, whose files are here.
    pub(super) fn of(config: &ModelConfig, manifest: &Manifest) -> Self {
        let blocks: Vec<_> = (0..config.block_count)
            .flat_map(|index| manifest.block(index).unwrap_or(&[]))
            .collect();
        let head: Vec<_> = manifest.head().iter().collect();
        let share =
            config.experts.map_or(1.0, |experts| experts.per_token as f64 / experts.count as f64);
        let (experts, dense): (Vec<_>, Vec<_>) =
            blocks.iter().partition(|tensor| is_of_expert(tensor));
        let bytes = |tensors: &[&ManifestTensor]| tensors.iter().map(|one| one.bytes).sum::<u64>();
        let products = products_of(&dense)
            .into_iter()
            .chain(products_of(&experts).into_iter().map(|(unit, count)| (unit, count * share)));
        let kv = config.attention_windows.iter().map(|window| Past {
            token_bytes: config.kv_token_bytes_per_block() as f64,
            window: window.map_or(f64::INFINITY, |tokens| tokens as f64),
        });
        // A query by a key, and a weight by a value: two products for each value of a head.
        let of_attention = 2.0 * (config.head_count * config.head_size) as f64;
        Self {
            weight_bytes: (bytes(&dense) + bytes(&head)) as f64,
            experts: (bytes(&experts) as f64, share),
            kv: kv.collect(),
            blocks: products.collect(),
            head: products_of(&head),
            attention: OPERATIONS_PER_PRODUCT * of_attention,
        }
    }

    /// Bytes that a step of one token of each of `clients` reads, each after `past` tokens, itself
    /// among them. Experts are read that some client's token goes through: as many as there would be if each
    /// token chose by chance.
    pub(super) fn step_bytes(&self, clients: f64, past: f64) -> f64 {
        let kv: f64 = self.kv.iter().map(|kv| kv.token_bytes * past.min(kv.window)).sum();
        let (expert_bytes, share) = self.experts;
        let met = 1.0 - (1.0 - share).powf(clients);
        self.weight_bytes + expert_bytes * met + clients * kv
    }

    /// The share of the `read` bytes a second that memory gives, where `clients` together get
    /// `tokens_per_second`, each after `past` tokens, and one step serves them all.
    pub(super) fn of_reading(
        &self,
        read: f64,
        tokens_per_second: f64,
        clients: f64,
        past: f64,
    ) -> f64 {
        self.step_bytes(clients, past) * tokens_per_second / clients / read
    }

    /// The same of the rate at which its units multiply.
    pub(super) fn of_arithmetic(
        &self,
        machine: &Machine,
        tokens_per_second: f64,
        past: f64,
    ) -> f64 {
        let attention = self.kv.iter().map(|kv| past.min(kv.window)).sum::<f64>() * self.attention;
        let products = seconds(&self.blocks, machine) + seconds(&self.head, machine);
        (products + attention / machine.operations(Unit::Binary32)) * tokens_per_second
    }

    /// Multiplications and additions for a prompt, of which only the last token needs the head.
    pub(super) fn prompt_operations(&self, tokens: f64) -> f64 {
        let sum = |products: &[(Unit, f64)]| products.iter().map(|(_, count)| count).sum::<f64>();
        let products = tokens * sum(&self.blocks) + sum(&self.head);
        OPERATIONS_PER_PRODUCT * products + self.prompt_attention(tokens)
    }

    /// The share that a prompt of `tokens`, read at `tokens_per_second`, has of the rate at which the
    /// units of `machine` multiply: each product at its own unit's rate, attention in binary32.
    pub(super) fn prompt_of_arithmetic(
        &self,
        machine: &Machine,
        tokens_per_second: f64,
        tokens: f64,
    ) -> f64 {
        let products = tokens * seconds(&self.blocks, machine) + seconds(&self.head, machine);
        let attention = self.prompt_attention(tokens) / machine.operations(Unit::Binary32);
        (products + attention) * tokens_per_second / tokens
    }

    /// Each token attends to itself and to those before it, as far back as the window.
    fn prompt_attention(&self, tokens: f64) -> f64 {
        let pairs = |Past { window, .. }: &Past| {
            let outside = (tokens - window).max(0.0);
            (tokens * (tokens + 1.0) - outside * (outside + 1.0)) / 2.0
        };
        self.attention * self.kv.iter().map(pairs).sum::<f64>()
    }
}

/// How long the units of `machine` need for one token.
fn seconds(products: &[(Unit, f64)], machine: &Machine) -> f64 {
    let seconds = |(unit, count): &(Unit, f64)| count / machine.operations(*unit);
    OPERATIONS_PER_PRODUCT * products.iter().map(seconds).sum::<f64>()
}

/// Whether a tensor of a block is a matrix of an expert.
fn is_of_expert(tensor: &ManifestTensor) -> bool {
    matches!(ExpertPart::of(&tensor.name), Some(ExpertPart::GateUp | ExpertPart::Down))
}

/// Weights of matrices by unit; norms and biases are no products.
fn products_of(tensors: &[&ManifestTensor]) -> Vec<(Unit, f64)> {
    let matrices = tensors.iter().filter(|tensor| tensor.shape.len() > 1);
    let typed = matrices.filter_map(|tensor| Some((tensor.place?.weight_type, tensor)));
    typed
        .map(|(kind, tensor)| (unit_of(kind), tensor.shape.iter().product::<usize>() as f64))
        .collect()
}

/// What multiplies weights of this type by the engine's custom.
const fn unit_of(kind: WeightType) -> Unit {
    match kind {
        WeightType::F32 | WeightType::F16 => Unit::Binary32,
        WeightType::BF16 => Unit::Bfloat16,
        WeightType::Q4_0
        | WeightType::Q4_1
        | WeightType::Q5_0
        | WeightType::Q5_1
        | WeightType::Q8_0
        | WeightType::Q4K
        | WeightType::Q5K
        | WeightType::Q6K => Unit::Integer8,
    }
}

#[cfg(test)]
mod tests;
