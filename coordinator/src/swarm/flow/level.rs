//! The worst set of blocks inside an interval.

use super::Supply;

/// How much of the throughput may be missing before a set counts as worse: the arithmetic has 53
/// bits, and the differences of sums lose some of them.
const TOLERANCE: f64 = 1e-9;

/// Most refinements of one level. Each is a set that is strictly worse and smaller than the one
/// before, so there are never more than blocks; this only bounds the harm of rounding.
const REFINEMENTS_MAX: usize = 256;

/// The buffers of passes over a table, reused from one to the next.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// The most that gaps before a block can save.
    saved: Vec<f64>,
    /// Where the gap that ends at a block begins, if one does.
    gap_start: Vec<usize>,
}

impl Pass {
    /// The lowest level inside `[start, end)`, counting only servers whose span lies inside, and
    /// the gaps between the blocks at that level.
    pub(super) fn lowest(
        &mut self,
        supply: &Supply,
        start: usize,
        end: usize,
    ) -> (f64, Vec<(usize, usize)>) {
        let all = supply.inside(start, end);
        let mut level = if start < end { all / blocks(end - start) } else { f64::INFINITY };
        let mut gaps = Vec::new();
        for _ in 0..REFINEMENTS_MAX {
            let found = self.gaps(supply, start, end, level);
            let in_gaps: usize = found.iter().map(|(from, to)| to - from).sum();
            let count = end - start - in_gaps;
            if count == 0 {
                break;
            }
            let rate = all - found.iter().map(|(from, to)| supply.inside(*from, *to)).sum::<f64>();
            let refined = rate / blocks(count);
            if refined >= level * (1.0 - TOLERANCE) {
                break;
            }
            (level, gaps) = (refined, found);
        }
        (level, gaps)
    }

    /// The gaps that a worst set leaves at this level: those where the rates inside exceed what
    /// their own blocks need by the most.
    fn gaps(
        &mut self,
        supply: &Supply,
        start: usize,
        end: usize,
        level: f64,
    ) -> Vec<(usize, usize)> {
        self.saved.clear();
        self.saved.push(0.0);
        self.gap_start.clear();
        self.gap_start.push(start);
        for last in start + 1..=end {
            // Level by level, `saved[from] - level * (last - from)` without a product per step.
            let (mut best, mut from) = (self.saved[last - start - 1], last);
            let mut need = level * blocks(last - start);
            for (first, (inside, saved)) in
                (start..last).zip(supply.inside_until(start, last).iter().zip(&self.saved))
            {
                let gain = saved + inside - need;
                if gain > best {
                    (best, from) = (gain, first);
                }
                need -= level;
            }
            self.saved.push(best);
            self.gap_start.push(from);
        }
        self.trace(start, end)
    }

    fn trace(&self, start: usize, end: usize) -> Vec<(usize, usize)> {
        let mut gaps = Vec::new();
        let mut last = end;
        while last > start {
            let first = self.gap_start[last - start];
            if first == last {
                last -= 1;
            } else {
                gaps.push((first, last));
                last = first;
            }
        }
        gaps
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of blocks fits the mantissa")]
fn blocks(count: usize) -> f64 {
    count as f64
}
