//! The parts of a model that can be held alone.

use umbel_protocol::Span;

/// Something that [`Model::weights`](crate::Model::weights) loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The embedding: `model.embed_tokens.weight`.
    Embedding,
    /// These transformer blocks.
    Blocks(Span),
    /// The final norm and the head; where both ends share one matrix, that is the embedding's.
    Head,
}

/// Which transformer blocks must be at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlocksNeeded {
    /// None: configuration and manifest are enough.
    #[default]
    None,
    /// These.
    Span(Span),
    /// All of them, however many there are.
    All,
}

/// What [`Model::open`](crate::Model::open) must have at hand when it returns.
///
/// A model is first opened with [`PartsNeeded::nothing`] where the span depends on what the
/// configuration says, and then again with the span: what was fetched is found in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartsNeeded {
    /// The embedding.
    pub embedding: bool,
    /// Transformer blocks.
    pub blocks: BlocksNeeded,
    /// The final norm and the head.
    pub head: bool,
    /// The tokenizer and the chat template.
    pub tokenizer: bool,
}

impl PartsNeeded {
    /// Configuration and manifest only.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { embedding: false, blocks: BlocksNeeded::None, head: false, tokenizer: false }
    }

    /// What a server needs: its blocks.
    #[must_use]
    pub const fn span(span: Span) -> Self {
        Self { blocks: BlocksNeeded::Span(span), ..Self::nothing() }
    }

    /// What a client needs: both ends and the tokenizer.
    #[must_use]
    pub const fn ends() -> Self {
        Self { embedding: true, blocks: BlocksNeeded::None, head: true, tokenizer: true }
    }

    /// The whole model.
    #[must_use]
    pub const fn everything() -> Self {
        Self { blocks: BlocksNeeded::All, ..Self::ends() }
    }
}
