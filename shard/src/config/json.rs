//! `config.json` as transformers 4 and 5 write it.
//!
//! Defaults for absent fields are those of `configuration_{llama,mistral,mixtral,qwen2,qwen3,qwen3_moe}.py`
//! of transformers 5.23, which wrote most files without them.

use serde::{Deserialize, Deserializer};

use super::check::check_block_count;
use super::{ConfigError, Family, ModelConfig, Rope};

mod experts;
mod rope;

use experts::WireExperts;
use rope::WireRope;
pub(super) use rope::attention_scale;

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] where the text is broken or describes a model that is not supported.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        // Another architecture may give the same name another type, so the names come first.
        let names: WireNames = serde_json::from_str(text).map_err(ConfigError::Json)?;
        let family = names.family()?;
        let wire: Wire = serde_json::from_str(text).map_err(ConfigError::Json)?;
        wire.into_config(family)?.checked()
    }

    /// The same with the tokens that the text of a `generation_config.json` names beside those of the
    /// configuration: of the two or three with which models for chats end an answer, some stand there alone.
    ///
    /// # Errors
    /// [`ConfigError`] where the text is broken or names too many.
    pub fn with_generation_json(mut self, text: &str) -> Result<Self, ConfigError> {
        let wire: WireGeneration =
            serde_json::from_str(text).map_err(ConfigError::GenerationJson)?;
        for id in OneOrMany::into_ids(wire.eos_token_id) {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
        self.checked()
    }
}

#[derive(Deserialize)]
struct WireGeneration {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct WireNames {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

impl WireNames {
    fn family(self) -> Result<Family, ConfigError> {
        let architecture = self.architectures.and_then(|names| names.into_iter().next());
        let named = |name: &String, of: fn(Family) -> &'static str| {
            Family::ALL
                .into_iter()
                .find(|&family| of(family) == name)
                .ok_or_else(|| ConfigError::UnknownArchitecture { found: name.clone() })
        };
        let by_type = self.model_type.as_ref().map(|name| named(name, Family::name)).transpose();
        let by_architecture =
            architecture.as_ref().map(|name| named(name, Family::architecture)).transpose();
        // Where both are unknown the architecture is the name that people search for.
        match (by_architecture?, by_type?) {
            (Some(architecture_of), Some(type_of)) if architecture_of != type_of => {
                Err(ConfigError::Contradiction {
                    model_type: self.model_type.unwrap_or_default(),
                    architecture: architecture.unwrap_or_default(),
                })
            }
            (Some(family), _) | (None, Some(family)) => Ok(family),
            (None, None) => Err(ConfigError::missing("model_type")),
        }
    }
}

#[derive(Deserialize)]
struct Wire {
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    #[serde(default, deserialize_with = "null_or_value")]
    num_key_value_heads: Field<u64>,
    #[serde(default, deserialize_with = "null_or_value")]
    head_dim: Field<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default, deserialize_with = "null_or_value")]
    sliding_window: Field<u64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(flatten)]
    experts: WireExperts,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    rope_theta: Option<f64>,
    rope_scaling: Option<WireRope>,
    rope_parameters: Option<WireRope>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    quantization_config: Option<WireQuantization>,
}

/// A field that says something else when it is `null` than when it is absent.
#[derive(Clone, Copy, Default)]
enum Field<T> {
    #[default]
    Absent,
    Null,
    Value(T),
}

fn null_or_value<'de, D, T>(deserializer: D) -> Result<Field<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.map_or(Field::Null, Field::Value))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_ids(these: Option<Self>) -> Vec<u32> {
        match these {
            None => Vec::new(),
            Some(Self::One(id)) => vec![id],
            Some(Self::Many(ids)) => ids,
        }
    }
}

#[derive(Deserialize)]
struct WireQuantization {
    quant_method: Option<String>,
}

impl Wire {
    fn into_config(self, family: Family) -> Result<ModelConfig, ConfigError> {
        self.check_supported()?;
        let hidden_size = required("hidden_size", self.hidden_size)?;
        let head_count = required("num_attention_heads", self.num_attention_heads)?;
        let context_tokens = match self.max_position_embeddings {
            Some(tokens) => to_usize("max_position_embeddings", tokens)?,
            None => default_context_tokens(family),
        };
        let blocks = required("num_hidden_layers", self.num_hidden_layers)?;
        let block_count = u32::try_from(blocks)
            .map_err(|_| ConfigError::invalid("num_hidden_layers", blocks, "a smaller number"))?;
        check_block_count(block_count)?;
        let rope = self.rope(family, context_tokens)?;
        let attention_bias = match family {
            Family::Llama | Family::Qwen3 | Family::Qwen3Moe => {
                self.attention_bias.unwrap_or(false)
            }
            Family::Qwen2 => true,
            Family::Mistral | Family::Mixtral => false,
        };
        Ok(ModelConfig {
            family,
            hidden_size,
            intermediate_size: match family {
                Family::Qwen3Moe => self.experts.intermediate_size()?,
                Family::Llama
                | Family::Mistral
                | Family::Qwen2
                | Family::Qwen3
                | Family::Mixtral => required("intermediate_size", self.intermediate_size)?,
            },
            experts: self.experts.of(family)?,
            block_count,
            head_count,
            kv_head_count: self.kv_head_count(family, head_count)?,
            head_size: self.head_size(family, hidden_size, head_count)?,
            vocabulary_size: required("vocab_size", self.vocab_size)?,
            context_tokens: if self.says_original_context() {
                rope.scaling.stretched_context(context_tokens)
            } else {
                context_tokens
            },
            rms_norm_eps: narrow(self.rms_norm_eps.unwrap_or(match family {
                Family::Mixtral => 1e-5,
                Family::Llama
                | Family::Mistral
                | Family::Qwen2
                | Family::Qwen3
                | Family::Qwen3Moe => 1e-6,
            })),
            rope,
            attention_windows: self.attention_windows(family, block_count)?,
            attention_bias,
            output_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: family == Family::Llama && self.mlp_bias.unwrap_or(false),
            tied_embeddings: self.tie_word_embeddings.unwrap_or(false),
            bos_token_id: self.bos_token_id,
            eos_token_ids: OneOrMany::into_ids(self.eos_token_id),
        })
    }

    fn check_supported(&self) -> Result<(), ConfigError> {
        if let Some(quantization) = &self.quantization_config {
            let method = quantization.quant_method.as_deref().unwrap_or("an unnamed method");
            return Err(ConfigError::Quantized { method: method.to_owned() });
        }
        // transformers knows one function by two names.
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => Ok(()),
            Some(other) => Err(ConfigError::UnknownActivation { found: other.to_owned() }),
        }
    }

    fn kv_head_count(&self, family: Family, head_count: usize) -> Result<usize, ConfigError> {
        match (self.num_key_value_heads, family) {
            (Field::Value(count), _) => to_usize("num_key_value_heads", count),
            (Field::Null, _) | (Field::Absent, Family::Llama) => Ok(head_count),
            (Field::Absent, Family::Mistral | Family::Mixtral) => Ok(8),
            (Field::Absent, Family::Qwen2 | Family::Qwen3) => Ok(32),
            (Field::Absent, Family::Qwen3Moe) => Ok(4),
        }
    }

    fn head_size(
        &self,
        family: Family,
        hidden_size: usize,
        head_count: usize,
    ) -> Result<usize, ConfigError> {
        match (self.head_dim, family) {
            (Field::Value(size), _) => to_usize("head_dim", size),
            (Field::Absent, Family::Qwen3) => Ok(128),
            (Field::Null, _)
            | (
                Field::Absent,
                Family::Llama
                | Family::Mistral
                | Family::Qwen2
                | Family::Mixtral
                | Family::Qwen3Moe,
            ) => {
                if head_count == 0 || !hidden_size.is_multiple_of(head_count) {
                    let expected = format!("a divisor of hidden_size, {hidden_size}");
                    return Err(ConfigError::invalid("num_attention_heads", head_count, expected));
                }
                Ok(hidden_size / head_count)
            }
        }
    }

    /// What is said of the rotary embedding, in the order in which transformers 5 looks: an old file's field
    /// first.
    fn wire_rope(&self) -> Option<&WireRope> {
        self.rope_scaling.as_ref().or(self.rope_parameters.as_ref())
    }

    fn says_original_context(&self) -> bool {
        self.original_max_position_embeddings.is_some()
            || self.wire_rope().is_some_and(WireRope::says_original)
    }

    fn rope(&self, family: Family, context_tokens: usize) -> Result<Rope, ConfigError> {
        let nothing = WireRope::default();
        let wire = self.wire_rope().unwrap_or(&nothing);
        if let Some(factor) = self.partial_rotary_factor.filter(|&factor| factor != 1.0) {
            return Err(ConfigError::unsupported("partial_rotary_factor", factor));
        }
        let theta = wire.rope_theta.or(self.rope_theta);
        let original_context = match self.original_max_position_embeddings {
            Some(tokens) => Some(to_usize("original_max_position_embeddings", tokens)?),
            None => None,
        };
        let scaling = wire.scaling(original_context, context_tokens)?;
        let default = match family {
            Family::Mixtral => 1_000_000.0,
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => {
                10_000.0
            }
        };
        Ok(Rope { theta: narrow(theta.unwrap_or(default)), scaling })
    }

    fn attention_windows(
        &self,
        family: Family,
        block_count: u32,
    ) -> Result<Vec<Option<usize>>, ConfigError> {
        const DEFAULT_WINDOW: u64 = 4096;
        const DEFAULT_MAX_WINDOW_LAYERS: u64 = 28;
        let window = match (self.sliding_window, family) {
            (Field::Value(tokens), _) => Some(to_usize("sliding_window", tokens)?),
            (Field::Null, _) | (Field::Absent, Family::Mixtral) => None,
            (
                Field::Absent,
                Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe,
            ) => Some(to_usize("sliding_window", DEFAULT_WINDOW)?),
        };
        match family {
            Family::Llama => Ok(vec![None; block_count as usize]),
            Family::Mistral | Family::Mixtral => Ok(vec![window; block_count as usize]),
            // It does not look at where its relatives begin with windows, nor at types of blocks.
            Family::Qwen3Moe => {
                let window = window.filter(|_| self.use_sliding_window.unwrap_or(false));
                Ok(vec![window; block_count as usize])
            }
            Family::Qwen2 | Family::Qwen3 => {
                let window = window.filter(|_| self.use_sliding_window.unwrap_or(false));
                let full = self.max_window_layers.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
                let Some(types) = &self.layer_types else {
                    let of = |block: u32| window.filter(|_| u64::from(block) >= full);
                    return Ok((0..block_count).map(of).collect());
                };
                types.iter().map(|name| window_of_type(name, window)).collect()
            }
        }
    }
}

fn window_of_type(name: &str, window: Option<usize>) -> Result<Option<usize>, ConfigError> {
    match name {
        "full_attention" => Ok(None),
        "sliding_attention" => {
            let missing = || ConfigError::missing("sliding_window, which its layer_types ask for");
            window.map(Some).ok_or_else(missing)
        }
        other => Err(ConfigError::unsupported("an entry of layer_types", other)),
    }
}

const fn default_context_tokens(family: Family) -> usize {
    match family {
        Family::Llama => 2048,
        Family::Mistral | Family::Mixtral => 4096 * 32,
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => 32768,
    }
}

fn required(field: &str, value: Option<u64>) -> Result<usize, ConfigError> {
    to_usize(field, value.ok_or_else(|| ConfigError::missing(field))?)
}

fn to_usize(field: &str, value: u64) -> Result<usize, ConfigError> {
    usize::try_from(value).map_err(|_| ConfigError::invalid(field, value, "a smaller number"))
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a number beyond binary32 becomes infinite and is refused by the checks"
)]
pub(super) const fn narrow(value: f64) -> f32 {
    value as f32
}
