//! Arrays to registers.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::aarch64::*;
use std::arch::asm;

use crate::kernel::packed::quantized::tokens::Words;

/// 4 binary32 numbers at any alignment.
#[target_feature(enable = "neon")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn floats(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: the reference is to 16 bytes; the load asks for no alignment beyond that of a value.
    unsafe { vld1q_f32(values.as_ptr()) }
}

/// Writes 4 binary32 numbers.
#[target_feature(enable = "neon")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn store(values: &mut [f32; 4], register: float32x4_t) {
    // SAFETY: the reference is to 16 bytes, and no other is to them; the store asks for no alignment
    // beyond that of a value.
    unsafe { vst1q_f32(values.as_mut_ptr(), register) }
}

/// 16 bytes at any alignment.
#[target_feature(enable = "neon")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn bytes_16(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the reference is to 16 bytes; the load asks for no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// 4 numbers in binary16 at any alignment, widened.
#[target_feature(enable = "neon")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn binary16(bytes: &[u8; 8]) -> float32x4_t {
    // SAFETY: the reference is to 8 bytes; the load asks for no alignment.
    let halves = unsafe { vld1_u8(bytes.as_ptr()) };
    vcvt_f32_f16(vreinterpret_f16_u8(halves))
}

/// 4 bytes at any alignment, in 32 bits each.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn widened(bytes: [u8; 4]) -> uint32x4_t {
    let bytes = vcreate_u8(u64::from(u32::from_le_bytes(bytes)));
    vmovl_u16(vget_low_u16(vmovl_u8(bytes)))
}

/// 4 signed bytes at any alignment, in 32 bits each.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn widened_signed(bytes: [u8; 4]) -> int32x4_t {
    let bytes = vcreate_s8(u64::from(u32::from_le_bytes(bytes)));
    vmovl_s16(vget_low_s16(vmovl_s8(bytes)))
}

/// The words of a token, 4 a register.
#[target_feature(enable = "neon")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
pub(super) fn words(words: &Words) -> [int8x16_t; 4] {
    let mut registers = [vdupq_n_s8(0); 4];
    for (register, words) in registers.iter_mut().zip(words.0.as_chunks::<4>().0) {
        // SAFETY: the reference is to 16 bytes; the load asks for no alignment beyond that of a word.
        *register = vreinterpretq_s8_s32(unsafe { vld1q_s32(words.as_ptr()) });
    }
    registers
}

/// Brings the line of `bytes` into the second-level cache.
#[inline]
#[allow(unsafe_code, reason = "an instruction that has no stable intrinsic")]
pub(super) fn fetch(bytes: &[u8]) {
    // SAFETY: a prefetch reads nothing, whatever its address, and changes no register.
    unsafe {
        asm!(
            "prfm pldl2keep, [{line}]",
            line = in(reg) bytes.as_ptr(),
            options(readonly, nostack, preserves_flags),
        );
    }
}
