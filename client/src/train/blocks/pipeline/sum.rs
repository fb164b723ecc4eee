//! The gradients of microbatches that went along several routes, added in their order.

use std::collections::BTreeSet;
use std::ops::Range;

use umbel_protocol::Span;

/// The sum of the gradients of the first microbatches, and those of later ones that have come sooner.
#[derive(Debug)]
pub(crate) struct GradientSum {
    /// In the order of a state's values.
    sum: Vec<f32>,
    block_count: u32,
    microbatches: Vec<Gathered>,
    /// How many are in the sum.
    added: usize,
}

/// What is known of the gradients of one microbatch.
#[derive(Debug, Default)]
struct Gathered {
    /// Empty before there is any, and again when it is in the sum.
    row: Vec<f32>,
    blocks: BTreeSet<u32>,
}

impl GradientSum {
    /// Of so many microbatches, in the values of so many blocks.
    pub(crate) fn new(values: usize, block_count: u32, microbatches: usize) -> Self {
        let mut gathered = Vec::new();
        gathered.resize_with(microbatches, Gathered::default);
        Self { sum: vec![0.0; values], block_count, microbatches: gathered, added: 0 }
    }

    /// The stretch of some blocks in the row of all values.
    pub(crate) fn stretch(&self, blocks: Span) -> Range<u64> {
        let of_block = self.sum.len() as u64 / u64::from(self.block_count);
        u64::from(blocks.start()) * of_block..u64::from(blocks.end()) * of_block
    }

    /// Takes note of some gradients of a microbatch; they begin at `start` of the row.
    pub(super) fn read(&mut self, at: usize, start: u64, values: &[f32]) {
        let Gathered { row, .. } = &mut self.microbatches[at];
        if row.is_empty() && at >= self.added {
            row.resize(self.sum.len(), 0.0);
        }
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        // Those of a microbatch that is in the sum already are the same once more.
        if let Some(place) = row.get_mut(start..).and_then(|row| row.get_mut(..values.len())) {
            place.copy_from_slice(values);
        }
    }

    /// The gradients of a microbatch are known in some blocks; where they are in all, it is added as
    /// soon as those before it are.
    pub(super) fn add(&mut self, at: usize, blocks: Span) {
        self.microbatches[at].blocks.extend(blocks.blocks());
        let all = self.block_count as usize;
        while let Some(next) = self.microbatches.get_mut(self.added)
            && next.blocks.len() == all
        {
            let row = std::mem::take(&mut next.row);
            self.sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            self.added += 1;
        }
    }

    /// Whether the gradients of a microbatch are known in some blocks.
    pub(super) fn covers(&self, at: usize, blocks: Span) -> bool {
        blocks.blocks().all(|block| self.microbatches[at].blocks.contains(&block))
    }

    /// How many of the first microbatches are in the sum. Of each later one a row of all values may be held.
    pub(super) const fn added(&self) -> usize {
        self.added
    }

    /// How many rows are held beside the sum.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.microbatches.iter().filter(|gathered| !gathered.row.is_empty()).count()
    }

    /// The sum of all.
    pub(crate) fn total(&self) -> &[f32] {
        assert_eq!(self.added, self.microbatches.len(), "the pass took all of them back");
        &self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u32, end: u32) -> Span {
        Span::new(start, end).unwrap()
    }

    #[test]
    fn gradients_are_added_in_the_order_of_microbatches_whatever_order_they_come_in() {
        // In binary32 the order of these shows: 1 is lost beside 1e8.
        let values: [f32; 3] = [1e8, 1.0, -1e8];
        let mut sum = GradientSum::new(4, 2, 3);
        for at in [2, 0, 1] {
            assert!(!sum.covers(at, span(0, 1)));
            sum.read(at, 2, &[values[at]; 2]);
            sum.add(at, span(1, 2));
            sum.read(at, 0, &[values[at]; 2]);
            sum.add(at, span(0, 1));
            assert!(sum.covers(at, span(0, 2)));
        }
        let in_order = values.iter().fold(0.0, |sum, value| sum + value);
        assert_eq!(sum.total(), [in_order; 4]);
        assert_ne!(in_order, values[2] + values[0] + values[1]);
    }

    #[test]
    fn what_was_read_twice_counts_once() {
        let mut sum = GradientSum::new(2, 2, 1);
        assert_eq!(sum.stretch(span(1, 2)), 1..2);
        for _ in 0..2 {
            sum.read(0, 0, &[2.0]);
            sum.add(0, span(0, 1));
        }
        sum.read(0, 1, &[3.0]);
        sum.add(0, span(1, 2));
        sum.read(0, 0, &[9.0]);
        sum.add(0, span(0, 1));
        assert_eq!(sum.total(), [2.0, 3.0]);
    }
}
