//! Learned vectors that stand before the text of a session.
//!
//! Servers see hidden states at the first positions as at any others: their caches, spares and
//! replacements hold them as they hold the text. Pages are named by tokens, of which these vectors have
//! none; a place holder stands for each, and that the session's adapter is part of every name keeps
//! apart what two adapters say.

use umbel_engine::HiddenStates;

use super::Entering;
use crate::adapter::NamedAdapter;

/// The token that stands for a vector in the names of pages. It is never embedded.
const PLACE_HOLDER: u32 = 0;

/// What stands before the text.
#[derive(Debug, Clone)]
pub(super) struct Lead {
    vectors: HiddenStates,
    tokens: u32,
}

impl Lead {
    /// That of an adapter, if it has one.
    pub(super) fn of(adapter: Option<&NamedAdapter>) -> Option<Self> {
        let vectors = adapter?.prompt()?;
        let tokens = u32::try_from(vectors.token_count()).ok()?;
        Some(Self { vectors, tokens })
    }

    pub(super) const fn tokens(&self) -> u32 {
        self.tokens
    }

    pub(super) const fn vectors(&self) -> &HiddenStates {
        &self.vectors
    }

    /// Puts the vectors before the tokens of a step that begins the text: where the step then begins, what
    /// it hands in, and how many rows of its answer are theirs.
    pub(super) fn before(&self, position: u32, entering: Entering) -> (u32, Entering, usize) {
        if position > 0 {
            return (position + self.tokens, entering, 0);
        }
        let Entering { hidden, ids } = entering;
        let ids = if ids.is_empty() { ids } else { self.named(&ids) };
        let both = HiddenStates::concat(&[self.vectors.clone(), hidden]);
        let hidden = both.expect("the adapter is for this model");
        (0, Entering { hidden, ids }, self.vectors.token_count())
    }

    /// The tokens by which the pages of a text are named.
    pub(super) fn named(&self, text: &[u32]) -> Vec<u32> {
        let mut named = vec![PLACE_HOLDER; self.vectors.token_count()];
        named.extend_from_slice(text);
        named
    }
}
