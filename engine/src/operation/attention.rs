//! Attention of queries to the keys and values in caches.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{computed, rows_of, values, with_values};
use crate::block::Stretch;
use crate::kernel::{self, Attending, AttentionShape};
use crate::kv::table::BlockCache;

/// Puts `keys` and `values`, `[tokens, kv_heads * head_size]`, into the caches of the stretches
/// that the rows belong to, and lets each of the `queries`, `[tokens, heads * head_size]`, attend to
/// its own position and those before it in its own session. The result has the shape of the queries.
///
/// It has no backward pass: training keeps no cache and attends over whole tensors.
pub(crate) fn attend(
    shape: AttentionShape,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    stretches: &mut [Stretch<'_>],
) -> Result<Tensor> {
    let token_values = shape.kv_heads * shape.head_size;
    with_values(keys, |keys| {
        with_values(values, |values| write(stretches, token_values, keys, values))
    })??;
    let sessions = stretches.iter().map(|stretch| Attending {
        pages: &*stretch.cache,
        position: stretch.position,
        tokens: stretch.tokens,
    });
    queries.apply_op1_no_bwd(&CachedAttention { shape, sessions: sessions.collect() })
}

/// Gives each cache the rows of its own tokens.
fn write(stretches: &mut [Stretch<'_>], token_values: usize, keys: &[f32], values: &[f32]) {
    let mut start = 0;
    for stretch in stretches {
        let rows = start..start + stretch.tokens * token_values;
        start = rows.end;
        stretch.cache.write(stretch.position, &keys[rows.clone()], &values[rows]);
    }
}

/// Attention to caches that hold the keys and values of the queries' own tokens already.
struct CachedAttention<'a> {
    shape: AttentionShape,
    sessions: Vec<Attending<'a, BlockCache>>,
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
        kernel::attention(self.shape, queries, &self.sessions, &mut output);
        Ok(computed(output, tokens, columns))
    }
}
