//! Qwen3 (dense): Llama with norms on queries and keys.
//!
//! Paper: Yang et al. 2025, <https://arxiv.org/abs/2505.09388>.
//! Reference: `Qwen3ForCausalLM`, `transformers/models/qwen3/modeling_qwen3.py`.
//!
//! Configuration: Llama's, with a `head_dim` that need not be hidden size by heads; windows are as in
//! Qwen2. Attention norms each head of queries and keys over its own values before it turns them to
//! their positions. MLP and block are Llama's.

use std::sync::Arc;

use candle_core::Tensor;

use super::llama::{self, LlamaBlock, SelfAttention};
use crate::block::Pass;
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::RopeTable;
use crate::operation::rms_norm::RmsNorm;

/// Takes block `index` out of a Qwen3 checkpoint.
pub(super) fn load_block(
    checkpoint: Checkpoint<'_>,
    index: u32,
    rope: &Arc<RopeTable>,
) -> Result<LlamaBlock<Attention>, LoadTensorError> {
    let name = format!("model.layers.{index}");
    let self_attn =
        Attention::load(checkpoint, &format!("{name}.self_attn"), checkpoint.window(index), rope)?;
    LlamaBlock::load(checkpoint, &name, self_attn)
}

/// Llama's attention with a norm over each head of queries and of keys.
pub(super) struct Attention {
    inner: llama::Attention,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
}

impl Attention {
    /// Takes the tensors under `name`; a token sees `window` positions, or all before it.
    pub(super) fn load(
        checkpoint: Checkpoint<'_>,
        name: &str,
        window: Option<usize>,
        rope: &Arc<RopeTable>,
    ) -> Result<Self, LoadTensorError> {
        let head_size = checkpoint.config.head_size;
        Ok(Self {
            inner: llama::Attention::load(checkpoint, name, window, rope)?,
            q_norm: checkpoint.rms_norm(&format!("{name}.q_norm"), head_size)?,
            k_norm: checkpoint.rms_norm(&format!("{name}.k_norm"), head_size)?,
        })
    }
}

impl SelfAttention for Attention {
    fn forward(&self, hidden: &Tensor, pass: &mut Pass<'_>) -> candle_core::Result<Tensor> {
        let (queries, keys, values) = self.inner.project(hidden, pass)?;
        let normed = (self.q_norm.forward(&queries)?, self.k_norm.forward(&keys)?, values);
        self.inner.attend(normed, pass)
    }

    fn inner(&self) -> &llama::Attention {
        &self.inner
    }

    fn norms(&self) -> Option<[&RmsNorm; 2]> {
        Some([&self.q_norm, &self.k_norm])
    }
}
