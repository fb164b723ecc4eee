//! One transformer block, whatever its family, and the tokens that go through it together.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::kernel::{AttentionShape, RopeTable};
use crate::kv::table::BlockCache;
use crate::model::experts::ExpertMlp;
use crate::operation::linear::Linear;
use crate::operation::rms_norm::RmsNorm;
use crate::train::Adapter;

/// One transformer block: attention over a cache, then the MLP, each around a residual path.
///
/// The families implement it in [`model`](crate::model). All arithmetic goes through the custom
/// operations of [`operation`](crate::operation). A backward pass does not go this way: it takes the
/// [`BlockParts`] over whole sequences and without a cache, in [`train`](crate::train).
pub(crate) trait Block: Send + Sync {
    /// From what enters the block to what leaves it, both `[tokens, hidden]` in binary32.
    ///
    /// The rows are those of the stretches of `pass`, one stretch after the other. Each cache is
    /// given the keys and values of its own tokens, and is never read beyond them.
    ///
    /// # Errors
    /// What candle found wrong with the tensors; a bug of ours, as shapes were checked before.
    fn forward(&self, input: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor>;

    /// What it is made of.
    fn parts(&self) -> BlockParts<'_>;
}

/// What a block of the Llama family and its relatives is made of, named as in their checkpoints.
#[derive(Clone, Copy)]
pub(crate) struct BlockParts<'a> {
    pub(crate) input_layernorm: &'a RmsNorm,
    pub(crate) q_proj: &'a Linear,
    pub(crate) k_proj: &'a Linear,
    pub(crate) v_proj: &'a Linear,
    pub(crate) o_proj: &'a Linear,
    /// Of each head of queries, where the family norms them.
    pub(crate) q_norm: Option<&'a RmsNorm>,
    /// Of each head of keys.
    pub(crate) k_norm: Option<&'a RmsNorm>,
    pub(crate) rope: &'a RopeTable,
    pub(crate) attention: AttentionShape,
    pub(crate) post_attention_layernorm: &'a RmsNorm,
    pub(crate) mlp: MlpParts<'a>,
}

/// What stands behind the second norm of a block.
#[derive(Clone, Copy)]
pub(crate) enum MlpParts<'a> {
    /// One MLP, through which all tokens go.
    Dense { gate_proj: &'a Linear, up_proj: &'a Linear, down_proj: &'a Linear },
    /// Several, through some of which each token goes.
    Experts(&'a ExpertMlp),
}

/// Whose tokens go through a block together.
pub(crate) struct Pass<'a> {
    /// The block's number in the model.
    pub(crate) block: u32,
    /// Where each token stands in its own session.
    pub(crate) positions: Arc<[usize]>,
    /// What each session brings, in the order of the rows.
    pub(crate) stretches: Vec<Stretch<'a>>,
}

/// Consecutive tokens of one session.
pub(crate) struct Stretch<'a> {
    /// Keys and values of the positions before, to which those of these tokens are added.
    pub(crate) cache: &'a mut BlockCache,
    /// Where the first token stands.
    pub(crate) position: usize,
    /// How many there are.
    pub(crate) tokens: usize,
    /// What is added to the matrices for them.
    pub(crate) adapter: Option<&'a Adapter>,
}
