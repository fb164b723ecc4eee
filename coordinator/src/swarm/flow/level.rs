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
    /// The most that gaps before a block can save, and what the blocks before it need.
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
            // A gap from `first` saves `saved + inside - level * (last - first)`; the part of it
            // that depends on `last` is the same for all.
            let need = level * blocks(last - start);
            let inside = supply.inside_until(start, last);
            let most = greatest_sum(&self.saved, inside);
            let without = self.saved[last - start - 1] - level * blocks(last - 1 - start);
            // The difference is of sums, so what is no more than rounding is no gap.
            if most - need > without + TOLERANCE * level {
                let sum = |(saved, inside): (&f64, &f64)| saved + inside >= most;
                let first = self.saved.iter().zip(inside).position(sum).unwrap_or(0);
                self.saved.push(most);
                self.gap_start.push(start + first);
            } else {
                self.saved.push(without + need);
                self.gap_start.push(last);
            }
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

/// The greatest of the sums of two numbers each. Eight at a time, because a processor compares
/// several at once and need not wait for one comparison to begin the next.
fn greatest_sum(a: &[f64], b: &[f64]) -> f64 {
    let greater = |a: f64, b: f64| if a > b { a } else { b };
    let (mut lanes, length) = ([f64::NEG_INFINITY; 8], a.len().min(b.len()));
    let (a_chunks, a_rest) = a[..length].as_chunks::<8>();
    let (b_chunks, b_rest) = b[..length].as_chunks::<8>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = greater(a + b, *lane);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a + b);
    rest.chain(lanes).fold(f64::NEG_INFINITY, greater)
}

#[expect(clippy::cast_precision_loss, reason = "a number of blocks fits the mantissa")]
fn blocks(count: usize) -> f64 {
    count as f64
}
