//! Arrays to registers.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use crate::kernel::packed::quantized::layout::{HalfLine, Line, STRIP_ROWS};

/// How far ahead lines are asked for, as in AVX-512's `load`.
const LONE_AHEAD_LINES: usize = 104;

/// As [`LONE_AHEAD_LINES`], for the scales of 8 blocks.
const LONE_AHEAD_SCALES: usize = 16;

/// Half of a line of bytes, among many lines that are read one after the other: with `ALONE` for one token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn part<const ALONE: bool>(line: &Line, part: usize) -> __m256i {
    if ALONE && part == 0 {
        let place = std::ptr::from_ref(line).wrapping_add(LONE_AHEAD_LINES);
        _mm_prefetch::<_MM_HINT_NTA>(place.cast());
    }
    bytes_32(&line.0.as_chunks().0[part])
}

/// Half of the scales of a strip, among many that are read one after the other.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn scales<const ALONE: bool>(scales: &HalfLine, part: usize) -> __m256 {
    if ALONE && part == 0 {
        let place = std::ptr::from_ref(scales).wrapping_add(LONE_AHEAD_SCALES);
        _mm_prefetch::<_MM_HINT_NTA>(place.cast());
    }
    _mm256_cvtph_ps(bytes_16(&scales.0.as_chunks().0[part]))
}

/// Half of the bytes of a strip, one for each row, in the lower half.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn eighth(bytes: &[u8; STRIP_ROWS], part: usize) -> __m128i {
    _mm_cvtsi64_si128(i64::from_le_bytes(bytes.as_chunks().0[part]))
}

/// 8 binary32 numbers at any alignment.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn floats(values: &[f32; 8]) -> __m256 {
    // SAFETY: the reference is to 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Writes 8 binary32 numbers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn store(values: &mut [f32; 8], register: __m256) {
    // SAFETY: the reference is to 32 bytes; the store asks for no alignment.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), register) }
}

/// 32 bytes at any alignment.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn bytes_32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 bytes at any alignment.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn bytes_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference is to 16 bytes; the load asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
