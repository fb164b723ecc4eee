//! Between what travels and what is computed with: adapters and optimizers beside their values.

use umbel_protocol::training::{AdamWSettings, AdapterSettings};

use super::{AdamW, AdapterConfig};

impl From<&AdapterSettings> for AdapterConfig {
    fn from(settings: &AdapterSettings) -> Self {
        Self {
            rank: settings.rank as usize,
            alpha: settings.alpha,
            rank_stabilized: settings.rank_stabilized,
            weight_decomposed: settings.weight_decomposed,
            dropout: settings.dropout,
            target_modules: settings.target_modules.clone(),
            prompt_tokens: 0,
            block_prompt_tokens: settings.block_prompt_tokens.into(),
        }
    }
}

/// What servers are told of an adapter: all but the vectors before the text, of which they know nothing.
impl From<&AdapterConfig> for AdapterSettings {
    fn from(config: &AdapterConfig) -> Self {
        Self {
            rank: u32::try_from(config.rank).expect("ranks are at most RANK_MAX"),
            alpha: config.alpha,
            rank_stabilized: config.rank_stabilized,
            dropout: config.dropout,
            target_modules: config.target_modules.clone(),
            block_prompt_tokens: u16::try_from(config.block_prompt_tokens)
                .expect("prompts have at most PROMPT_TOKENS_MAX tokens"),
            weight_decomposed: config.weight_decomposed,
        }
    }
}

impl From<AdamWSettings> for AdamW {
    fn from(settings: AdamWSettings) -> Self {
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = settings;
        Self { beta1, beta2, epsilon, weight_decay }
    }
}

impl From<AdamW> for AdamWSettings {
    fn from(settings: AdamW) -> Self {
        let AdamW { beta1, beta2, epsilon, weight_decay } = settings;
        Self { beta1, beta2, epsilon, weight_decay }
    }
}
