//! Random bits that are a pure function of seeds and places.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>)
//! read at an index instead of in sequence: `mix(start + (index + 1) * GAMMA)`, where `start` is the
//! mix of the mixed seed and the number of the stream. It is fixed: another one would change what a
//! seed gives, in answers and in trainings.

/// The increment of SplitMix64: 2^64 divided by the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// One of the streams of bits that a seed has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    start: u64,
}

impl Stream {
    /// The stream of this number that belongs to `seed`.
    pub(crate) const fn of(seed: u64, number: u64) -> Self {
        let of_seed = mix(seed.wrapping_add(GOLDEN_GAMMA));
        Self { start: mix(of_seed ^ number.wrapping_mul(GOLDEN_GAMMA)) }
    }

    /// The 64 bits at `index`.
    pub(crate) const fn bits(self, index: u64) -> u64 {
        mix(self.start.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA)))
    }

    /// A value of the uniform distribution over [-1, 1), exact in binary32.
    pub(crate) fn signed(self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 / (1 << 23) as f32 - 1.0
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
    fn the_bits_are_those_of_the_reference_implementation() {
        // The first outputs of https://prng.di.unimi.it/splitmix64.c for the seed 1234567.
        let stream = Stream { start: 1_234_567 };
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|index| stream.bits(index)), expected);
    }
}
