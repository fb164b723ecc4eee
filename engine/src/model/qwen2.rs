//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.
//!
//! Papers: Yang et al. 2024, <https://arxiv.org/abs/2407.10671> and
//! <https://arxiv.org/abs/2412.15115>.
//! Reference: `Qwen2ForCausalLM`, `transformers/models/qwen2/modeling_qwen2.py`.
//!
//! Configuration: Llama's; the biases of q, k and v are part of the architecture and o has none
//! (the configuration is read so); where `use_sliding_window` is on, `layer_types` names the blocks
//! that have a window. Attention is Llama's with these biases; MLP and block are Llama's.

use std::sync::Arc;

use super::llama::{Attention, LlamaBlock};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::RopeTable;

/// Takes block `index` out of a Qwen2 checkpoint.
pub(super) fn load_block(
    checkpoint: Checkpoint<'_>,
    index: u32,
    rope: &Arc<RopeTable>,
) -> Result<LlamaBlock<Attention>, LoadTensorError> {
    let name = format!("model.layers.{index}");
    let window = checkpoint.window(index);
    let self_attn = Attention::load(checkpoint, &format!("{name}.self_attn"), window, rope)?;
    LlamaBlock::load(checkpoint, &name, self_attn)
}
