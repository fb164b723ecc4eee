//! What leaves the last block for a text, and the text as one vector.

use std::sync::Arc;

use umbel_engine::HiddenStates;
use umbel_protocol::inference::AnswerRows;

use crate::apart;
use crate::chain::Chain;
use crate::generate::{GenerateError, PREFILL_CHUNK_TOKENS, embed};
use crate::model::ClientModel;

/// What leaves the last block for each of these tokens, `[tokens, hidden]`, before the final norm;
/// the chain's session reads them and ends.
///
/// # Errors
/// [`GenerateError`] where there is no token or the chain has no room for all, where the model was
/// opened without its ends, or where the chain fails for good.
pub async fn hidden_states(
    model: &Arc<ClientModel>,
    mut chain: Chain,
    ids: &[u32],
) -> Result<HiddenStates, GenerateError> {
    check(model, &chain, ids)?;
    let mut parts = Vec::new();
    for (position, chunk) in chunks(ids) {
        parts.push(read(model, &mut chain, position, chunk).await?);
    }
    chain.close().await;
    Ok(HiddenStates::concat(&parts).expect("all are of one model"))
}

/// The vector of a text of these tokens, which a session without any other reads: the mean of what
/// the head is given for its tokens, of length 1.
///
/// Texts that mean the same are to have vectors that point the same way. How well that holds is a
/// matter of the model: one that was trained to go on with texts was not trained for it.
///
/// # Errors
/// As [`hidden_states`].
pub async fn embedding(
    model: &Arc<ClientModel>,
    mut chain: Chain,
    ids: &[u32],
) -> Result<Vec<f32>, GenerateError> {
    check(model, &chain, ids)?;
    let mut sum = vec![0.0; model.config().hidden_size];
    for (position, chunk) in chunks(ids) {
        let leaving = read(model, &mut chain, position, chunk).await?;
        let ends = Arc::clone(model);
        let rows = apart::compute(move || ends.ends().normed(&leaving)).await?;
        for row in rows {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
    chain.close().await;
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    // A sum of nothing but zeros has no direction.
    let length = if length > 0.0 { length } else { 1.0 };
    Ok(sum.into_iter().map(|value| value / length).collect())
}

fn check(model: &ClientModel, chain: &Chain, ids: &[u32]) -> Result<(), GenerateError> {
    let context = model.config().context_tokens.min(chain.tokens_max() as usize);
    if chain.is_thin() || !model.has_weights() {
        return Err(GenerateError::NoWeights);
    }
    if ids.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if ids.len() > context {
        return Err(GenerateError::PromptTooLong { tokens: ids.len(), context });
    }
    Ok(())
}

/// Parts that are read in one step, and where each begins.
fn chunks(ids: &[u32]) -> impl Iterator<Item = (u32, &[u32])> {
    let begins = (0_u32..).step_by(PREFILL_CHUNK_TOKENS as usize);
    begins.zip(ids.chunks(PREFILL_CHUNK_TOKENS as usize))
}

async fn read(
    model: &Arc<ClientModel>,
    chain: &mut Chain,
    position: u32,
    chunk: &[u32],
) -> Result<HiddenStates, GenerateError> {
    let entering = embed(model, chunk.to_vec()).await?;
    let (leaving, _) = chain.begin(position, entering, AnswerRows::All).await.finish().await?;
    Ok(leaving)
}
