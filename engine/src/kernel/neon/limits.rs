//! Loops at the limit of the units.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::aarch64::*;
use std::hint::black_box;

use super::products::Products;
use crate::kernel::limits::SUMS;
use crate::limits::Unit;

/// Registers that are summed side by side: two for each of [`SUMS`], since wide cores need 16.
const REGISTERS: usize = 2 * SUMS;

/// Products of one round of [`work`].
pub(super) const fn round_products(products: Option<Products>, unit: Unit) -> Option<usize> {
    match (unit, products) {
        (Unit::Binary32, _) | (Unit::Integer8, None) => Some(REGISTERS * 4),
        (Unit::Integer8, Some(_)) => Some(REGISTERS * 16),
        (Unit::Bfloat16, _) => None,
    }
}

/// As [`multiply`](crate::kernel::limits::multiply); there is no unit for bfloat16.
#[target_feature(enable = "neon")]
pub(super) fn work(products: Option<Products>, unit: Unit, rounds: usize) {
    let bytes = black_box(vdupq_n_s8(1));
    match (unit, products) {
        (Unit::Binary32 | Unit::Bfloat16, _) => {
            let floats = vreinterpretq_f32_s8(bytes);
            let mut sums = [vdupq_n_f32(0.0); REGISTERS];
            for _ in 0..rounds {
                for sum in 0..REGISTERS {
                    sums[sum] = vfmaq_f32(sums[sum], floats, floats);
                }
            }
            black_box(sums);
        }
        (Unit::Integer8, Some(products)) => {
            let mut sums = [vdupq_n_s32(0); REGISTERS];
            for _ in 0..rounds {
                for sum in 0..REGISTERS {
                    sums[sum] = products.add(sums[sum], bytes, bytes);
                }
            }
            black_box(sums);
        }
        (Unit::Integer8, None) => {
            let mut sums = [vdupq_n_s32(0); REGISTERS];
            for _ in 0..rounds {
                for sum in 0..REGISTERS {
                    // The sum is a factor, so that no product is computed once for all.
                    let factor = vget_low_s16(vreinterpretq_s16_s32(sums[sum]));
                    let words = vget_low_s16(vreinterpretq_s16_s8(bytes));
                    sums[sum] = vmlal_s16(sums[sum], words, factor);
                }
            }
            black_box(sums);
        }
    }
}
