//! Speculation: tokens are guessed, and one trip round the chain checks several guesses.
//!
//! A step that carries the last token and `n` drafts costs one trip, and gives as many tokens as
//! drafts are right, and one more. Here is what can be decided without a model or a clock: drafts
//! from the text itself ([`SuffixIndex`]), and how many drafts a step is worth ([`DraftControl`]).
//!
//! The method is that of Leviathan, Kalman and Matias, "Fast Inference from Transformers via
//! Speculative Decoding", 2022 (<https://arxiv.org/abs/2211.17192>). Acceptance is stricter here: a
//! draft is kept only where it is the very token that would have been chosen without it.

mod acceptance;
mod control;
mod cost;
mod suffix;

pub use control::{Choice, DraftControl, DraftKind, Drafted, Offer, Outcome, StepSample};
pub use suffix::{SuffixIndex, WINDOW_TOKENS};

/// Most drafts of one step. Text that goes on so long as it once did is rare, and 64 rows are a
/// small prefill for every server on the way.
pub const DRAFT_TOKENS_MAX: u32 = 64;

#[cfg(test)]
mod tests;
