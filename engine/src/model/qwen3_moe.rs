//! The sparse models of Qwen3: Qwen3 with experts.
//!
//! Paper: Yang et al. 2025, <https://arxiv.org/abs/2505.09388>.
//! Reference: `Qwen3MoeForCausalLM`, `transformers/models/qwen3_moe/modeling_qwen3_moe.py`.
//!
//! Configuration: Qwen3's, with the number of experts, how many of them a token goes through, the size of
//! one, and whether the weights of a token's experts are scaled to add up to 1. Attention is Qwen3's; in the
//! place of the MLP are [experts](super::experts).

use std::sync::Arc;

use super::experts::ExpertMlp;
use super::llama::LlamaBlock;
use super::qwen3::Attention;
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::RopeTable;

/// Takes block `index` out of a checkpoint of a sparse Qwen3.
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
