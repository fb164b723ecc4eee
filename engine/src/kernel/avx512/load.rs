//! Lines to registers, and sums to and from them.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use crate::kernel::packed::quantized::Sums;
use crate::kernel::packed::quantized::layout::{HalfLine, Line, STRIPS};

/// How far ahead lines are asked for, for several tokens: 10 KiB, which memory delivers in half a
/// microsecond, a few times as long as it takes to answer. They go to the second-level cache, since
/// the first has no room for so many requests at once, beside what is read of the tokens.
const AHEAD_LINES: usize = 160;

/// As [`AHEAD_LINES`], for one token, whose lines follow each other as fast as memory gives them and are
/// not read again: 6.5 KiB, a seventh or a fifth of the first-level cache. They go there and nowhere else,
/// so no load waits for the second level, and what the rest of a pass needs, code and all, is still
/// there when the weights have gone by. On Zen 5 one thread then reads 47 GB/s of `Q4_0` and 44 of
/// `Q4_K`, without requests 33 and 31; at less than 4 KiB it is 39, and `Q8_0` is slower from 12 KiB on.
const LONE_AHEAD_LINES: usize = 104;

/// As [`LONE_AHEAD_LINES`], for the scales of 8 blocks.
const LONE_AHEAD_SCALES: usize = 16;

/// A line of bytes, among many that are read one after the other: with `ALONE` for one token.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn line<const ALONE: bool>(line: &Line) -> __m512i {
    let place = std::ptr::from_ref(line);
    // SAFETY: a prefetch reads nothing, whatever its address; the reference is to 64 bytes, which the
    // type aligns as the load asks.
    unsafe {
        if ALONE {
            _mm_prefetch::<_MM_HINT_NTA>(place.wrapping_add(LONE_AHEAD_LINES).cast());
        } else {
            _mm_prefetch::<_MM_HINT_T1>(place.wrapping_add(AHEAD_LINES).cast());
        }
        _mm512_load_si512(line.0.as_ptr().cast())
    }
}

/// Asks for what follows behind these bytes, in whole lines, for one token: as far ahead and to where
/// [`line()`] does. `BF16` is a twentieth faster so than where the processor asks by itself.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn fetch_lone<const BYTES: usize>(bytes: &[u8; BYTES]) {
    for line in bytes.chunks(size_of::<Line>()) {
        let place = line.as_ptr().wrapping_add(LONE_AHEAD_LINES * size_of::<Line>());
        _mm_prefetch::<_MM_HINT_NTA>(place.cast());
    }
}

/// Asks for a line that will be read soon, as one of hundreds: into the second-level cache, for the
/// reason of [`AHEAD_LINES`]. Attention of one token on Zen 4 is a third faster so than with requests
/// to the first.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn ahead(values: &[f32; 16]) {
    _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().cast());
}

/// 16 numbers in binary16, widened.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn binary16(half: &HalfLine) -> __m512 {
    // SAFETY: the reference is to 32 bytes, which the type aligns as the load asks.
    _mm512_cvtph_ps(unsafe { _mm256_load_si256(half.0.as_ptr().cast()) })
}

/// The scales of a strip, among many that are read one after the other. `Q8_0` is a thirtieth faster for one
/// token where they are asked for, `Q4_0` no slower.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn scales<const ALONE: bool>(scales: &HalfLine) -> __m512 {
    if ALONE {
        let place = std::ptr::from_ref(scales);
        _mm_prefetch::<_MM_HINT_NTA>(place.wrapping_add(LONE_AHEAD_SCALES).cast());
    }
    binary16(scales)
}

/// 16 bytes at any alignment.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn bytes_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference is to 16 bytes; the load asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// The sums of a token so far, strip by strip.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(in crate::kernel) fn sums(sums: &Sums) -> [__m512; STRIPS] {
    let mut registers = [_mm512_setzero_ps(); STRIPS];
    for (register, sums) in registers.iter_mut().zip(&sums.0) {
        // SAFETY: the reference is to 64 bytes; the load asks for no alignment.
        *register = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
    }
    registers
}

/// Writes the sums of a token.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(in crate::kernel) fn store(sums: &mut Sums, registers: [__m512; STRIPS]) {
    for (sums, register) in sums.0.iter_mut().zip(registers) {
        // SAFETY: the reference is to 64 bytes; the store asks for no alignment.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), register) }
    }
}

/// 16 values at any alignment.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn floats(values: &[f32; 16]) -> __m512 {
    // SAFETY: the reference is to 64 bytes; the load asks for no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Writes 16 values.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn store_floats(values: &mut [f32; 16], register: __m512) {
    // SAFETY: the reference is to 64 bytes, and no other is to them; the store asks for no alignment.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), register) }
}

/// A register to a line.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(in crate::kernel) fn store_line(line: &mut Line, register: __m512i) {
    // SAFETY: the reference is to 64 bytes, which the type aligns as the store asks, and no other is
    // to them.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), register) }
}

/// 16 integers at any alignment.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(in crate::kernel) fn integers(values: &[i32; 16]) -> __m512i {
    // SAFETY: the reference is to 64 bytes; the load asks for no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}
