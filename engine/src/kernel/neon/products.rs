//! Products of bytes, four of which are summed in each lane.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;

use super::load;
use crate::kernel::packed::quantized::layout::QUADS;
use crate::kernel::packed::quantized::tokens::Words;

/// Proof that this processor has SDOT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Products(());

/// To a sum, 4 rows of a quad times a word: that in lane `$lane` of the words.
macro_rules! add {
    ($sum:literal, $quad:literal, $words:literal, $lane:literal) => {
        concat!("sdot {", $sum, ":v}.4s, {", $quad, ":v}.16b, {", $words, ":v}.4b[", $lane, "]")
    };
}

/// Lets the assembler take SDOT, whatever the target of the build is.
macro_rules! extension {
    () => {
        ".arch_extension dotprod"
    };
}

impl Products {
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }

    /// The products of 4 rows with one token, of the first and of the last 16 columns; where it is not
    /// `wide`, all upper bytes of the activations are zeros.
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn dot(
        self,
        quads: &[int8x16_t; QUADS],
        words: &Words,
        wide: bool,
    ) -> [int32x4_t; 2] {
        let [first, last, lower @ ..] = load::words(words);
        let mut sums = [vdupq_n_s32(0); 2];
        if wide {
            // The upper bytes count 256 times the lower.
            sums = self.add_quads(sums, quads, [first, last]).map(|sum| vshlq_n_s32::<8>(sum));
        }
        self.add_quads(sums, quads, lower)
    }

    /// Adds to two sums the products of the first and of the last quads, with a word each.
    ///
    /// `vdotq_laneq_s32` would say the same, but is not stable.
    #[target_feature(enable = "neon")]
    #[inline]
    #[allow(unsafe_code, reason = "instructions that have no stable intrinsic")]
    fn add_quads(
        self,
        [mut first, mut last]: [int32x4_t; 2],
        quads: &[int8x16_t; QUADS],
        [w0, w1]: [int8x16_t; 2],
    ) -> [int32x4_t; 2] {
        let [q0, q1, q2, q3, q4, q5, q6, q7] = *quads;
        // SAFETY: the instructions change nothing but the sums, and `self` exists only where the
        // processor has them.
        unsafe {
            asm!(
                extension!(),
                add!("first", "q0", "w0", "0"),
                add!("last", "q4", "w1", "0"),
                add!("first", "q1", "w0", "1"),
                add!("last", "q5", "w1", "1"),
                add!("first", "q2", "w0", "2"),
                add!("last", "q6", "w1", "2"),
                add!("first", "q3", "w0", "3"),
                add!("last", "q7", "w1", "3"),
                first = inout(vreg) first,
                last = inout(vreg) last,
                q0 = in(vreg) q0,
                q1 = in(vreg) q1,
                q2 = in(vreg) q2,
                q3 = in(vreg) q3,
                q4 = in(vreg) q4,
                q5 = in(vreg) q5,
                q6 = in(vreg) q6,
                q7 = in(vreg) q7,
                w0 = in(vreg) w0,
                w1 = in(vreg) w1,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        [first, last]
    }

    /// Adds to each lane of `sum` four products of bytes.
    #[target_feature(enable = "neon")]
    #[inline]
    #[allow(unsafe_code, reason = "an instruction that has no stable intrinsic")]
    pub(super) fn add(self, mut sum: int32x4_t, left: int8x16_t, right: int8x16_t) -> int32x4_t {
        // SAFETY: the instruction changes nothing but the sum, and `self` exists only where the
        // processor has it.
        unsafe {
            asm!(
                extension!(),
                "sdot {sum:v}.4s, {left:v}.16b, {right:v}.16b",
                sum = inout(vreg) sum,
                left = in(vreg) left,
                right = in(vreg) right,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}
