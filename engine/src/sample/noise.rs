//! Noise that is a pure function of seed, position and token.

use crate::noise::Stream;

/// The noise of one position: independent values for each token of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise(Stream);

impl Noise {
    /// The noise at `position` of the generation with `seed`.
    pub(super) const fn at(seed: u64, position: u64) -> Self {
        Self(Stream::of(seed, position))
    }

    /// A value of the standard Gumbel distribution for `token`.
    pub(super) fn gumbel(self, token: u32) -> f32 {
        // In binary64, because the binary32 values next to 1 are too coarse for the upper tail.
        #[expect(clippy::cast_possible_truncation, reason = "noise needs no more than 24 bits")]
        let noise = -(-self.uniform(token).ln()).ln() as f32;
        noise
    }

    /// A value of the uniform distribution over (0, 1), both ends excluded.
    fn uniform(self, token: u32) -> f64 {
        // The middle of one of 2^52 equal intervals, exact in binary64.
        ((self.0.bits(token.into()) >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_seed_gives_never_changes() {
        let bits = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (u64::MAX, 4096, u32::MAX)]
            .map(|(seed, position, token)| Noise::at(seed, position).uniform(token).to_bits());
        let expected: [u64; 5] = [
            4_599_761_431_544_892_162,
            4_601_467_259_496_518_126,
            4_592_778_146_800_782_920,
            4_598_519_839_874_743_262,
            4_603_418_941_779_484_785,
        ];
        assert_eq!(bits, expected);
    }

    #[test]
    fn noise_is_uniform_over_tokens_positions_and_seeds() {
        const DRAWS: u32 = 100_000;
        // Of a uniform distribution, each of 20 bins gets 5000 draws with a standard deviation of
        // 69; six of those leave one chance in ten million.
        const DEVIATION_MAX: u32 = 414;
        let along: [fn(u32) -> f64; 3] = [
            |index| Noise::at(7, 3).uniform(index),
            |index| Noise::at(7, index.into()).uniform(3),
            |index| Noise::at(index.into(), 7).uniform(3),
        ];
        for draw in along {
            let mut bins = [0u32; 20];
            for index in 0..DRAWS {
                let value = draw(index);
                assert!(value > 0.0 && value < 1.0);
                #[expect(clippy::cast_possible_truncation, reason = "a value below 20")]
                let bin = (value * 20.0) as usize;
                bins[bin] += 1;
            }
            assert!(bins.iter().all(|&bin| bin.abs_diff(DRAWS / 20) < DEVIATION_MAX), "{bins:?}");
        }
    }
}
