//! The lines of a block to its 8 quads, a register of bytes for each.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use super::load;
use crate::kernel::packed::quantized::layout::{Line, QUADS};

/// The first and the last quads of a block, unsigned bytes of 4 columns in each of 16 rows.
pub(in crate::kernel) type Quads = [[__m512i; QUADS / 2]; 2];

/// For a ternary logic instruction: `a | (b & c)`.
const JOIN_MASKED: i32 = 0xf8;

/// 4 bits: the first quads in the lower halves of the bytes, the last in the upper ones.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn bits_4<const ALONE: bool>(lines: &[Line; 4]) -> Quads {
    let lower = _mm512_set1_epi8(0xf);
    let mut quads = [[_mm512_setzero_si512(); QUADS / 2]; 2];
    for (quad, line) in lines.iter().enumerate() {
        let halves = load::line::<ALONE>(line);
        quads[0][quad] = _mm512_and_si512(halves, lower);
        quads[1][quad] = _mm512_and_si512(_mm512_srli_epi16::<4>(halves), lower);
    }
    quads
}

/// 4 bits, and a fifth of all quads in the last line.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn bits_5<const ALONE: bool>(lines: &[Line; 5]) -> Quads {
    let [first @ .., fifth] = lines;
    let (fifth, place) = (load::line::<ALONE>(fifth), _mm512_set1_epi8(0x10));
    // What crosses from one byte to the next by shifting pairs of them never reaches the place.
    let shifted = [
        _mm512_slli_epi16::<4>(fifth),
        _mm512_slli_epi16::<3>(fifth),
        _mm512_slli_epi16::<2>(fifth),
        _mm512_slli_epi16::<1>(fifth),
        fifth,
        _mm512_srli_epi16::<1>(fifth),
        _mm512_srli_epi16::<2>(fifth),
        _mm512_srli_epi16::<3>(fifth),
    ];
    let mut quads = bits_4::<ALONE>(first);
    for (quad, shifted) in quads.as_flattened_mut().iter_mut().zip(shifted) {
        *quad = _mm512_ternarylogic_epi32::<JOIN_MASKED>(*quad, shifted, place);
    }
    quads
}

/// 4 bits, and two more in a line for the first quads and one for the last.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn bits_6<const ALONE: bool>(lines: &[Line; 6]) -> Quads {
    let [first @ .., upper, last_upper] = lines;
    let place = _mm512_set1_epi8(0x30);
    let mut quads = bits_4::<ALONE>(first);
    for (quads, upper) in quads.iter_mut().zip([upper, last_upper]) {
        let upper = load::line::<ALONE>(upper);
        let shifted = [
            _mm512_slli_epi16::<4>(upper),
            _mm512_slli_epi16::<2>(upper),
            upper,
            _mm512_srli_epi16::<2>(upper),
        ];
        for (quad, shifted) in quads.iter_mut().zip(shifted) {
            *quad = _mm512_ternarylogic_epi32::<JOIN_MASKED>(*quad, shifted, place);
        }
    }
    quads
}

/// 8 bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn bits_8<const ALONE: bool>(lines: &[Line; 8]) -> Quads {
    let mut quads = [[_mm512_setzero_si512(); QUADS / 2]; 2];
    for (quad, line) in quads.as_flattened_mut().iter_mut().zip(lines) {
        *quad = load::line::<ALONE>(line);
    }
    quads
}
