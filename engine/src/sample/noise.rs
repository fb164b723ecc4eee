//! Noise that is a pure function of seed, position and token.

/// The increment of SplitMix64: 2^64 divided by the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The noise of one position: independent values for each token of the vocabulary.
///
/// The generator is SplitMix64 (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>)
/// read at an index instead of in sequence: `mix(start + (token + 1) * GAMMA)`, where `start` is the
/// mix of the mixed seed and the position. It is fixed: another one would change what a seed gives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise {
    start: u64,
}

impl Noise {
    /// The noise at `position` of the generation with `seed`.
    pub(super) const fn at(seed: u64, position: u64) -> Self {
        let of_seed = mix(seed.wrapping_add(GOLDEN_GAMMA));
        Self { start: mix(of_seed ^ position.wrapping_mul(GOLDEN_GAMMA)) }
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
        let index = u64::from(token).wrapping_add(1);
        let bits = mix(self.start.wrapping_add(index.wrapping_mul(GOLDEN_GAMMA)));
        // The middle of one of 2^52 equal intervals, exact in binary64.
        ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }
}

/// The finalizer of SplitMix64 (Stafford's variant 13): a bijection whose bits all depend on all.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finalizer_is_that_of_the_reference_implementation() {
        // The first outputs of https://prng.di.unimi.it/splitmix64.c for the seed 1234567.
        let outputs: Vec<u64> = (1..=3u64)
            .map(|index| mix(1_234_567u64.wrapping_add(index.wrapping_mul(GOLDEN_GAMMA))))
            .collect();
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(outputs, expected);
    }

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
