//! Products of unsigned bytes with signed ones, four of which are summed in each lane.
//!
//! AVX-VNNI has an instruction for it (`vpdpbusd`: Alder Lake of 2021, Zen 5 of 2024). Without it there is
//! `maddubs`, which adds two products to 16 bits, in which it stops at the largest number. Weights of 4
//! bits never come near it, even where the products of all quads are added; those of 5 and 6 bits allow for
//! fewer. Those of 8 bits are widened in place for `madd`, the first and third of each row in one
//! register, the second and fourth in another, and meet activations of 16 bits that lie in the same pairs.

use std::arch::asm;
#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use super::unpack::{Pairs, Quads};
use crate::kernel::packed::quantized::layout::QUADS;
use crate::kernel::packed::quantized::tokens::Words;

/// How many products with quads of 4 bits can be added in 16 bits: `8 * 2 * 15 * 128` is below 2^15. Of 5
/// bits it is half of them, of 6 a quarter.
pub(super) const QUADS_OF_4: usize = QUADS;
pub(super) const QUADS_OF_5: usize = QUADS / 2;
pub(super) const QUADS_OF_6: usize = QUADS / 4;

/// The instructions that multiply bytes: a type for each, so that every loop is compiled for its own.
pub(super) trait Products: Copy {
    /// AVX-VNNI, if it is used.
    fn vnni(self) -> Option<Vnni>;
}

/// `maddubs`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maddubs;

impl Products for Maddubs {
    #[inline(always)]
    fn vnni(self) -> Option<Vnni> {
        None
    }
}

/// Proof that this processor has AVX-VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vnni(());

impl Products for Vnni {
    #[inline(always)]
    fn vnni(self) -> Option<Self> {
        Some(self)
    }
}

impl Vnni {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avxvnni").then_some(Self(()))
    }

    /// Adds to `sum` the products of a quad of 8 rows with 4 activations.
    ///
    /// `_mm256_dpbusd_avx_epi32` says the same, but would be a call from loops that are compiled for
    /// AVX2.
    #[target_feature(enable = "avx2")]
    #[inline]
    #[allow(unsafe_code, reason = "an instruction that the loop is not compiled for")]
    pub(super) fn add(self, mut sum: __m256i, quad: __m256i, word: i32) -> __m256i {
        // SAFETY: `self` exists only where the processor has the instruction, which reads and writes
        // nothing but these registers.
        unsafe {
            asm!(
                "{{vex}} vpdpbusd {sum}, {quad}, {word}",
                sum = inout(ymm_reg) sum,
                quad = in(ymm_reg) quad,
                word = in(ymm_reg) _mm256_set1_epi32(word),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}

/// A block of one token's activations, and whether it has upper bytes.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) words: &'a Words,
    pub(super) wide: bool,
}

/// The products of `COUNT` quads from `first` on; where there is no AVX-VNNI, `TOGETHER` of them are added
/// in 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn dot<const TOGETHER: usize, const COUNT: usize>(
    products: impl Products,
    quads: &Quads,
    inputs: Inputs<'_>,
    first: usize,
) -> __m256i {
    let sum =
        dot_bytes::<TOGETHER, COUNT>(products, quads, &inputs.words.0, [first, first + QUADS]);
    if !inputs.wide {
        return sum;
    }
    // The upper bytes count 256 times the lower.
    let upper = dot_bytes::<TOGETHER, COUNT>(products, quads, &inputs.words.0, [first, first]);
    _mm256_add_epi32(_mm256_slli_epi32::<8>(upper), sum)
}

/// The products of quads and words, each from a place on.
#[target_feature(enable = "avx2")]
#[inline]
fn dot_bytes<const TOGETHER: usize, const COUNT: usize>(
    products: impl Products,
    quads: &Quads,
    words: &[i32; 2 * QUADS],
    [first, first_word]: [usize; 2],
) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    if let Some(vnni) = products.vnni() {
        // Two sums wait less for each other.
        let mut other = sum;
        for place in (0..COUNT).step_by(2) {
            sum = vnni.add(sum, quads[first + place], words[first_word + place]);
            other = vnni.add(other, quads[first + place + 1], words[first_word + place + 1]);
        }
        return _mm256_add_epi32(sum, other);
    }
    let ones = _mm256_set1_epi16(1);
    for start in (0..COUNT).step_by(TOGETHER) {
        let mut pairs = _mm256_setzero_si256();
        for place in start..start + TOGETHER {
            let word = _mm256_set1_epi32(words[first_word + place]);
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(quads[first + place], word));
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    sum
}

/// As [`dot`], of weights of 8 bits and activations in pairs.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn dot_pairs(pairs: &Pairs, words: &Words) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for (&pairs, &word) in pairs.iter().zip(&words.0) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi32(word)));
    }
    sum
}
