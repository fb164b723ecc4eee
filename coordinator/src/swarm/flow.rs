//! How many tokens a second a placement of servers can carry.
//!
//! A server has a rate, in block-tokens a second, that the blocks of its span share; a route may
//! change servers at any boundary. The throughput of the swarm is the largest number of tokens a
//! second that every block can be given at once. That is a maximum flow. By the theorem of
//! maximum flow and minimum cut it is the least, over all sets of blocks, of
//!
//! ```text
//! the rates of the servers that hold a block of the set / the blocks of the set
//! ```
//!
//! Spans are intervals, so a server holds no block of the set exactly where its span lies inside
//! one of the gaps that the set leaves. A table of the rates inside each interval therefore
//! replaces the servers, and one pass over it finds the worst set for a given throughput; Newton's
//! method of Dinkelbach ("On nonlinear fractional programming", Management Science 1967) then
//! needs a few passes. The cost depends on the blocks (80 of them: some microseconds a pass) and
//! not on the servers.

mod level;
mod limited;

use std::ops::Range;

use umbel_protocol::Span;

pub use limited::{Server, throughput};

/// Rates are whole multiples of this many block-tokens a second, so that sums of them are exact,
/// in whatever order they are made: every peer with the same view computes the same, and what was
/// added can be taken away again.
const RATE_UNIT: f64 = 1.0 / 1024.0;

/// Highest rate of one server that is believed: a thousand million block-tokens a second is
/// beyond any hardware, and 2^13 such servers (a directory keeps 2^10) sum up exactly in 53 bits.
const RATE_MAX: f64 = (1u64 << 30) as f64;

/// The rates of a swarm, by the intervals that hold them.
#[derive(Debug, Clone, PartialEq)]
pub struct Supply {
    block_count: usize,
    /// At `end * (block_count + 1) + start`: the rates of the servers whose span lies inside
    /// `[start, end)`.
    inside: Vec<f64>,
}

/// What limits a swarm.
#[derive(Debug, Clone, PartialEq)]
pub struct Bottleneck {
    /// Tokens a second that the whole swarm can carry.
    pub tokens_per_second: f64,
    /// Blocks whose servers are all busy at that throughput: only more rate here raises it.
    pub blocks: Vec<u32>,
}

impl Supply {
    /// A swarm without servers, for a model of this many blocks.
    #[must_use]
    pub fn new(block_count: u32) -> Self {
        let block_count = block_count as usize;
        Self { block_count, inside: vec![0.0; (block_count + 1) * (block_count + 1)] }
    }

    /// Blocks of the model.
    #[must_use]
    pub const fn block_count(&self) -> usize {
        self.block_count
    }

    /// Adds a server.
    pub fn add(&mut self, span: Span, rate: f64) {
        self.change(span, usable(rate));
    }

    /// Takes away a server that was added with the same span and rate.
    pub fn remove(&mut self, span: Span, rate: f64) {
        self.change(span, -usable(rate));
    }

    /// The rates of all servers, in block-tokens a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.inside(0, self.block_count)
    }

    /// What limits the swarm. A model without blocks has no limit, and nothing that limits it.
    #[must_use]
    pub fn bottleneck(&self) -> Bottleneck {
        let mut pass = level::Pass::default();
        let (tokens_per_second, gaps) = pass.lowest(self, 0, self.block_count);
        let in_gap = |block: usize| gaps.iter().any(|gap| gap.0 <= block && block < gap.1);
        let blocks = (0u32..).zip(0..self.block_count).filter(|(_, block)| !in_gap(*block));
        Bottleneck { tokens_per_second, blocks: blocks.map(|(name, _)| name).collect() }
    }

    /// Tokens a second that the whole swarm can carry.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        level::Pass::default().lowest(self, 0, self.block_count).0
    }

    /// What each block gets where the rates are shared as evenly as the spans allow: the least is
    /// as high as it can be (it is the throughput), then the second least, and so on.
    ///
    /// This sharing is the lexicographically optimal base of a polymatroid (Fujishige,
    /// Mathematics of Operations Research 1980), which maximises every sum of one concave function
    /// over the blocks.
    #[must_use]
    pub fn levels(&self) -> Vec<f64> {
        let mut levels = vec![0.0; self.block_count];
        self.visit_levels(|level, blocks, _| {
            levels[blocks].fill(level);
            true
        });
        levels
    }

    /// Goes through the levels, a lower one before the higher ones beside it, for as long as the
    /// visitor says true: a level, the stretch of blocks in which it is the lowest, and how many
    /// blocks of that stretch are at it; those of the others come later.
    pub(super) fn visit_levels(&self, mut visit: impl FnMut(f64, Range<usize>, usize) -> bool) {
        let mut pass = level::Pass::default();
        let mut intervals = vec![(0, self.block_count)];
        while let Some((start, end)) = intervals.pop() {
            if start == end {
                continue;
            }
            let (level, gaps) = pass.lowest(self, start, end);
            let above: usize = gaps.iter().map(|(start, end)| end - start).sum();
            if !visit(level, start..end, end - start - above) {
                return;
            }
            intervals.extend(gaps);
        }
    }

    fn inside(&self, start: usize, end: usize) -> f64 {
        self.inside[end * (self.block_count + 1) + start]
    }

    /// The rates inside `[start, end)` for each start from `from` up to `end`.
    fn inside_until(&self, from: usize, end: usize) -> &[f64] {
        let row = end * (self.block_count + 1);
        &self.inside[row + from..row + end]
    }

    fn change(&mut self, span: Span, rate: f64) {
        let (start, end) = (span.start() as usize, span.end() as usize);
        for last in end..=self.block_count {
            let row = last * (self.block_count + 1);
            for inside in &mut self.inside[row..=row + start] {
                *inside += rate;
            }
        }
    }
}

/// The rate as it is counted: exact in sums, and neither negative nor without bound.
fn usable(rate: f64) -> f64 {
    // Also where the rate is not a number.
    if rate > 0.0 { (rate.min(RATE_MAX) / RATE_UNIT).round().max(1.0) * RATE_UNIT } else { 0.0 }
}

#[cfg(test)]
mod tests;
