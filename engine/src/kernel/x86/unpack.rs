//! Parts of the lines of a block, 32 bytes of each, to its 8 quads: a register of bytes for each.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use crate::kernel::packed::quantized::layout::QUADS;

/// A block of 8 rows: unsigned bytes of 4 columns in each.
pub(super) type Quads = [__m256i; QUADS];

/// A block of 8 rows in 16 bits.
pub(super) type Pairs = [__m256i; 2 * QUADS];

/// 4 bits: the first quads in the lower halves of the bytes, the last in the upper ones.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bits_4(lines: [__m256i; 4]) -> Quads {
    let lower = _mm256_set1_epi8(0xf);
    let mut quads = [_mm256_setzero_si256(); QUADS];
    for (quad, halves) in lines.into_iter().enumerate() {
        quads[quad] = _mm256_and_si256(halves, lower);
        quads[quad + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(halves), lower);
    }
    quads
}

/// 4 bits, and a fifth of all quads in the last line.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bits_5([first @ .., fifth]: [__m256i; 5]) -> Quads {
    // What crosses from one byte to the next by shifting pairs of them never reaches the place.
    let shifted = [
        _mm256_slli_epi16::<4>(fifth),
        _mm256_slli_epi16::<3>(fifth),
        _mm256_slli_epi16::<2>(fifth),
        _mm256_slli_epi16::<1>(fifth),
        fifth,
        _mm256_srli_epi16::<1>(fifth),
        _mm256_srli_epi16::<2>(fifth),
        _mm256_srli_epi16::<3>(fifth),
    ];
    let mut quads = bits_4(first);
    for (quad, shifted) in quads.iter_mut().zip(shifted) {
        *quad = _mm256_or_si256(*quad, _mm256_and_si256(shifted, _mm256_set1_epi8(0x10)));
    }
    quads
}

/// 4 bits, and two more in a line for the first quads and one for the last.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bits_6([first @ .., upper, last_upper]: [__m256i; 6]) -> Quads {
    let mut quads = bits_4(first);
    for (quads, upper) in quads.as_chunks_mut::<4>().0.iter_mut().zip([upper, last_upper]) {
        let shifted = [
            _mm256_slli_epi16::<4>(upper),
            _mm256_slli_epi16::<2>(upper),
            upper,
            _mm256_srli_epi16::<2>(upper),
        ];
        for (quad, shifted) in quads.iter_mut().zip(shifted) {
            *quad = _mm256_or_si256(*quad, _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)));
        }
    }
    quads
}

/// 8 bits, widened: for each word of the activations, the pairs that it is multiplied with.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pairs(quads: Quads) -> Pairs {
    let mut pairs = [_mm256_setzero_si256(); 2 * QUADS];
    for (pairs, quad) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(quads) {
        let first = _mm256_and_si256(quad, _mm256_set1_epi16(0xff));
        *pairs = [first, _mm256_srli_epi16::<8>(quad)];
    }
    pairs
}
