//! One transformer block, whatever its family.

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
    /// The tokens stand at `position` and after it. `cache` holds the keys and values of the
    /// positions before, is given those of these tokens, and is never read beyond them.
    ///
    /// # Errors
    /// What candle found wrong with the tensors; a bug of ours, as shapes were checked before.
    fn forward(&self, input: &Tensor, cache: &mut BlockCache, position: usize) -> Result<Tensor>;
}
