//! Mistral: Llama whose tokens see only the most recent positions.
//!
//! Paper: Jiang et al. 2023, <https://arxiv.org/abs/2310.06825>.
//! Reference: `MistralForCausalLM`, `transformers/models/mistral/modeling_mistral.py`.
//!
//! Configuration: Llama's and `sliding_window`, which counts the token itself; later releases leave
//! it out and see everything. There are no biases. Attention is Llama's within the window; what lies
//! before it still reaches a token through the blocks beneath. MLP and block are Llama's.

use std::sync::Arc;

use super::llama::{Attention, LlamaBlock};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::RopeTable;

/// Takes block `index` out of a Mistral checkpoint.
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
