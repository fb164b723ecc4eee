//! Numbers that are worked on in order, as long as nobody is left without work.
//!
//! Memory is read fastest in order, and a thread that begins at another place waits for it at first. So
//! each thread has one range of its own, which it takes a quarter of what is left of at a time; only when
//! that is empty does it take half of what another one has left. Threads of one speed never meet, and one
//! that the system keeps from its core holds back no more than the piece that it is at.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A thread takes one of so many parts of what it has left, so that pieces are few and the last ones short.
const PARTS: usize = 4;

/// What each thread has left of the numbers.
pub(crate) struct Ranges {
    left: Vec<Left>,
}

/// The numbers that nobody has taken of a thread's: the first in the upper half, the end in the lower. It
/// has a cache line of its own, and the one beside it that some processors fetch with it.
#[repr(align(128))]
struct Left(AtomicU64);

impl Ranges {
    /// The numbers below `count`, cut into as many ranges as there are `threads`, of which each but the
    /// last is at least `piece` long.
    ///
    /// # Panics
    /// For 2^32 numbers and more.
    pub(crate) fn new(count: usize, threads: usize, piece: usize) -> Self {
        let length = count.div_ceil(threads.max(1)).max(piece).max(1);
        let starts = (0..count).step_by(length);
        let range = |start: usize| Left(AtomicU64::new(pack(&(start..count.min(start + length)))));
        Self { left: starts.map(range).collect() }
    }

    /// How many ranges there are: how many threads have work.
    pub(crate) fn count(&self) -> usize {
        self.left.len()
    }

    /// The next numbers for who has range `own`, at least `piece` where there are as many; `None` when all
    /// are taken.
    pub(crate) fn take(&self, own: usize, piece: usize) -> Option<Range<usize>> {
        let first = |Range { start, end }: Range<usize>| {
            let length = ((end - start) / PARTS).max(piece).max(1);
            start..end.min(start + length)
        };
        let mut taken = 0..0;
        let take = |left| {
            taken = first(unpack(left));
            (!taken.is_empty()).then(|| pack(&(taken.end..unpack(left).end)))
        };
        if self.change(own, take) {
            return Some(taken);
        }
        let half = self.take_half(piece)?;
        let taken = first(half.clone());
        // Nobody writes to an empty range but the one whose it is.
        self.left[own].0.store(pack(&(taken.end..half.end)), Ordering::Relaxed);
        Some(taken)
    }

    /// The last half of the longest range, at least `piece` of it.
    fn take_half(&self, piece: usize) -> Option<Range<usize>> {
        loop {
            let length = |left: &Left| unpack(left.0.load(Ordering::Relaxed)).len();
            let longest = (0..self.left.len()).max_by_key(|&range| length(&self.left[range]))?;
            let mut taken = 0..0;
            let half = |left| {
                let Range { start, end } = unpack(left);
                let length = ((end - start) / 2).max(piece.max(1));
                taken = start.max(end.saturating_sub(length))..end;
                (!taken.is_empty()).then(|| pack(&(start..taken.start)))
            };
            if self.change(longest, half) {
                return Some(taken);
            }
            if (0..self.left.len()).all(|range| length(&self.left[range]) == 0) {
                return None;
            }
        }
    }

    /// Changes what is left of a range, unless `change` says otherwise; whether it was changed. The
    /// numbers are all that is shared, so their order with other memory does not matter; and a value says
    /// all there is to know of a range, so it may have gone and come back meanwhile.
    fn change(&self, range: usize, change: impl FnMut(u64) -> Option<u64>) -> bool {
        self.left[range].0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

fn pack(range: &Range<usize>) -> u64 {
    let half = |number| u64::from(u32::try_from(number).expect("there are fewer than 2^32"));
    half(range.start) << 32 | half(range.end)
}

fn unpack(left: u64) -> Range<usize> {
    let [start, end] = [left >> 32, left & u64::from(u32::MAX)];
    let half = |number| usize::try_from(number).expect("it was a number of this machine");
    half(start)..half(end)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn who_is_alone_takes_all_in_order_and_then_the_halves_of_others() {
        let ranges = Ranges::new(40, 2, 1);
        assert_eq!(ranges.count(), 2);
        let starts: Vec<_> =
            std::iter::from_fn(|| ranges.take(0, 3)).map(|taken| taken.start).collect();
        assert_eq!(starts, [0, 5, 8, 11, 14, 17, 30, 33, 36, 39, 25, 28, 22, 20]);
        assert_eq!(ranges.take(1, 3), None);
    }

    #[test]
    fn there_are_no_more_ranges_than_pieces() {
        for (count, threads, piece, ranges) in
            [(0, 4, 1, 0), (3, 4, 1, 3), (3, 4, 2, 2), (7, 4, 9, 1), (64, 4, 1, 4), (5, 0, 0, 1)]
        {
            assert_eq!(Ranges::new(count, threads, piece).count(), ranges, "{count} {threads}");
        }
    }

    #[test]
    fn each_number_is_taken_once_however_the_threads_run() {
        for (count, piece) in [(1, 1), (63, 5), (10_000, 1), (10_000, 7)] {
            for threads in 1..=4 {
                let ranges = Ranges::new(count, threads, piece);
                let times: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                std::thread::scope(|scope| {
                    for own in 0..ranges.count() {
                        let (ranges, times) = (&ranges, &times);
                        scope.spawn(move || {
                            // The first is slower than the others.
                            let piece = if own == 0 { 1 } else { piece };
                            while let Some(taken) = ranges.take(own, piece) {
                                for number in taken {
                                    times[number].fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        });
                    }
                });
                assert!(times.iter().all(|times| times.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
