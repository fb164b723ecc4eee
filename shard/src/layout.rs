//! Which tensors a configuration asks for: their canonical names, their names in GGUF, and shapes.
//!
//! The canonical names are those of Hugging Face checkpoints. GGUF's are of
//! `gguf-py/gguf/tensor_mapping.py` in <https://github.com/ggml-org/llama.cpp>.

use crate::config::{Experts, Family, ModelConfig};

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
    /// Where GGUF files have it inside a larger tensor.
    pub stacked: Option<Stacked>,
}

/// A matrix of one expert, as GGUF files keep those of all experts of a block: as one tensor, in which
/// they follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stacked {
    /// Which of them it is.
    pub index: usize,
    /// How many there are: the first of the tensor's dimensions.
    pub count: usize,
}

impl LayoutTensor {
    /// Values in the tensor.
    #[must_use]
    pub fn value_count(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// The shape of the tensor of a GGUF file that has it.
    #[must_use]
    pub fn gguf_shape(&self) -> Vec<usize> {
        self.stacked.iter().map(|stacked| stacked.count).chain(self.shape.iter().copied()).collect()
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
    match config.experts {
        None => {
            block.linear("mlp.gate_proj", "ffn_gate", [inner, hidden], mlp_bias, None);
            block.linear("mlp.up_proj", "ffn_up", [inner, hidden], mlp_bias, None);
            block.linear("mlp.down_proj", "ffn_down", [hidden, inner], mlp_bias, None);
        }
        Some(experts) => block.experts(config, experts),
    }
    block.tensors
}

/// What a tensor of a block with experts is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertPart {
    /// The router.
    Router,
    /// A gate or an up projection of an expert.
    GateUp,
    /// The down projection of an expert.
    Down,
}

impl ExpertPart {
    /// What the tensor of a canonical name is; `None` of what has nothing to do with experts.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        [Family::Mixtral, Family::Qwen3Moe].into_iter().find_map(|family| {
            let ExpertNames { router, experts, parts: [gate, up, down] } = ExpertNames::of(family);
            let name = name.strip_suffix(".weight")?;
            let before = name.strip_suffix(router);
            if before.is_some_and(|before| before.is_empty() || before.ends_with('.')) {
                return Some(Self::Router);
            }
            let (_, numbered) = name.split_once(experts)?;
            match numbered.rsplit('.').next()? {
                part if part == gate || part == up => Some(Self::GateUp),
                part if part == down => Some(Self::Down),
                _ => None,
            }
        })
    }
}

/// What the matrices of a block of experts are called within it, without their `.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The router.
    pub router: &'static str,
    /// What stands before the number of an expert.
    pub experts: &'static str,
    /// Gate, up and down of an expert, behind its number.
    pub parts: [&'static str; 3],
}

impl ExpertNames {
    /// The names that a family has. One without experts has none, and those of Qwen3 stand for them.
    #[must_use]
    pub const fn of(family: Family) -> Self {
        match family {
            Family::Mixtral => Self {
                router: "block_sparse_moe.gate",
                experts: "block_sparse_moe.experts",
                parts: ["w1", "w3", "w2"],
            },
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => {
                Self {
                    router: "mlp.gate",
                    experts: "mlp.experts",
                    parts: ["gate_proj", "up_proj", "down_proj"],
                }
            }
        }
    }

    /// Gate, up and down of expert `index`.
    #[must_use]
    pub fn expert(&self, index: usize) -> [String; 3] {
        self.parts.map(|part| format!("{}.{index}.{part}", self.experts))
    }
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

    /// The router, and the matrices of all experts: those that GGUF files have in one tensor together.
    fn experts(&mut self, config: &ModelConfig, Experts { count, .. }: Experts) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let names = ExpertNames::of(config.family);
        self.linear(names.router, "ffn_gate_inp", [count, hidden], false, None);
        let parts = [
            ("ffn_gate_exps", [inner, hidden]),
            ("ffn_up_exps", [inner, hidden]),
            ("ffn_down_exps", [hidden, inner]),
        ];
        for (part, (gguf_name, shape)) in parts.into_iter().enumerate() {
            for index in 0..count {
                let name = &names.expert(index)[part];
                self.linear(name, gguf_name, shape, false, None);
                let tensor = self.tensors.last_mut().expect("one was put there just now");
                tensor.stacked = Some(Stacked { index, count });
            }
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
            stacked: None,
        });
    }
}

fn tensor(name: &str, gguf_name: &str, shape: &[usize]) -> LayoutTensor {
    LayoutTensor {
        name: name.to_owned(),
        gguf_name: gguf_name.to_owned(),
        shape: shape.to_vec(),
        rotated_heads: None,
        stacked: None,
    }
}
