//! What a part of a model needs: tensors and files. Pure.

use std::collections::BTreeSet;

use umbel_protocol::Span;

use crate::config::ModelConfig;
use crate::layout::{self, LayoutTensor};
use crate::part::{BlocksNeeded, PartsNeeded};

/// The tensors that `parts` need.
///
/// # Errors
/// [`SpanOutside`] where the model has not all of the blocks.
pub fn tensors(config: &ModelConfig, parts: PartsNeeded) -> Result<Vec<LayoutTensor>, SpanOutside> {
    let mut wanted = Vec::new();
    if parts.embedding {
        wanted.extend(layout::embedding(config));
    }
    for index in blocks(config.block_count, parts.blocks)? {
        wanted.extend(layout::block(config, index));
    }
    if parts.head {
        wanted.extend(layout::head(config));
    }
    Ok(wanted)
}

/// The files that `parts` need, where `file_of` knows the file of each tensor.
///
/// # Errors
/// [`SpanOutside`] where the model has not all of the blocks.
pub fn files<'a>(
    config: &ModelConfig,
    parts: PartsNeeded,
    file_of: impl Fn(&str) -> Option<&'a str>,
) -> Result<BTreeSet<&'a str>, SpanOutside> {
    Ok(tensors(config, parts)?.iter().filter_map(|tensor| file_of(&tensor.name)).collect())
}

fn blocks(block_count: u32, needed: BlocksNeeded) -> Result<std::ops::Range<u32>, SpanOutside> {
    match needed {
        BlocksNeeded::None => Ok(0..0),
        BlocksNeeded::All => Ok(0..block_count),
        BlocksNeeded::Span(span) if span.end() <= block_count => Ok(span.blocks()),
        BlocksNeeded::Span(span) => Err(SpanOutside { span, block_count }),
    }
}

/// Blocks that the model does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model has no blocks {span}: it has {block_count}, which are 0..{block_count}")]
pub struct SpanOutside {
    /// The blocks that were asked for.
    pub span: Span,
    /// How many there are.
    pub block_count: u32,
}
