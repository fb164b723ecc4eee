//! What `config.json` or the metadata of a GGUF file says, typed.
//!
//! Four families of dense decoders are known, which differ in biases, norms and windows, never in the
//! order of operations: Llama (<https://arxiv.org/abs/2302.13971>), Mistral
//! (<https://arxiv.org/abs/2310.06825>), Qwen2 (<https://arxiv.org/abs/2407.10671>) and Qwen3
//! (<https://arxiv.org/abs/2505.09388>); and two whose MLPs are of experts: Mixtral
//! (<https://arxiv.org/abs/2401.04088>) and the sparse ones of Qwen3. Whatever is not known is an error
//! that says what was found: a model that is nearly a Llama computes nonsense without a word.

use std::fmt;

mod check;
mod encode;
mod error;
mod gguf;
mod json;
mod rope;

pub use error::ConfigError;
pub use gguf::END_TEXTS;
pub use rope::{Rope, RopeScaling};

#[cfg(test)]
mod tests;

/// A family of models whose blocks are computed in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Llama 1 to 3, and what shares its blocks (SmolLM2, Yi, and many more).
    Llama,
    /// Mistral 7B, with or without its sliding window.
    Mistral,
    /// Qwen 1.5, 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: norms on the heads of q and k.
    Qwen3,
    /// Mixtral: Mistral with experts.
    Mixtral,
    /// The sparse models of Qwen 3: Qwen3 with experts.
    Qwen3Moe,
}

impl Family {
    /// Every family, as they are listed to a person.
    pub const ALL: [Self; 6] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Mixtral, Self::Qwen3Moe];

    /// The name that `model_type` in `config.json` has.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Mixtral => "mixtral",
            Self::Qwen3Moe => "qwen3_moe",
        }
    }

    /// The name that `architectures` in `config.json` has.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Mixtral => "MixtralForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The experts of a block: MLPs of which each token goes through a few (Shazeer et al. 2017,
/// <https://arxiv.org/abs/1701.06538>).
///
/// A matrix, the router, gives a token a logit for each expert. The token goes through those whose logits
/// are the largest, and what they compute is added up with weights, the softmax of the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// How many each block has.
    pub count: usize,
    /// Through how many a token goes; at most [`Self::count`].
    pub per_token: usize,
    /// Whether the softmax is over the logits of a token's experts alone, so that its weights add up to 1,
    /// and not over those of all.
    pub normalized: bool,
}

/// The shape of a model: everything that decides its arithmetic but the weights.
///
/// A value of this type has passed all checks: sizes are positive and bounded, heads divide evenly,
/// there is one attention window for each block.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// How a block is computed.
    pub family: Family,
    /// Values of one token's hidden state.
    pub hidden_size: usize,
    /// Values between the two halves of the MLP, or of one expert.
    pub intermediate_size: usize,
    /// What stands in place of the one MLP of a block, in families that have experts.
    pub experts: Option<Experts>,
    /// Transformer blocks.
    pub block_count: u32,
    /// Heads of the queries.
    pub head_count: usize,
    /// Heads of keys and values; divides [`Self::head_count`].
    pub kv_head_count: usize,
    /// Values of one head; even.
    pub head_size: usize,
    /// Tokens: rows of the embedding.
    pub vocabulary_size: usize,
    /// The longest context that the model was made for, in tokens.
    pub context_tokens: usize,
    /// What is added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// The rotary position embedding.
    pub rope: Rope,
    /// For each block how many tokens it sees, its own among them; `None` is all before it.
    pub attention_windows: Vec<Option<usize>>,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether the head is the embedding's matrix.
    pub tied_embeddings: bool,
    /// The token that begins a text, where there is one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// A very small Llama of so many blocks, with nothing that only some of its kind have: what models
    /// of random weights begin with.
    #[must_use]
    pub fn llama(block_count: u32) -> Self {
        Self {
            family: Family::Llama,
            hidden_size: 64,
            intermediate_size: 64,
            experts: None,
            block_count,
            head_count: 2,
            kv_head_count: 1,
            head_size: 32,
            vocabulary_size: 40,
            context_tokens: 128,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            attention_windows: vec![None; block_count as usize],
            attention_bias: false,
            output_bias: false,
            mlp_bias: false,
            tied_embeddings: false,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }

    /// Values between the two halves of all MLPs that a token goes through in one block.
    #[must_use]
    pub const fn active_intermediate_size(&self) -> usize {
        match self.experts {
            Some(experts) => self.intermediate_size * experts.per_token,
            None => self.intermediate_size,
        }
    }

    /// Bytes that the keys and values of one token take in one block, in binary32.
    #[must_use]
    pub const fn kv_token_bytes_per_block(&self) -> u64 {
        const KEY_AND_VALUE: u64 = 2;
        const BINARY32_BYTES: u64 = 4;
        KEY_AND_VALUE * BINARY32_BYTES * self.kv_head_count as u64 * self.head_size as u64
    }

    /// Whether each head of q and k has an RMS norm of its own before the rotary embedding.
    #[must_use]
    pub const fn has_query_key_norms(&self) -> bool {
        match self.family {
            Family::Qwen3 | Family::Qwen3Moe => true,
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Mixtral => false,
        }
    }
}
