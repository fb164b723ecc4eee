//! The inner loops with AVX-512: its foundation, BW, DQ, VL, BF16 and VNNI.

use super::x86::Avx2;

/// Proof that this processor has AVX-512 with BF16 and VNNI, and all of [`Avx2`]: there is no other
/// way to a value than to ask it. So Cooper Lake and Sapphire Rapids (2020, 2023), Zen 4 (2022) and
/// later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512(Avx2);

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vnni");
        if has_all { Avx2::detect().map(Self) } else { None }
    }

    /// The narrower instructions, which this processor has as well.
    pub(super) const fn avx2(self) -> Avx2 {
        self.0
    }
}
