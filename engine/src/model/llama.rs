//! Llama 1 to 3.x, and the parts from which its relatives are built.
//!
//! Papers: Touvron et al. 2023, <https://arxiv.org/abs/2302.13971> and
//! <https://arxiv.org/abs/2307.09288>; Grattafiori et al. 2024, <https://arxiv.org/abs/2407.21783>.
//! Reference: `LlamaForCausalLM`, `transformers/models/llama/modeling_llama.py`.
//!
//! A block is two residual steps, each with a norm at its entrance:
//! `h = x + attention(norm(x))`, then `h + mlp(norm(h))`. Attention has rotary positions and
//! grouped queries (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>); the MLP is gated.

use std::sync::Arc;

use candle_core::Tensor;
use umbel_shard::ModelConfig;

use crate::block::{Block, BlockParts, MlpParts, Pass};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::{AttentionShape, RopeTable};
use crate::operation::adapt;
use crate::operation::attention::attend;
use crate::operation::linear::Linear;
use crate::operation::residual;
use crate::operation::rms_norm::RmsNorm;
use crate::operation::rotary::Rotary;
use crate::operation::swiglu::swiglu;
use crate::train::TargetModule;

/// Takes block `index` out of a Llama checkpoint.
pub(super) fn load_block(
    checkpoint: Checkpoint<'_>,
    index: u32,
    rope: &Arc<RopeTable>,
) -> Result<LlamaBlock<Attention>, LoadTensorError> {
    let name = format!("model.layers.{index}");
    let self_attn = Attention::load(checkpoint, &format!("{name}.self_attn"), None, rope)?;
    LlamaBlock::load(checkpoint, &name, self_attn)
}

/// Attention between the projections of its input and that of its output.
pub(super) struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    rope: Arc<RopeTable>,
    shape: AttentionShape,
}

impl Attention {
    /// Takes the tensors under `name`; a token sees `window` positions, or all before it.
    ///
    /// Llama has biases where its configuration says so (`attention_bias` for all four matrices).
    pub(super) fn load(
        checkpoint: Checkpoint<'_>,
        name: &str,
        window: Option<usize>,
        rope: &Arc<RopeTable>,
    ) -> Result<Self, LoadTensorError> {
        let config = checkpoint.config;
        let (hidden, queries) = (config.hidden_size, config.head_count * config.head_size);
        let keys = config.kv_head_count * config.head_size;
        let linear =
            |part: &str, shape, bias| checkpoint.linear(&format!("{name}.{part}"), shape, bias);
        Ok(Self {
            q_proj: linear("q_proj", [queries, hidden], config.attention_bias)?,
            k_proj: linear("k_proj", [keys, hidden], config.attention_bias)?,
            v_proj: linear("v_proj", [keys, hidden], config.attention_bias)?,
            o_proj: linear("o_proj", [hidden, queries], config.output_bias)?,
            rope: Arc::clone(rope),
            shape: attention_shape(config, window),
        })
    }

    /// Queries `[tokens, heads * head_size]`, keys and values `[tokens, kv_heads * head_size]`.
    pub(super) fn project(
        &self,
        hidden: &Tensor,
        pass: &Pass<'_>,
    ) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let layers = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [queries, keys, values] = Linear::forward_all(layers, hidden)?;
        Ok((
            adapt::add(pass, (TargetModule::Query, &self.q_proj), hidden, queries)?,
            adapt::add(pass, (TargetModule::Key, &self.k_proj), hidden, keys)?,
            adapt::add(pass, (TargetModule::Value, &self.v_proj), hidden, values)?,
        ))
    }

    /// Turns queries and keys to their positions, attends, and projects what was attended to.
    pub(super) fn attend(
        &self,
        (queries, keys, values): (Tensor, Tensor, Tensor),
        pass: &mut Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        let AttentionShape { heads, kv_heads, head_size, .. } = self.shape;
        let (table, positions) = (&*self.rope, &*pass.positions);
        let queries = Rotary { table, heads, head_size, positions }.forward(queries)?;
        let keys = Rotary { table, heads: kv_heads, head_size, positions }.forward(keys)?;
        let attended = attend(self.shape, &queries, &keys, &values, &mut pass.stretches)?;
        let projected = self.o_proj.forward(&attended)?;
        adapt::add(pass, (TargetModule::Output, &self.o_proj), &attended, projected)
    }
}

fn attention_shape(config: &ModelConfig, window: Option<usize>) -> AttentionShape {
    AttentionShape {
        heads: config.head_count,
        kv_heads: config.kv_head_count,
        head_size: config.head_size,
        window,
    }
}

/// What stands between the first norm of a block and its first residual addition.
pub(super) trait SelfAttention: Send + Sync {
    /// Keeps the shape `[tokens, hidden]`; the rest is as in [`Block::forward`].
    fn forward(&self, hidden: &Tensor, pass: &mut Pass<'_>) -> candle_core::Result<Tensor>;

    /// The projections, the positions and the shape.
    fn inner(&self) -> &Attention;

    /// The norms of queries and keys, where there are any.
    fn norms(&self) -> Option<[&RmsNorm; 2]> {
        None
    }
}

impl SelfAttention for Attention {
    fn forward(&self, hidden: &Tensor, pass: &mut Pass<'_>) -> candle_core::Result<Tensor> {
        self.attend(self.project(hidden, pass)?, pass)
    }

    fn inner(&self) -> &Attention {
        self
    }
}

/// What stands between the second norm of a block and its second residual addition.
pub(super) trait BlockMlp: Send + Sync {
    /// Keeps the shape `[tokens, hidden]`; the rest is as in [`Block::forward`].
    fn forward(&self, hidden: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor>;

    /// What it is made of.
    fn parts(&self) -> MlpParts<'_>;
}

/// The gated MLP: `down(silu(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
}

impl Mlp {
    /// Takes the matrices of these names: gate, up and down.
    pub(super) fn load(
        checkpoint: Checkpoint<'_>,
        [gate, up, down]: [String; 3],
    ) -> Result<Self, LoadTensorError> {
        let config = checkpoint.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, shape| checkpoint.linear(name, shape, config.mlp_bias);
        Ok(Self {
            gate_proj: linear(&gate, [inner, hidden])?,
            up_proj: linear(&up, [inner, hidden])?,
            down_proj: linear(&down, [hidden, inner])?,
        })
    }
}

impl BlockMlp for Mlp {
    fn forward(&self, hidden: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], hidden)?;
        let gate = adapt::add(pass, (TargetModule::Gate, &self.gate_proj), hidden, gate)?;
        let up = adapt::add(pass, (TargetModule::Up, &self.up_proj), hidden, up)?;
        let gated = swiglu(gate, &up)?;
        adapt::add(
            pass,
            (TargetModule::Down, &self.down_proj),
            &gated,
            self.down_proj.forward(&gated)?,
        )
    }

    fn parts(&self) -> MlpParts<'_> {
        let Self { gate_proj, up_proj, down_proj } = self;
        MlpParts::Dense { gate_proj, up_proj, down_proj }
    }
}

/// A block of Llama, or of a relative whose attention or MLP is another.
pub(super) struct LlamaBlock<A, M = Mlp> {
    input_layernorm: RmsNorm,
    self_attn: A,
    post_attention_layernorm: RmsNorm,
    mlp: M,
}

impl<A> LlamaBlock<A> {
    /// Takes the tensors under `name`, but for the attention's.
    pub(super) fn load(
        checkpoint: Checkpoint<'_>,
        name: &str,
        self_attn: A,
    ) -> Result<Self, LoadTensorError> {
        let parts = ["gate_proj", "up_proj", "down_proj"];
        let mlp = Mlp::load(checkpoint, parts.map(|part| format!("{name}.mlp.{part}")))?;
        Self::with_mlp(checkpoint, name, self_attn, mlp)
    }
}

impl<A, M> LlamaBlock<A, M> {
    /// As [`LlamaBlock::load`], with an MLP that was taken before.
    pub(super) fn with_mlp(
        checkpoint: Checkpoint<'_>,
        name: &str,
        self_attn: A,
        mlp: M,
    ) -> Result<Self, LoadTensorError> {
        let norm = |part: &str| {
            checkpoint.rms_norm(&format!("{name}.{part}"), checkpoint.config.hidden_size)
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp,
        })
    }
}

impl<A: SelfAttention, M: BlockMlp> Block for LlamaBlock<A, M> {
    fn forward(&self, input: &Tensor, pass: &mut Pass<'_>) -> candle_core::Result<Tensor> {
        let normed = self.input_layernorm.forward(input)?;
        let hidden = residual::add(self.self_attn.forward(&normed, pass)?, input)?;
        let normed = self.post_attention_layernorm.forward(&hidden)?;
        residual::add(self.mlp.forward(&normed, pass)?, &hidden)
    }

    fn parts(&self) -> BlockParts<'_> {
        let Attention { q_proj, k_proj, v_proj, o_proj, rope, shape } = self.self_attn.inner();
        let [q_norm, k_norm] = self.self_attn.norms().map_or([None; 2], |norms| norms.map(Some));
        BlockParts {
            input_layernorm: &self.input_layernorm,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            q_norm,
            k_norm,
            rope,
            attention: *shape,
            post_attention_layernorm: &self.post_attention_layernorm,
            mlp: self.mlp.parts(),
        }
    }
}
