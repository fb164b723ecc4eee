//! The same mathematics, slow and obvious: the oracle of the tests.
//!
//! Written from the papers and from transformers' `modeling_*.py` with candle's own operations on
//! whole binary32 tensors: weights widened first, no cache, a full matrix of attention scores. It
//! shares no arithmetic with [`kernel`](crate::kernel), and nobody should compute with it otherwise.

mod rotary;
mod widen;

use candle_core::{D, Device, Result, Tensor};
use umbel_protocol::Span;
use umbel_shard::layout::{EMBEDDING, FINAL_NORM, HEAD};
use umbel_shard::{Experts, Family, ModelConfig, Weights};

pub use widen::widen;

/// A model, or some blocks of it, computed the plain way.
#[derive(Debug, Clone)]
pub struct Reference<'a> {
    /// What the model is.
    pub config: &'a ModelConfig,
    /// The tensors of whatever is asked for.
    pub weights: &'a Weights,
}

impl Reference<'_> {
    /// The rows of the embedding for `ids`: `[ids, hidden]`.
    ///
    /// # Errors
    /// Where a tensor is missing or an id unknown.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.weight(EMBEDDING)?.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)
    }

    /// What enters each block of `span`, and last what leaves it; each `[tokens, hidden]`.
    ///
    /// The tokens are a whole text: the first one stands at position 0.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn boundaries(&self, span: Span, input: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = vec![input.clone()];
        for index in span.blocks() {
            let input = states.last().expect("the input is the first");
            states.push(self.block(index, input)?);
        }
        Ok(states)
    }

    /// Logits `[tokens, vocabulary]` from what left the last block.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let normed = self.rms_norm(hidden, FINAL_NORM)?;
        let head = if self.config.tied_embeddings { EMBEDDING } else { HEAD };
        normed.matmul(&self.weight(head)?.t()?)
    }

    fn block(&self, index: u32, input: &Tensor) -> Result<Tensor> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let normed = self.rms_norm(input, &name("input_layernorm.weight"))?;
        let hidden = (input + self.attention(index, &normed)?)?;
        let normed = self.rms_norm(&hidden, &name("post_attention_layernorm.weight"))?;
        let mlp = match self.config.experts {
            None => self.mlp(&normed, ["gate_proj", "up_proj", "down_proj"], &name("mlp"))?,
            Some(experts) => self.experts(experts, index, &normed)?,
        };
        hidden + mlp
    }

    fn mlp(&self, input: &Tensor, [gate, up, down]: [&str; 3], name: &str) -> Result<Tensor> {
        let gate = self.linear(input, &format!("{name}.{gate}"))?.silu()?;
        let up = self.linear(input, &format!("{name}.{up}"))?;
        self.linear(&(gate * up)?, &format!("{name}.{down}"))
    }

    /// Every token goes through every expert, and those that it did not choose count nothing.
    fn experts(&self, experts: Experts, index: u32, input: &Tensor) -> Result<Tensor> {
        let (name, parts) = match self.config.family {
            Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => {
                ("mlp", ["gate_proj", "up_proj", "down_proj"])
            }
        };
        let name = format!("model.layers.{index}.{name}");
        let shares = softmax(&self.linear(input, &format!("{name}.gate"))?)?;
        let mut chosen: Vec<Vec<f32>> = shares.to_vec2()?;
        for row in &mut chosen {
            let mut sorted = row.clone();
            sorted.sort_by(|one, other| other.total_cmp(one));
            let least = sorted[experts.per_token - 1];
            row.iter_mut().for_each(|share| *share = if *share < least { 0.0 } else { 1.0 });
        }
        let mut shares = (shares * Tensor::new(chosen, &Device::Cpu)?)?;
        if experts.normalized {
            shares = shares.broadcast_div(&shares.sum_keepdim(D::Minus1)?)?;
        }
        let mut sum = input.zeros_like()?;
        for expert in 0..experts.count {
            let output = self.mlp(input, parts, &format!("{name}.experts.{expert}"))?;
            sum = (sum + output.broadcast_mul(&shares.narrow(1, expert, 1)?)?)?;
        }
        Ok(sum)
    }

    fn attention(&self, index: u32, input: &Tensor) -> Result<Tensor> {
        let name = |part: &str| format!("model.layers.{index}.self_attn.{part}");
        let (tokens, head_size) = (input.dim(0)?, self.config.head_size);
        // [tokens, heads * head_size] to [heads, tokens, head_size].
        let split = |tensor: Tensor, heads| {
            tensor.reshape((tokens, heads, head_size))?.transpose(0, 1)?.contiguous()
        };
        let (heads, kv_heads) = (self.config.head_count, self.config.kv_head_count);
        let mut queries = split(self.linear(input, &name("q_proj"))?, heads)?;
        let mut keys = split(self.linear(input, &name("k_proj"))?, kv_heads)?;
        let values = split(self.linear(input, &name("v_proj"))?, kv_heads)?;
        if self.config.has_query_key_norms() {
            queries = self.rms_norm(&queries, &name("q_norm.weight"))?;
            keys = self.rms_norm(&keys, &name("k_norm.weight"))?;
        }
        let queries = rotary::turn(&self.config.rope, &queries)?;
        let keys = rotary::turn(&self.config.rope, &keys)?;
        // Each head of keys and values serves as many consecutive heads of queries.
        let repeat = |tensor: &Tensor| {
            let shape = (kv_heads, heads / kv_heads, tokens, head_size);
            let repeated = tensor.unsqueeze(1)?.broadcast_as(shape)?;
            repeated.reshape((heads, tokens, head_size))?.contiguous()
        };
        let scores = queries.matmul(&repeat(&keys)?.t()?.contiguous()?)?;
        let scores = (scores / (head_size as f64).sqrt())?;
        let window = self.config.attention_windows[index as usize];
        let weights = softmax(&scores.broadcast_add(&mask(tokens, window)?)?)?;
        let attended = weights.matmul(&repeat(&values)?)?.transpose(0, 1)?;
        self.linear(&attended.reshape((tokens, heads * head_size))?, &name("o_proj"))
    }

    fn linear(&self, input: &Tensor, name: &str) -> Result<Tensor> {
        let output = input.matmul(&self.weight(&format!("{name}.weight"))?.t()?)?;
        let bias = format!("{name}.bias");
        if self.weights.contains(&bias) {
            return output.broadcast_add(&self.weight(&bias)?);
        }
        Ok(output)
    }

    fn rms_norm(&self, input: &Tensor, name: &str) -> Result<Tensor> {
        let mean_square = input.sqr()?.mean_keepdim(D::Minus1)?;
        let root = (mean_square + f64::from(self.config.rms_norm_eps))?.sqrt()?;
        input.broadcast_div(&root)?.broadcast_mul(&self.weight(name)?)
    }

    fn weight(&self, name: &str) -> Result<Tensor> {
        widen(self.weights.get(name).map_err(candle_core::Error::wrap)?)
    }
}

/// `[tokens, tokens]`: 0 where the token of a row may see that of a column, else minus infinity.
fn mask(tokens: usize, window: Option<usize>) -> Result<Tensor> {
    let sees = |row: usize, column: usize| {
        column <= row && window.is_none_or(|window| row - column < window)
    };
    let values = (0..tokens).flat_map(|row| {
        (0..tokens).map(move |column| if sees(row, column) { 0.0 } else { f32::NEG_INFINITY })
    });
    Tensor::from_iter(values, &Device::Cpu)?.reshape((tokens, tokens))
}

/// The softmax along the last dimension.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let exponentials = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}
