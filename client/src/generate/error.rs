//! Why a generation does not begin, or ends too early.

use umbel_engine::{EndsError, InvalidSampling, NotNumbers};

use crate::chain::StepError;
use crate::text::grammar::GrammarError;

/// A generation that cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to continue.
    #[error("the prompt has no token")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, but the context only {context}: shorten it")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// A token that the model does not have.
    #[error("token {id} does not exist: the model's vocabulary has {vocabulary} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// How many there are.
        vocabulary: usize,
    },
    /// A model that was opened for thin sessions alone.
    #[error("the model was opened without weights: ask for a thin session, or open its ends")]
    NoWeights,
    /// Logits of a thin session, or what is done to them here before a token is drawn; or vectors before
    /// its text.
    #[error(
        "a thin session has no logits, since its last server draws the tokens, and no learned prompt, \
         since its first server embeds tokens alone"
    )]
    NoLogits,
    /// Sampling parameters out of range.
    #[error(transparent)]
    Sampling(#[from] InvalidSampling),
    /// The form that the answer is held to cannot be followed any further.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// What came back from the blocks says nothing of the next token.
    #[error(transparent)]
    NotNumbers(#[from] NotNumbers),
    /// The embedding or the head failed.
    #[error("the ends of the model could not be computed")]
    Ends(#[from] EndsError),
    /// The blocks could not be computed.
    #[error(transparent)]
    Step(#[from] StepError),
}
