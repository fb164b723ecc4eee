//! `rope_parameters` of transformers 5, and `rope_scaling` of transformers 4.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::{ConfigError, RopeScaling};
use super::narrow;

/// Rotations over the original context above which YaRN does not stretch, as its paper suggests.
const BETA_FAST: f64 = 32.0;
/// Rotations over the original context below which YaRN stretches wholly, as its paper suggests.
const BETA_SLOW: f64 = 1.0;

#[derive(Deserialize, Default)]
pub(super) struct WireRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    partial_rotary_factor: Option<f64>,
    full_attention: Option<IgnoredAny>,
    sliding_attention: Option<IgnoredAny>,
}

impl WireRope {
    /// Whether it says how long the context was before it was stretched.
    pub(super) const fn says_original(&self) -> bool {
        self.original_max_position_embeddings.is_some()
    }

    /// The scaling; `original_context` is what the configuration says outside of this object, which
    /// transformers lets win, and `context_tokens` stands in where nothing says it.
    pub(super) fn scaling(
        &self,
        original_context: Option<usize>,
        context_tokens: usize,
    ) -> Result<RopeScaling, ConfigError> {
        if self.full_attention.is_some() || self.sliding_attention.is_some() {
            return Err(ConfigError::unsupported(
                "rope_parameters",
                "different for each layer type",
            ));
        }
        if let Some(factor) = self.partial_rotary_factor.filter(|&factor| factor != 1.0) {
            return Err(ConfigError::unsupported("partial_rotary_factor", factor));
        }
        let name = self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default");
        let original_context_tokens =
            match (original_context, self.original_max_position_embeddings) {
                (Some(tokens), _) => tokens,
                (None, Some(tokens)) => {
                    super::to_usize("original_max_position_embeddings", tokens)?
                }
                (None, None) => context_tokens,
            };
        match name {
            "default" | "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: needed("factor", self.factor)? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: needed("factor", self.factor)?,
                low_freq_factor: needed("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: needed("high_freq_factor", self.high_freq_factor)?,
                original_context_tokens,
            }),
            "yarn" => self.yarn(original_context_tokens, context_tokens),
            other => Err(ConfigError::UnknownRopeType { found: other.to_owned() }),
        }
    }

    fn yarn(&self, original: usize, context: usize) -> Result<RopeScaling, ConfigError> {
        #[allow(clippy::cast_precision_loss, reason = "contexts are far below 2^52 tokens")]
        let factor = self.factor.unwrap_or(context as f64 / original.max(1) as f64);
        let attention_factor = match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                attention_scale(factor, one) / attention_scale(factor, all)
            }
            (None, _, _) => attention_scale(factor, 1.0),
        };
        let given = |value: Option<f64>| value.filter(|&value| value != 0.0);
        Ok(RopeScaling::Yarn {
            factor: narrow(factor),
            original_context_tokens: original,
            beta_fast: narrow(given(self.beta_fast).unwrap_or(BETA_FAST)),
            beta_slow: narrow(given(self.beta_slow).unwrap_or(BETA_SLOW)),
            attention_factor: narrow(attention_factor),
            truncate: self.truncate.unwrap_or(true),
        })
    }
}

/// `get_mscale` of transformers; the paper's equation 22 is the case of `weight` 1.
pub(in super::super) fn attention_scale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

fn needed(field: &str, value: Option<f64>) -> Result<f32, ConfigError> {
    value.map(narrow).ok_or_else(|| ConfigError::missing(format!("{field} of its rope scaling")))
}
