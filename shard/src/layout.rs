//! Which tensors a configuration asks for: their canonical names, their names in GGUF, and shapes.
//!
//! The canonical names are those of Hugging Face checkpoints. GGUF's are of
//! `gguf-py/gguf/tensor_mapping.py` in <https://github.com/ggml-org/llama.cpp>.

use crate::config::ModelConfig;

/// A tensor that a model must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutTensor {
    /// Its canonical name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its name in a GGUF file, such as `blk.0.attn_q.weight`.
    pub gguf_name: String,
    /// Values along each dimension, the slowest first.
    pub shape: Vec<usize>,
    /// The number of heads whose rows the rotary embedding turns: those of `q` and `k`, which GGUF
    /// files of the architecture `llama` keep in another order.
    pub rotated_heads: Option<usize>,
}

impl LayoutTensor {
    /// Values in the tensor.
    #[must_use]
    pub fn value_count(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

/// The name of the embedding, which is the head as well where the two are tied.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name of the norm after the last block.
pub const FINAL_NORM: &str = "model.norm.weight";
/// The name of the head; absent where it is tied to the embedding.
pub const HEAD: &str = "lm_head.weight";

/// The tensor that turns token ids into hidden states.
#[must_use]
pub fn embedding(config: &ModelConfig) -> Vec<LayoutTensor> {
    vec![tensor(EMBEDDING, "token_embd.weight", &[config.vocabulary_size, config.hidden_size])]
}

/// The tensors that turn hidden states into logits.
#[must_use]
pub fn head(config: &ModelConfig) -> Vec<LayoutTensor> {
    let norm = tensor(FINAL_NORM, "output_norm.weight", &[config.hidden_size]);
    if config.tied_embeddings {
        return [vec![norm], embedding(config)].concat();
    }
    vec![norm, tensor(HEAD, "output.weight", &[config.vocabulary_size, config.hidden_size])]
}

/// The tensors of transformer block `index`.
#[must_use]
pub fn block(config: &ModelConfig, index: u32) -> Vec<LayoutTensor> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (heads, kv_heads, head_size) = (config.head_count, config.kv_head_count, config.head_size);
    let (query, key) = (heads * head_size, kv_heads * head_size);
    let (bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
    let mut block = Block { index, tensors: Vec::new() };
    block.norm("input_layernorm", "attn_norm", hidden);
    block.norm("post_attention_layernorm", "ffn_norm", hidden);
    if config.has_query_key_norms() {
        block.norm("self_attn.q_norm", "attn_q_norm", head_size);
        block.norm("self_attn.k_norm", "attn_k_norm", head_size);
    }
    block.linear("self_attn.q_proj", "attn_q", [query, hidden], bias, Some(heads));
    block.linear("self_attn.k_proj", "attn_k", [key, hidden], bias, Some(kv_heads));
    block.linear("self_attn.v_proj", "attn_v", [key, hidden], bias, None);
    block.linear("self_attn.o_proj", "attn_output", [hidden, query], config.output_bias, None);
    block.linear("mlp.gate_proj", "ffn_gate", [inner, hidden], mlp_bias, None);
    block.linear("mlp.up_proj", "ffn_up", [inner, hidden], mlp_bias, None);
    block.linear("mlp.down_proj", "ffn_down", [hidden, inner], mlp_bias, None);
    block.tensors
}

/// The tensors of a block, as they come together.
struct Block {
    index: u32,
    tensors: Vec<LayoutTensor>,
}

impl Block {
    fn norm(&mut self, name: &str, gguf_name: &str, size: usize) {
        self.push(name, gguf_name, "weight", vec![size], None);
    }

    /// A matrix `[out, in]`, and its bias where it has one.
    fn linear(
        &mut self,
        name: &str,
        gguf_name: &str,
        [out, input]: [usize; 2],
        bias: bool,
        rotated_heads: Option<usize>,
    ) {
        self.push(name, gguf_name, "weight", vec![out, input], rotated_heads);
        if bias {
            self.push(name, gguf_name, "bias", vec![out], rotated_heads);
        }
    }

    fn push(
        &mut self,
        name: &str,
        gguf_name: &str,
        kind: &str,
        shape: Vec<usize>,
        rotated_heads: Option<usize>,
    ) {
        let index = self.index;
        self.tensors.push(LayoutTensor {
            name: format!("model.layers.{index}.{name}.{kind}"),
            gguf_name: format!("blk.{index}.{gguf_name}.{kind}"),
            shape,
            rotated_heads,
        });
    }
}

fn tensor(name: &str, gguf_name: &str, shape: &[usize]) -> LayoutTensor {
    LayoutTensor {
        name: name.to_owned(),
        gguf_name: gguf_name.to_owned(),
        shape: shape.to_vec(),
        rotated_heads: None,
    }
}
