//! Attention of queries to the keys and values in a cache.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{computed, rows_of, values, with_values};
use crate::kernel::{self, AttentionShape};
use crate::kv::table::BlockCache;

/// Puts `keys` and `values`, `[tokens, kv_heads * head_size]`, into `cache` from `position` on, and
/// lets each of the `queries`, `[tokens, heads * head_size]`, attend to its own position and those
/// before it. The result has the shape of the queries.
///
/// It has no backward pass: training keeps no cache and attends over whole tensors.
pub(crate) fn attend(
    shape: AttentionShape,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    cache: &mut BlockCache,
    position: usize,
) -> Result<Tensor> {
    with_values(keys, |keys| with_values(values, |values| cache.write(position, keys, values)))??;
    queries.apply_op1_no_bwd(&CachedAttention { shape, cache, position })
}

/// Attention to a cache that holds the keys and values of the queries' own tokens already.
struct CachedAttention<'a> {
    shape: AttentionShape,
    cache: &'a BlockCache,
    position: usize,
}

impl CustomOp1 for CachedAttention<'_> {
    fn name(&self) -> &'static str {
        "cached attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let columns = self.shape.heads * self.shape.head_size;
        let tokens = rows_of(self.name(), layout, columns)?;
        let queries = values(self.name(), storage, layout)?;
        let mut output = vec![0.0; queries.len()];
        kernel::attention(self.shape, queries, self.cache, self.position, &mut output);
        Ok(computed(output, tokens, columns))
    }
}
