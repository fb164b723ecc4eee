//! Checks that every configuration passes, wherever it came from.

use super::{ConfigError, ModelConfig, Rope, RopeScaling};

/// Most values of a hidden state: eight times those of the largest open model (16,384).
const HIDDEN_SIZE_MAX: usize = 1 << 17;
/// Most values inside an MLP: sixteen times those of the largest open model (53,248).
const INTERMEDIATE_SIZE_MAX: usize = 1 << 20;
/// Most values inside an expert: eight times those of the largest open model (16,384).
const EXPERT_SIZE_MAX: usize = 1 << 17;
/// Most experts of a block: nearly three times those of the largest open model (384).
const EXPERT_COUNT_MAX: usize = 1024;
/// Most experts of all blocks: nearly three times those of the same one.
const EXPERTS_MAX: usize = 1 << 16;
/// Most blocks: eight times those of the largest open model (126).
const BLOCK_COUNT_MAX: u32 = 1024;
/// Most heads: eight times those of the largest open model (128).
const HEAD_COUNT_MAX: usize = 1024;
/// Most values of a head: four times the largest in use (256).
const HEAD_SIZE_MAX: usize = 1024;
/// Most tokens of a vocabulary: sixteen times the largest in use (262,144).
const VOCABULARY_SIZE_MAX: usize = 1 << 22;
/// Most tokens of a context: six times the longest that is claimed (10 million).
const CONTEXT_TOKENS_MAX: usize = 1 << 26;
/// Most tokens that end a text; models have up to five.
const EOS_TOKENS_MAX: usize = 64;

impl ModelConfig {
    /// The configuration, where no number in it is absurd: no later arithmetic on sizes overflows.
    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        size("hidden_size", self.hidden_size, HIDDEN_SIZE_MAX)?;
        size("intermediate_size", self.intermediate_size, INTERMEDIATE_SIZE_MAX)?;
        if let Some(experts) = self.experts {
            size("the size of an expert", self.intermediate_size, EXPERT_SIZE_MAX)?;
            size("num_experts", experts.count, EXPERT_COUNT_MAX)?;
            size("num_experts_per_tok", experts.per_token, experts.count)?;
            if self.mlp_bias {
                return Err(ConfigError::unsupported("mlp_bias", "true for experts"));
            }
            let all = experts.count.saturating_mul(self.block_count as usize);
            size("the number of all blocks' experts", all, EXPERTS_MAX)?;
        }
        size("num_attention_heads", self.head_count, HEAD_COUNT_MAX)?;
        size("num_key_value_heads", self.kv_head_count, HEAD_COUNT_MAX)?;
        size("head_dim", self.head_size, HEAD_SIZE_MAX)?;
        size("vocab_size", self.vocabulary_size, VOCABULARY_SIZE_MAX)?;
        size("max_position_embeddings", self.context_tokens, CONTEXT_TOKENS_MAX)?;
        check_block_count(self.block_count)?;
        if !self.head_count.is_multiple_of(self.kv_head_count) {
            let expected = format!("a divisor of the number of heads, {}", self.head_count);
            return Err(ConfigError::invalid("num_key_value_heads", self.kv_head_count, expected));
        }
        if !self.head_size.is_multiple_of(2) {
            return Err(ConfigError::invalid("head_dim", self.head_size, "even"));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(ConfigError::invalid("rms_norm_eps", self.rms_norm_eps, "between 0 and 1"));
        }
        if self.attention_windows.len() != self.block_count as usize {
            let expected = format!("one entry for each of the {} blocks", self.block_count);
            return Err(ConfigError::invalid(
                "layer_types",
                format!("{} entries", self.attention_windows.len()),
                expected,
            ));
        }
        for window in self.attention_windows.iter().flatten() {
            size("sliding_window", *window, CONTEXT_TOKENS_MAX)?;
        }
        if self.eos_token_ids.len() > EOS_TOKENS_MAX {
            let expected = format!("at most {EOS_TOKENS_MAX} tokens");
            return Err(ConfigError::invalid("eos_token_id", self.eos_token_ids.len(), expected));
        }
        check_rope(&self.rope, self.head_size)?;
        Ok(self)
    }
}

/// The number of blocks, before anything is allocated for each of them.
pub(super) fn check_block_count(found: u32) -> Result<(), ConfigError> {
    if (1..=BLOCK_COUNT_MAX).contains(&found) {
        return Ok(());
    }
    Err(ConfigError::invalid("num_hidden_layers", found, format!("1 to {BLOCK_COUNT_MAX}")))
}

fn size(field: &str, found: usize, max: usize) -> Result<(), ConfigError> {
    if (1..=max).contains(&found) {
        return Ok(());
    }
    Err(ConfigError::invalid(field, found, format!("1 to {max}")))
}

fn check_rope(rope: &Rope, head_size: usize) -> Result<(), ConfigError> {
    positive("rope_theta", rope.theta)?;
    match &rope.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => positive("rope factor", *factor),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context_tokens,
        } => {
            positive("rope factor", *factor)?;
            positive("rope low_freq_factor", *low_freq_factor)?;
            positive("rope high_freq_factor", *high_freq_factor)?;
            original(*original_context_tokens)?;
            if high_freq_factor <= low_freq_factor {
                let expected = format!("above low_freq_factor, {low_freq_factor}");
                return Err(ConfigError::invalid(
                    "rope high_freq_factor",
                    high_freq_factor,
                    expected,
                ));
            }
            Ok(())
        }
        RopeScaling::Factors(factors) => {
            if factors.len() != head_size / 2 {
                let found = format!("{} factors", factors.len());
                return Err(ConfigError::invalid(
                    "rope_freqs",
                    found,
                    format!("{}", head_size / 2),
                ));
            }
            factors.iter().try_for_each(|factor| positive("rope_freqs", *factor))
        }
        RopeScaling::Yarn {
            factor,
            original_context_tokens,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate: _,
        } => {
            positive("rope factor", *factor)?;
            positive("rope beta_fast", *beta_fast)?;
            positive("rope beta_slow", *beta_slow)?;
            positive("rope attention_factor", *attention_factor)?;
            original(*original_context_tokens)
        }
    }
}

fn original(tokens: usize) -> Result<(), ConfigError> {
    size("original_max_position_embeddings", tokens, CONTEXT_TOKENS_MAX)
}

fn positive(field: &str, found: f32) -> Result<(), ConfigError> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(ConfigError::invalid(field, found, "a positive number"))
}
