//! Which inputs of an adapter are dropped: a pure function of seeds and places.
//!
//! A replay after a failure draws the same mask, on whatever server, and a sequence's mask does not
//! depend on the sequences beside it.

use super::{Sequence, TargetModule};
use crate::noise::Stream;

/// The number of the stream that belongs to one module of one block.
pub(crate) fn stream_of(block: u32, module: TargetModule) -> u64 {
    u64::from(block) * TargetModule::ALL.len() as u64 + module as u64
}

/// The mask of one module's input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask<'a> {
    /// In [0, 1).
    probability: f32,
    stream: u64,
    sequences: &'a [Sequence],
}

impl<'a> Mask<'a> {
    /// `None` where nothing is dropped.
    pub(super) fn new(
        probability: f32,
        block: u32,
        module: TargetModule,
        sequences: &'a [Sequence],
    ) -> Option<Self> {
        let stream = stream_of(block, module);
        (probability > 0.0).then_some(Self { probability, stream, sequences })
    }

    /// Drops values of `rows`, `[tokens, columns]`, with their probability, and scales the others so
    /// that each keeps its expectation.
    pub(super) fn apply(self, rows: &mut [f32], columns: usize) {
        let kept = 1.0 / (1.0 - self.probability);
        // A value is dropped where the upper 24 of its bits are below this.
        let threshold = f64::from(self.probability) * f64::from(1_u32 << 24);
        let mut rest = rows;
        for sequence in self.sequences {
            let values = rest
                .split_off_mut(..sequence.tokens * columns)
                .expect("the sequences have as many tokens as there are rows");
            let stream = Stream::of(sequence.dropout_seed, self.stream);
            for (index, value) in (0..).zip(values) {
                let dropped = ((stream.bits(index) >> 40) as f64) < threshold;
                *value = if dropped { 0.0 } else { *value * kept };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(sequences: &[Sequence], module: TargetModule) -> Vec<f32> {
        let tokens: usize = sequences.iter().map(|sequence| sequence.tokens).sum();
        let mut rows = vec![1.0; tokens * 50];
        Mask::new(0.25, 3, module, sequences).unwrap().apply(&mut rows, 50);
        rows
    }

    #[test]
    fn the_expected_share_is_dropped_and_the_rest_is_scaled() {
        let all = masked(&[Sequence { tokens: 400, dropout_seed: 9 }], TargetModule::Up);
        let dropped = all.iter().filter(|value| **value == 0.0).count();
        assert!(all.iter().all(|&value| value == 0.0 || value == 1.0 / 0.75));
        // 20,000 draws with a deviation of 61.
        assert!((4700..5300).contains(&dropped), "{dropped}");
    }

    #[test]
    fn a_mask_is_that_of_its_sequence_module_and_seed() {
        let one = Sequence { tokens: 6, dropout_seed: 1 };
        let two = Sequence { tokens: 4, dropout_seed: 2 };
        let alone = masked(&[two], TargetModule::Query);
        assert_eq!(masked(&[one, two], TargetModule::Query)[6 * 50..], alone);
        assert_ne!(masked(&[Sequence { dropout_seed: 3, ..two }], TargetModule::Query), alone);
        assert_ne!(masked(&[two], TargetModule::Key), alone);
    }

    #[test]
    fn nothing_is_dropped_with_probability_zero() {
        assert!(Mask::new(0.0, 0, TargetModule::Query, &[]).is_none());
    }
}
