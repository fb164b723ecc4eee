//! One transformer block, whatever its family, and the tokens that go through it together.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::kv::table::BlockCache;

/// One transformer block: attention over a cache, then the MLP, each around a residual path.
///
/// The families implement it in [`model`](crate::model). All arithmetic goes through candle tensors
/// and the custom operations of [`operation`](crate::operation), which record themselves where
/// their input is tracked. That is what a backward pass needs: it runs a block again from the
/// block's own input, made a variable, over whole tensors instead of a cache (activations inside a
/// block are not kept: Chen et al. 2016, <https://arxiv.org/abs/1604.06174>), asks candle for the
/// gradient of the output, and hands on the gradient of the input. Each operation then implements
/// `bwd` of its candle trait; the cache and its attention take no part.
pub(crate) trait Block: Send + Sync {
    /// From what enters the block to what leaves it, both `[tokens, hidden]` in binary32.
    ///
    /// The rows are those of the stretches of `pass`, one stretch after the other. Each cache is
    /// given the keys and values of its own tokens, and is never read beyond them.
    ///
    /// # Errors
    /// What candle found wrong with the tensors; a bug of ours, as shapes were checked before.
    fn forward(&self, input: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor>;
}

/// Whose tokens go through a block together.
pub(crate) struct Pass<'a> {
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
}
