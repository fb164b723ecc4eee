//! What `config.json` says of experts.

use serde::Deserialize;

use super::super::{ConfigError, Experts, Family};
use super::{required, to_usize};

/// The fields of Mixtral and of the sparse models of Qwen3.
#[derive(Deserialize)]
pub(super) struct WireExperts {
    /// As transformers 5 calls it in every family, and the first files of Mixtral.
    num_local_experts: Option<u64>,
    /// As the first files of Qwen3 call it.
    num_experts: Option<u64>,
    num_experts_per_tok: Option<u64>,
    moe_intermediate_size: Option<u64>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<u64>,
    mlp_only_layers: Option<Vec<u64>>,
}

impl WireExperts {
    /// What a family has of them.
    pub(super) fn of(&self, family: Family) -> Result<Option<Experts>, ConfigError> {
        let (count, per_token) = match family {
            // A dense model with experts is another one, which computes nonsense without them.
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
                return match self.count().filter(|&count| count > 0) {
                    Some(count) => Err(ConfigError::unsupported("num_local_experts", count)),
                    None => Ok(None),
                };
            }
            Family::Mixtral => (8, 2),
            Family::Qwen3Moe => {
                self.check_all_sparse()?;
                (128, 8)
            }
        };
        let normalized = match family {
            Family::Qwen3Moe => self.norm_topk_prob.unwrap_or(false),
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Mixtral => {
                true
            }
        };
        Ok(Some(Experts {
            count: to_usize("num_local_experts", self.count().unwrap_or(count))?,
            per_token: to_usize(
                "num_experts_per_tok",
                self.num_experts_per_tok.unwrap_or(per_token),
            )?,
            normalized,
        }))
    }

    /// Values inside one expert, where it has a size of its own.
    pub(super) fn intermediate_size(&self) -> Result<usize, ConfigError> {
        required("moe_intermediate_size", self.moe_intermediate_size)
    }

    fn count(&self) -> Option<u64> {
        self.num_local_experts.or(self.num_experts)
    }

    /// No model that was released has dense blocks among the sparse ones.
    fn check_all_sparse(&self) -> Result<(), ConfigError> {
        if let Some(step) = self.decoder_sparse_step.filter(|&step| step != 1) {
            return Err(ConfigError::unsupported("decoder_sparse_step", step));
        }
        match self.mlp_only_layers.as_deref() {
            None | Some([]) => Ok(()),
            Some(blocks) => {
                let found = format!("{} blocks", blocks.len());
                Err(ConfigError::unsupported("mlp_only_layers", found))
            }
        }
    }
}
