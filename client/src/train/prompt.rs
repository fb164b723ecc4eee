//! Learned vectors before the text (Lester et al. 2021, <https://arxiv.org/abs/2104.08691>), and in each
//! block too where they are deep: what they are before the first step.

use umbel_coordinator::random::Random;
use umbel_engine::EndsError;
use umbel_engine::train::adapter::PROMPT_TOKENS_MAX;
use umbel_engine::train::{Adapter, AdapterConfig, AdapterError};
use umbel_protocol::Span;

use crate::model::ClientModel;

/// A prompt of `tokens` vectors for `model`; where it is `deep`, every block adds others to the hidden
/// states of these positions.
///
/// The vectors before the text are those of the tokens of `text`, as often as there is room, or where it is
/// empty those of tokens drawn from `seed`: both learn faster than other values do (Lester et al., figure
/// 3b). What blocks add is zero.
///
/// # Errors
/// [`BeginPromptError`] where it has no token or more than the model takes, or `text` has tokens that the
/// model lacks.
pub fn begin(
    model: &ClientModel,
    (tokens, deep): (usize, bool),
    text: &[u32],
    seed: u64,
) -> Result<Adapter, BeginPromptError> {
    if tokens == 0 {
        return Err(BeginPromptError::NoToken);
    }
    let config = AdapterConfig {
        prompt_tokens: tokens,
        block_prompt_tokens: if deep { tokens } else { 0 },
        ..AdapterConfig::default()
    };
    let all = Span::new(0, model.config().block_count).map_err(|_| AdapterError::Parts)?;
    let mut adapter = Adapter::begin(config, model.config(), all, seed)?;
    let mut random = Random::new(seed);
    let vocabulary = model.config().vocabulary_size;
    let mut drawn = || u32::try_from(random.below(vocabulary)).unwrap_or_default();
    let ids: Vec<u32> = if text.is_empty() {
        (0..tokens).map(|_| drawn()).collect()
    } else {
        text.iter().copied().cycle().take(tokens).collect()
    };
    adapter.set_prompt(&model.ends().embed(&ids)?.to_values())?;
    Ok(adapter)
}

/// A prompt that cannot be learned.
#[derive(Debug, thiserror::Error)]
pub enum BeginPromptError {
    /// Nothing would be learned.
    #[error("a prompt has 1 to {PROMPT_TOKENS_MAX} tokens, not 0")]
    NoToken,
    /// It is too long.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A token is not in the vocabulary.
    #[error(transparent)]
    Ends(#[from] EndsError),
}
