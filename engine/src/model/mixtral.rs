//! Mixtral: Mistral with experts.
//!
//! Paper: Jiang et al. 2024, <https://arxiv.org/abs/2401.04088>.
//! Reference: `MixtralForCausalLM`, `transformers/models/mixtral/modeling_mixtral.py`.
//!
//! Configuration: Mistral's, mostly without a window, with the number of experts and how many of them a token
//! goes through. Attention is Llama's; in the place of the MLP are [experts](super::experts), whose weights
//! add up to 1 for each token. They are called otherwise: `w1` is the gate, `w3` is up and `w2` is down.

use std::sync::Arc;

use super::experts::ExpertMlp;
use super::llama::{Attention, LlamaBlock};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::RopeTable;

/// Takes block `index` out of a Mixtral checkpoint.
pub(super) fn load_block(
    checkpoint: Checkpoint<'_>,
    index: u32,
    rope: &Arc<RopeTable>,
) -> Result<LlamaBlock<Attention, ExpertMlp>, LoadTensorError> {
    let name = format!("model.layers.{index}");
    let window = checkpoint.window(index);
    let self_attn = Attention::load(checkpoint, &format!("{name}.self_attn"), window, rope)?;
    let mlp = ExpertMlp::load(checkpoint, &name)?;
    LlamaBlock::with_mlp(checkpoint, &name, self_attn, mlp)
}
