//! Arrays to registers, and a register's sum.

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
    bytes_8(bytes.as_chunks().0[part])
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

/// 8 bytes at any alignment, in the lower half.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn bytes_8(bytes: [u8; 8]) -> __m128i {
    _mm_cvtsi64_si128(i64::from_le_bytes(bytes))
}

/// 32 signed bytes at any alignment.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn integers_32(values: &[i8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// 16 integers of 16 bits at any alignment.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn words_16(values: &[i16; 16]) -> __m256i {
    // SAFETY: the reference is to 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// One binary16 number, widened, in all lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn binary16(bytes: &[u8; 2]) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(*bytes)))
}

/// The sum of the lanes, always in the same order: halves, then quarters, then neighbours.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn sum(register: __m256) -> f32 {
    let halves = _mm_add_ps(_mm256_castps256_ps128(register), _mm256_extractf128_ps::<1>(register));
    let quarters = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
    _mm_cvtss_f32(_mm_add_ss(quarters, _mm_movehdup_ps(quarters)))
}
