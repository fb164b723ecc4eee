//! Products of quads and words, and their sums: where nearly all of the time goes.
//!
//! `vpdpbusd` multiplies unsigned bytes with signed ones and adds four products to a lane of 32 bits.
//! A word of the activations is loaded into all lanes and multiplied with both strips of a panel, and
//! four sums go side by side, since each waits 4 cycles for itself. The compiler knows such loads as
//! well, but it first joins words that are neighbours to larger loads, and then takes them apart at a
//! cost of two instructions for each. So these few are written out.

use std::arch::asm;
#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use super::unpack::Quads;
use crate::kernel::packed::quantized::layout::{QUADS, STRIPS};
use crate::kernel::packed::quantized::tokens::{TokenFactors, Words};

/// Tokens that are summed side by side.
pub(super) const GROUP: usize = 2;

/// From the words of a token to those of the next.
const TOKEN_BYTES: usize = size_of::<Words>();

/// Where the lower bytes begin in the words of a token.
const LOWER: usize = TOKEN_BYTES / 2;

/// Bytes of the words that half of the quads are multiplied with.
const HALF: usize = LOWER / 2;

/// The products of one token with each strip: of each half of the quads, or of both together.
pub(super) type Products<const HALVES: usize> = [[__m512i; HALVES]; STRIPS];

/// Two words in time, and what each strip sums up to with each.
type FourSums = [[__m512i; STRIPS]; 2];

/// The products of two tokens, and their offsets. `HALVES` is 1 where both halves of the columns have
/// one sum, and 2 where each has its own; with `NARROW` the upper bytes count as zeros.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
pub(super) fn of_group<const NARROW: bool, const HALVES: usize>(
    quads: &[Quads; STRIPS],
    words: &[Words; GROUP],
    factors: &[TokenFactors; GROUP],
) -> [Products<HALVES>; GROUP] {
    let [[first, last], [first_b, last_b]] = quads;
    let (first, last) = ([first, first_b], [last, last_b]);
    let mut sums = [[[_mm512_setzero_si512(); STRIPS]; GROUP]; HALVES];
    for (half, sums) in sums.iter_mut().enumerate() {
        for (sums, factors) in sums.iter_mut().zip(factors) {
            *sums = [_mm512_set1_epi32(factors.offsets[half]); STRIPS];
        }
    }
    sums[0] = add::<LOWER, TOKEN_BYTES, GROUP>(sums[0], first, words);
    let rest = add::<{ LOWER + HALF }, TOKEN_BYTES, GROUP>(sums[HALVES - 1], last, words);
    sums[HALVES - 1] = rest;
    if !NARROW {
        let mut upper = [[[_mm512_setzero_si512(); STRIPS]; GROUP]; HALVES];
        upper[0] = add::<0, TOKEN_BYTES, GROUP>(upper[0], first, words);
        upper[HALVES - 1] = add::<HALF, TOKEN_BYTES, GROUP>(upper[HALVES - 1], last, words);
        for half in 0..HALVES {
            for token in 0..GROUP {
                for strip in 0..STRIPS {
                    let sum = &mut sums[half][token][strip];
                    *sum = joined(upper[half][token][strip], *sum);
                }
            }
        }
    }
    let mut products = [[[_mm512_setzero_si512(); HALVES]; STRIPS]; GROUP];
    for half in 0..HALVES {
        for token in 0..GROUP {
            for strip in 0..STRIPS {
                products[token][strip][half] = sums[half][token][strip];
            }
        }
    }
    products
}

/// The products of one token, as [`of_group`].
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
pub(super) fn of_one<const HALVES: usize>(
    quads: &[Quads; STRIPS],
    words: &Words,
    factors: &TokenFactors,
) -> Products<HALVES> {
    let [[first, last], [first_b, last_b]] = quads;
    let (first, last) = ([first, first_b], [last, last_b]);
    let words = std::array::from_ref(words);
    let mut both = [[[_mm512_setzero_si512(); STRIPS]; 2]; HALVES];
    for ([_, lower], &offset) in both.iter_mut().zip(&factors.offsets) {
        *lower = [_mm512_set1_epi32(offset); STRIPS];
    }
    both[0] = add::<0, LOWER, 1>(both[0], first, words);
    both[HALVES - 1] = add::<HALF, LOWER, 1>(both[HALVES - 1], last, words);
    let mut products = [[_mm512_setzero_si512(); HALVES]; STRIPS];
    for half in 0..HALVES {
        let [upper, lower] = both[half];
        for strip in 0..STRIPS {
            products[strip][half] = joined(upper[strip], lower[strip]);
        }
    }
    products
}

/// As [`of_one`], where all upper bytes are zeros.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
pub(super) fn of_one_narrow<const HALVES: usize>(
    quads: &[Quads; STRIPS],
    words: &Words,
    factors: &TokenFactors,
) -> Products<HALVES> {
    let [_, lower] = words.0.as_chunks::<QUADS>().0 else {
        unreachable!("there are twice as many")
    };
    let words = lower.as_chunks::<{ QUADS / 2 }>().0;
    let mut products = [[_mm512_setzero_si512(); HALVES]; STRIPS];
    for (products, quads) in products.iter_mut().zip(quads) {
        // Both halves at a time, since each sum waits for itself.
        let mut sums = factors.offsets.map(|offset| _mm512_set1_epi32(offset));
        for ((sum, quads), words) in sums.iter_mut().zip(quads).zip(words) {
            for (quad, word) in quads.iter().zip(words) {
                *sum = _mm512_dpbusd_epi32(*sum, *quad, _mm512_set1_epi32(*word));
            }
        }
        if HALVES == 1 {
            // The second offset is zero then.
            sums[0] = _mm512_add_epi32(sums[0], sums[1]);
        }
        products.copy_from_slice(&sums[..HALVES]);
    }
    products
}

/// The upper bytes count 256 times the lower.
#[target_feature(enable = "avx512f")]
#[inline]
fn joined(upper: __m512i, lower: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), lower)
}

/// A word, from the one register of memory and an offset, to all lanes.
macro_rules! load {
    ($word:literal, $offset:literal) => {
        concat!("vpbroadcastd {", $word, "}, dword ptr [{words} + {start} + ", $offset, "]")
    };
}

/// To a sum, a quad times a word.
macro_rules! add {
    ($sum:literal, $quad:literal, $word:literal) => {
        concat!("vpdpbusd {", $sum, "}, {", $quad, "}, {", $word, "}")
    };
}

/// Adds the products of 4 quads in each strip with the words from byte `START`, and from `STEP` bytes
/// after it.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
#[allow(unsafe_code, reason = "instructions that the compiler would not choose")]
fn add<const START: usize, const STEP: usize, const TOKENS: usize>(
    sums: FourSums,
    quads: [&[__m512i; QUADS / 2]; STRIPS],
    words: &[Words; TOKENS],
) -> FourSums {
    const { assert!(START + STEP + HALF <= TOKENS * TOKEN_BYTES, "the tokens have the words") };
    let [[mut s0, mut s1], [mut s2, mut s3]] = sums;
    // Registers for the words; an operand without a value would have no width.
    let zero = _mm512_setzero_si512();
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (*quads[0], *quads[1]);
    // SAFETY: the instructions read 4 words from each of two places in `words`, which it has, and
    // change nothing but the sums; the processor has them, as this function's features say.
    unsafe {
        asm!(
            load!("w0", "0"),
            load!("w1", "0 + {step}"),
            add!("s0", "a0", "w0"),
            add!("s1", "b0", "w0"),
            add!("s2", "a0", "w1"),
            add!("s3", "b0", "w1"),
            load!("w0", "4"),
            load!("w1", "4 + {step}"),
            add!("s0", "a1", "w0"),
            add!("s1", "b1", "w0"),
            add!("s2", "a1", "w1"),
            add!("s3", "b1", "w1"),
            load!("w0", "8"),
            load!("w1", "8 + {step}"),
            add!("s0", "a2", "w0"),
            add!("s1", "b2", "w0"),
            add!("s2", "a2", "w1"),
            add!("s3", "b2", "w1"),
            load!("w0", "12"),
            load!("w1", "12 + {step}"),
            add!("s0", "a3", "w0"),
            add!("s1", "b3", "w0"),
            add!("s2", "a3", "w1"),
            add!("s3", "b3", "w1"),
            s0 = inout(zmm_reg) s0,
            s1 = inout(zmm_reg) s1,
            s2 = inout(zmm_reg) s2,
            s3 = inout(zmm_reg) s3,
            a0 = in(zmm_reg) a0,
            a1 = in(zmm_reg) a1,
            a2 = in(zmm_reg) a2,
            a3 = in(zmm_reg) a3,
            b0 = in(zmm_reg) b0,
            b1 = in(zmm_reg) b1,
            b2 = in(zmm_reg) b2,
            b3 = in(zmm_reg) b3,
            w0 = inout(zmm_reg) zero => _,
            w1 = inout(zmm_reg) zero => _,
            words = in(reg) words,
            start = const START,
            step = const STEP,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [[s0, s1], [s2, s3]]
}
