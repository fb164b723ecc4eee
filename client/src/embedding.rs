//! A text as one vector: the mean of what the head is given for its tokens, of length 1.

use std::sync::Arc;

use umbel_protocol::inference::AnswerRows;

use crate::chain::Chain;
use crate::generate::{GenerateError, PREFILL_CHUNK_TOKENS, compute_apart, embed};
use crate::model::ClientModel;

/// The vector of a text of these tokens, which a session without any other reads.
///
/// Texts that mean the same are to have vectors that point the same way. How well that holds is a
/// matter of the model: one that was trained to go on with texts was not trained for it.
///
/// # Errors
/// [`GenerateError`] where there is no token or the chain has no room for all, where the model was
/// opened without its ends, or where the chain fails for good.
pub async fn embedding(
    model: &Arc<ClientModel>,
    mut chain: Chain,
    ids: &[u32],
) -> Result<Vec<f32>, GenerateError> {
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
    let mut sum = vec![0.0; model.config().hidden_size];
    let mut position = 0;
    for chunk in ids.chunks(PREFILL_CHUNK_TOKENS as usize) {
        let entering = embed(model, chunk.to_vec()).await?;
        let (leaving, _) = chain.begin(position, entering, AnswerRows::All).await.finish().await?;
        position += u32::try_from(chunk.len()).expect("a context is counted in 32 bits");
        let ends = Arc::clone(model);
        let rows = compute_apart(move || ends.ends().normed(&leaving)).await?;
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
