//! What is asked with adapters, and what must come of it.

use std::sync::Arc;

use anyhow::Context as _;
use umbel_client::{Chain, ClientModel, Device, Generate, LocalModel, NamedAdapter};

/// Values of an adapter that have nothing to do with each other, between minus and plus half of `width`.
#[must_use]
pub fn scattered(count: u64, seed: u32, width: f32) -> Vec<f32> {
    let value = |index: u32| {
        let bits = (index ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b) >> 16;
        (bits as f32 / 65_536.0 - 0.5) * width
    };
    (0..).take(usize::try_from(count).unwrap_or(usize::MAX)).map(value).collect()
}

/// What one process answers that takes the whole text through the blocks for each token, and has the
/// likeliest one each time.
///
/// # Errors
/// Where a chain with the adapter cannot be opened or fails.
pub async fn uncached(
    model: &Arc<ClientModel>,
    adapter: Option<&NamedAdapter>,
    request: &Generate,
) -> anyhow::Result<Vec<u32>> {
    let local =
        Arc::new(LocalModel::load(model.shard(), model.config().context_tokens, Device::shared())?);
    let mut ids = request.prompt.clone();
    let prompt = adapter.map_or(0, |adapter| adapter.prompt_tokens());
    for _ in 0..request.max_tokens {
        let room = u32::try_from(ids.len() + prompt)?;
        let chain = local.open(room)?;
        let chain = match adapter {
            Some(adapter) => chain.adapted(adapter)?,
            None => chain,
        };
        let hidden = model.ends().embed(&ids)?;
        let (left, _) = Chain::Local(chain).step(0, hidden).await?;
        anyhow::ensure!(left.token_count() == ids.len(), "rows of the text alone");
        let logits = model.ends().logits(&left.last_row())?;
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let (best, _) = best.context("a model has a vocabulary")?;
        ids.push(u32::try_from(best)?);
    }
    Ok(ids)
}
