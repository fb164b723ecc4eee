//! Loops at the limit of memory and of the units.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::hint::black_box;

use super::products::Vnni;
use crate::kernel::limits::SUMS;
use crate::limits::Unit;

/// As [`fold`](crate::kernel::limits::fold).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fold(bytes: &[u8]) -> u64 {
    crate::kernel::limits::fold(bytes)
}

/// As [`multiply`](crate::kernel::limits::multiply); there is no unit for bfloat16.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn work(vnni: Option<Vnni>, unit: Unit, rounds: usize) {
    let bytes = black_box(_mm256_set1_epi32(0x0101_0101));
    match unit {
        Unit::Binary32 | Unit::Bfloat16 => {
            let floats = _mm256_castsi256_ps(bytes);
            let mut sums = [_mm256_setzero_ps(); SUMS];
            for _ in 0..rounds {
                for sum in 0..SUMS {
                    sums[sum] = _mm256_fmadd_ps(floats, floats, sums[sum]);
                }
            }
            black_box(sums);
        }
        Unit::Integer8 => {
            let word = black_box(0x0101_0101);
            let words = black_box(_mm256_set1_epi16(1));
            let mut sums = [_mm256_setzero_si256(); SUMS];
            for _ in 0..rounds {
                for sum in 0..SUMS {
                    if let Some(vnni) = vnni {
                        sums[sum] = vnni.add(sums[sum], bytes, word);
                        continue;
                    }
                    // The sum is a factor, so that no product is computed once for all.
                    let pairs = _mm256_maddubs_epi16(bytes, sums[sum]);
                    sums[sum] = _mm256_add_epi32(sums[sum], _mm256_madd_epi16(pairs, words));
                }
            }
            black_box(sums);
        }
    }
}
