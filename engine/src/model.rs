//! The families of models, one file for each, to be read in this order: [`llama`] is described in
//! full, the others by what they do otherwise. [`experts`] is what the last two have in the place of an MLP.

pub(crate) mod llama;
pub(crate) mod mistral;
pub(crate) mod qwen2;
pub(crate) mod qwen3;

pub(crate) mod experts;
pub(crate) mod mixtral;
pub(crate) mod qwen3_moe;

use std::sync::Arc;

use umbel_shard::Family;

use crate::block::Block;
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::RopeTable;

/// Takes block `index` out of a checkpoint, with `rope` shared by all its blocks.
pub(crate) fn load_block(
    checkpoint: Checkpoint<'_>,
    index: u32,
    rope: &Arc<RopeTable>,
) -> Result<Box<dyn Block>, LoadTensorError> {
    Ok(match checkpoint.config.family {
        Family::Llama => Box::new(llama::load_block(checkpoint, index, rope)?),
        Family::Mistral => Box::new(mistral::load_block(checkpoint, index, rope)?),
        Family::Qwen2 => Box::new(qwen2::load_block(checkpoint, index, rope)?),
        Family::Qwen3 => Box::new(qwen3::load_block(checkpoint, index, rope)?),
        Family::Mixtral => Box::new(mixtral::load_block(checkpoint, index, rope)?),
        Family::Qwen3Moe => Box::new(qwen3_moe::load_block(checkpoint, index, rope)?),
    })
}
