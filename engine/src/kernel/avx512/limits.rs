//! Loops at the limit of memory and of the units.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::hint::black_box;

use super::dense::dot_pairs;
use crate::kernel::limits::SUMS;
use crate::limits::Unit;

/// As [`fold`](crate::kernel::limits::fold).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn fold(bytes: &[u8]) -> u64 {
    crate::kernel::limits::fold(bytes)
}

/// As [`multiply`](crate::kernel::limits::multiply).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")]
pub(super) fn work(unit: Unit, rounds: usize) {
    let ones = black_box(_mm512_set1_epi32(0x0101_0101));
    let floats = _mm512_castsi512_ps(ones);
    match unit {
        Unit::Binary32 => {
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for _ in 0..rounds {
                for sum in 0..SUMS {
                    sums[sum] = _mm512_fmadd_ps(floats, floats, sums[sum]);
                }
            }
            black_box(sums);
        }
        Unit::Bfloat16 => {
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for _ in 0..rounds {
                for sum in 0..SUMS {
                    sums[sum] = dot_pairs(sums[sum], floats, floats);
                }
            }
            black_box(sums);
        }
        Unit::Integer8 => {
            let mut sums = [_mm512_setzero_si512(); SUMS];
            for _ in 0..rounds {
                for sum in 0..SUMS {
                    sums[sum] = _mm512_dpbusd_epi32(sums[sum], ones, ones);
                }
            }
            black_box(sums);
        }
    }
}
