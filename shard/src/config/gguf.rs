//! The metadata of a GGUF file, whose keys are listed in
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::check::check_block_count;
use super::json::{attention_scale, narrow};
use super::{ConfigError, Experts, Family, ModelConfig, Rope, RopeScaling};
use crate::gguf::{GgufHeader, Texts, Value};

/// Tokens that end an answer wherever they are found, whatever type a file gives them: of those that
/// `special_eog_ids` in `src/llama-vocab.cpp` of llama.cpp gathers, the ones that models of these families
/// have.
pub const END_TEXTS: [&str; 5] =
    ["<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<|eom_id|>"];

impl ModelConfig {
    /// Reads the metadata of a GGUF file.
    ///
    /// `rope_factors` are the values of the tensor `rope_freqs.weight`, where the file has one.
    ///
    /// # Errors
    /// [`ConfigError`] where a key is missing or wrong, or the model is not supported.
    pub fn from_gguf(
        header: &GgufHeader,
        rope_factors: Option<Vec<f32>>,
    ) -> Result<Self, ConfigError> {
        let architecture = header
            .metadata()
            .get("general.architecture")
            .and_then(Value::as_text)
            .ok_or_else(|| ConfigError::missing("general.architecture"))?;
        let keys = Keys { header, architecture };
        let family = keys.family()?;
        let blocks = keys.needed("block_count")?;
        let block_count = u32::try_from(blocks)
            .map_err(|_| ConfigError::invalid("block_count", blocks, "a smaller number"))?;
        check_block_count(block_count)?;
        let (hidden_size, head_count) =
            (keys.needed("embedding_length")?, keys.per_block("attention.head_count")?);
        let head_count = head_count.ok_or_else(|| keys.missing("attention.head_count"))?;
        let head_size = keys.head_size(hidden_size, head_count)?;
        let window = match family {
            Family::Mistral | Family::Mixtral => keys.window()?,
            // llama.cpp reads the key for no other of these architectures.
            Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => None,
        };
        let rope = keys.rope(rope_factors)?;
        let has = |name: &str| header.tensors().contains_key(name);
        ModelConfig {
            family,
            hidden_size,
            intermediate_size: keys.intermediate_size(family)?,
            experts: keys.experts(family)?,
            block_count,
            head_count,
            kv_head_count: keys.per_block("attention.head_count_kv")?.unwrap_or(head_count),
            head_size,
            vocabulary_size: keys.vocabulary_size()?,
            context_tokens: keys.context_tokens(&rope)?,
            rms_norm_eps: keys
                .float("attention.layer_norm_rms_epsilon")?
                .map(narrow)
                .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?,
            rope,
            attention_windows: vec![window; block_count as usize],
            attention_bias: has("blk.0.attn_q.bias"),
            output_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_down.bias"),
            tied_embeddings: !has("output.weight"),
            bos_token_id: keys.token("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: keys.end_tokens()?,
        }
        .checked()
    }
}

/// The metadata, asked with the names that follow the architecture's.
struct Keys<'a> {
    header: &'a GgufHeader,
    architecture: &'a str,
}

impl Keys<'_> {
    fn family(&self) -> Result<Family, ConfigError> {
        // Mistral and Mixtral have no names of their own: their converter writes `llama`.
        match self.architecture {
            "llama" if self.expert_count()?.is_some() => Ok(Family::Mixtral),
            "llama" if self.window()?.is_some() => Ok(Family::Mistral),
            "llama" => Ok(Family::Llama),
            "qwen2" => Ok(Family::Qwen2),
            "qwen3" => Ok(Family::Qwen3),
            "qwen3moe" => Ok(Family::Qwen3Moe),
            other => Err(ConfigError::UnknownArchitecture { found: other.to_owned() }),
        }
    }

    fn expert_count(&self) -> Result<Option<usize>, ConfigError> {
        Ok(self.unsigned("expert_count")?.filter(|&count| count > 0))
    }

    fn experts(&self, family: Family) -> Result<Option<Experts>, ConfigError> {
        match family {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => return Ok(None),
            Family::Mixtral | Family::Qwen3Moe => {}
        }
        // What other architectures do, and a file of these could ask for.
        for name in ["expert_shared_count", "expert_group_count", "leading_dense_block_count"] {
            if let Some(other) = self.unsigned(name)?.filter(|&count| count > 0) {
                return Err(ConfigError::unsupported(self.key(name), other));
            }
        }
        let scale = self.float("expert_weights_scale")?;
        if let Some(other) = scale.filter(|&scale| scale != 0.0 && scale != 1.0) {
            return Err(ConfigError::unsupported(self.key("expert_weights_scale"), other));
        }
        const SOFTMAX: usize = 1;
        if let Some(other) = self.unsigned("expert_gating_func")?.filter(|&name| name > SOFTMAX) {
            return Err(ConfigError::unsupported(self.key("expert_gating_func"), other));
        }
        Ok(Some(Experts {
            count: self.expert_count()?.ok_or_else(|| self.missing("expert_count"))?,
            per_token: self.needed("expert_used_count")?,
            // llama.cpp does it for both, and has no key that says otherwise.
            normalized: true,
        }))
    }

    /// Values inside the MLP, or inside one expert.
    fn intermediate_size(&self, family: Family) -> Result<usize, ConfigError> {
        let name = match family {
            Family::Qwen3Moe => "expert_feed_forward_length",
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Mixtral => {
                "feed_forward_length"
            }
        };
        self.per_block(name)?.ok_or_else(|| self.missing(name))
    }

    fn window(&self) -> Result<Option<usize>, ConfigError> {
        Ok(self.unsigned("attention.sliding_window")?.filter(|&tokens| tokens > 0))
    }

    fn head_size(&self, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
        if heads == 0 {
            return Err(ConfigError::invalid(self.key("attention.head_count"), 0, "positive"));
        }
        let key = self.unsigned("attention.key_length")?;
        let value = self.unsigned("attention.value_length")?;
        if key.is_none() && !hidden.is_multiple_of(heads) {
            let expected = format!("a divisor of the embedding's length, {hidden}");
            return Err(ConfigError::invalid(self.key("attention.head_count"), heads, expected));
        }
        let head_size = key.unwrap_or(hidden / heads);
        if let Some(other) = value.filter(|&value| value != head_size) {
            return Err(ConfigError::unsupported(self.key("attention.value_length"), other));
        }
        let rotated = self.unsigned("rope.dimension_count")?;
        if let Some(other) = rotated.filter(|&rotated| rotated != head_size) {
            return Err(ConfigError::unsupported(self.key("rope.dimension_count"), other));
        }
        Ok(head_size)
    }

    fn context_tokens(&self, rope: &Rope) -> Result<usize, ConfigError> {
        let tokens = self.needed("context_length")?;
        let original = self.unsigned("rope.scaling.original_context_length")?;
        Ok(original.map_or(tokens, |_| rope.scaling.stretched_context(tokens)))
    }

    fn vocabulary_size(&self) -> Result<usize, ConfigError> {
        let tokens = self.header.metadata().get("tokenizer.ggml.tokens");
        if let Some(tokens) = tokens.and_then(Value::as_texts) {
            return Ok(tokens.len());
        }
        if let Some(size) = self.unsigned("vocab_size")? {
            return Ok(size);
        }
        let embedding = self.header.tensors().get("token_embd.weight");
        let rows = embedding.and_then(|tensor| tensor.shape.first());
        rows.copied().ok_or_else(|| ConfigError::missing("tokenizer.ggml.tokens"))
    }

    fn rope(&self, factors: Option<Vec<f32>>) -> Result<Rope, ConfigError> {
        let theta = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        let name_key = self.key("rope.scaling.type");
        let name = match self.header.metadata().get(&name_key) {
            None => None,
            Some(value) => {
                Some(value.as_text().ok_or_else(|| wrong_type(&name_key, value, "a text"))?)
            }
        };
        let factor = match self.float("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.float("rope.scale_linear")?,
        };
        let scaling = match (name, factor) {
            (Some("none"), _) | (None, None) => RopeScaling::None,
            (Some("linear") | None, Some(factor)) if factor == 1.0 || factor == 0.0 => {
                RopeScaling::None
            }
            (Some("linear") | None, Some(factor)) => RopeScaling::Linear { factor: narrow(factor) },
            (Some("yarn"), Some(factor)) => self.yarn(factor)?,
            (Some("linear" | "yarn"), None) => return Err(self.missing("rope.scaling.factor")),
            (Some(other), _) => {
                return Err(ConfigError::UnknownRopeType { found: other.to_owned() });
            }
        };
        let scaling = match (scaling, factors) {
            (scaling, None) => scaling,
            (RopeScaling::None, Some(factors)) => RopeScaling::Factors(factors),
            (
                RopeScaling::Linear { .. }
                | RopeScaling::Llama3 { .. }
                | RopeScaling::Factors(_)
                | RopeScaling::Yarn { .. },
                Some(_),
            ) => {
                return Err(ConfigError::unsupported(name_key, "given beside rope_freqs.weight"));
            }
        };
        Ok(Rope { theta: narrow(theta), scaling })
    }

    fn yarn(&self, factor: f64) -> Result<RopeScaling, ConfigError> {
        let scale = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let original = match self.unsigned("rope.scaling.original_context_length")? {
            Some(tokens) => tokens,
            None => self.needed("context_length")?,
        };
        let (fast, slow) = (
            self.float("rope.scaling.yarn_beta_fast")?,
            self.float("rope.scaling.yarn_beta_slow")?,
        );
        Ok(RopeScaling::Yarn {
            factor: narrow(factor),
            original_context_tokens: original,
            beta_fast: narrow(fast.unwrap_or(32.0)),
            beta_slow: narrow(slow.unwrap_or(1.0)),
            attention_factor: narrow(scale * attention_scale(factor, 1.0)),
            truncate: true,
        })
    }

    /// The tokens that have keys, and those that are known by how they are spelled: most files name one.
    fn end_tokens(&self) -> Result<Vec<u32>, ConfigError> {
        let mut ids = Vec::new();
        for name in ["eos", "eot", "eom"] {
            let id = self.token(&format!("tokenizer.ggml.{name}_token_id"))?;
            ids.extend(id.filter(|id| !ids.contains(id)));
        }
        let tokens = self.header.metadata().get("tokenizer.ggml.tokens").and_then(Value::as_texts);
        for (id, text) in (0..).zip(tokens.into_iter().flat_map(Texts::iter)) {
            if END_TEXTS.contains(&text) && !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    fn token(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.header.metadata().get(key) else {
            return Ok(None);
        };
        let id = value.as_unsigned().and_then(|id| u32::try_from(id).ok());
        Ok(Some(id.ok_or_else(|| wrong_type(key, value, "the id of a token"))?))
    }

    /// A number that a file may also give for each block; only one for all is supported.
    fn per_block(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let key = self.key(name);
        let Some(numbers) = self.header.metadata().get(&key).and_then(Value::as_numbers) else {
            return self.unsigned(name);
        };
        let Some(&first) = numbers.first() else {
            return Ok(None);
        };
        if numbers.iter().any(|&number| number != first) {
            return Err(ConfigError::unsupported(key, "different for each block"));
        }
        usize::try_from(first).map(Some).map_err(|_| ConfigError::invalid(key, first, "positive"))
    }

    fn needed(&self, name: &str) -> Result<usize, ConfigError> {
        self.unsigned(name)?.ok_or_else(|| self.missing(name))
    }

    fn unsigned(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let key = self.key(name);
        let Some(value) = self.header.metadata().get(&key) else {
            return Ok(None);
        };
        let number = value.as_unsigned().and_then(|number| usize::try_from(number).ok());
        Ok(Some(number.ok_or_else(|| wrong_type(&key, value, "a number that is not negative"))?))
    }

    fn float(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        let key = self.key(name);
        let Some(value) = self.header.metadata().get(&key) else {
            return Ok(None);
        };
        Ok(Some(value.as_float().ok_or_else(|| wrong_type(&key, value, "a number"))?))
    }

    fn missing(&self, name: &str) -> ConfigError {
        ConfigError::missing(self.key(name))
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }
}

fn wrong_type(key: &str, value: &Value, expected: &str) -> ConfigError {
    ConfigError::invalid(key, value.describe(), expected)
}
