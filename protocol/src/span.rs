//! Consecutive transformer blocks.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Consecutive blocks `[start, end)` of a model; never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The blocks from `start` up to and without `end`.
    ///
    /// # Errors
    /// [`EmptySpan`] where that is no block at all.
    pub const fn new(start: u32, end: u32) -> Result<Self, EmptySpan> {
        if start < end { Ok(Self { start, end }) } else { Err(EmptySpan { start, end }) }
    }

    /// The first block.
    #[must_use]
    pub const fn start(self) -> u32 {
        self.start
    }

    /// The block after the last one.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.end
    }

    /// How many blocks there are: at least one.
    #[must_use]
    pub const fn block_count(self) -> u32 {
        self.end - self.start
    }

    /// The indices of the blocks, in order.
    #[must_use]
    pub const fn blocks(self) -> Range<u32> {
        self.start..self.end
    }

    /// Whether `block` is one of these.
    #[must_use]
    pub const fn contains(self, block: u32) -> bool {
        self.start <= block && block < self.end
    }

    /// Whether every block of `other` is one of these.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The blocks that both have.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;

    /// Reads `0..10`; `0:10`, as Petals writes it, means the same.
    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        let (start, end) =
            text.split_once("..").or_else(|| text.split_once(':')).ok_or(InvalidSpan::Malformed)?;
        let number = |text: &str| text.trim().parse().map_err(|_| InvalidSpan::Malformed);
        Ok(Self::new(number(start)?, number(end)?)?)
    }
}

/// A span must have a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{start}..{end} has no block: the start must be below the end")]
pub struct EmptySpan {
    /// Where it was to start.
    pub start: u32,
    /// Where it was to end.
    pub end: u32,
}

/// A text that names no span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpan {
    /// Not two numbers with `..` between them.
    #[error("blocks are written START..END, for example 0..10")]
    Malformed,
    /// Two numbers, but no block between them.
    #[error(transparent)]
    Empty(#[from] EmptySpan),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans() -> impl Strategy<Value = Span> {
        (0u32..64, 1u32..64).prop_map(|(start, count)| Span::new(start, start + count).unwrap())
    }

    #[test]
    fn a_span_has_a_block() {
        assert_eq!(Span::new(3, 3), Err(EmptySpan { start: 3, end: 3 }));
        assert_eq!("4..2".parse::<Span>(), Err(EmptySpan { start: 4, end: 2 }.into()));
    }

    #[test]
    fn other_texts_are_no_span() {
        for text in ["", "1", "..", "a..b", "-1..2", "0..99999999999", "0...3"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_span_survives_its_text(span in spans()) {
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn an_intersection_has_the_blocks_of_both(a in spans(), b in spans()) {
            for block in 0..130 {
                let in_both = a.contains(block) && b.contains(block);
                prop_assert_eq!(a.intersection(b).is_some_and(|both| both.contains(block)), in_both);
            }
            prop_assert_eq!(a.covers(b), a.intersection(b) == Some(b));
        }
    }
}
