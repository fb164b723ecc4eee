//! The loops by which [`crate::limits`] measures the machine.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

use std::hint::black_box;

use super::InstructionSet;
use super::packed::Pages;
use crate::limits::Unit;

/// Bytes that a loop reads together, so that it waits for nothing but memory.
pub(crate) const STRIDE: usize = 1024;

/// Sums that a loop keeps: as many as hide the time that one addition takes in every unit we know.
pub(super) const SUMS: usize = 12;

/// Memory to be read.
#[derive(Debug)]
pub(crate) struct Region(Pages);

impl Region {
    /// `bytes` bytes that are in memory, each page by itself.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut pages = Pages::zeroed(bytes);
        pages.bytes_mut().fill(1);
        Self(pages)
    }

    /// The part `index` of those of `bytes` bytes.
    pub(crate) fn part(&self, index: usize, bytes: usize) -> &[u8] {
        &self.0.bytes()[index * bytes..][..bytes]
    }
}

/// Reads all of `bytes`; the result depends on each.
pub(crate) fn read(set: InstructionSet, bytes: &[u8]) -> u64 {
    match set {
        InstructionSet::Portable => fold(bytes),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(avx2) => avx2.fold(bytes),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(avx512) => avx512.fold(bytes),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx(amx) => amx.avx512().fold(bytes),
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(_) => fold(bytes),
    }
}

/// All words of `bytes`, added up in lanes; what is less than a stride is left out.
#[inline(always)]
pub(super) fn fold(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; STRIDE / 8];
    for stride in bytes.as_chunks::<STRIDE>().0 {
        for (lane, word) in lanes.iter_mut().zip(stride.as_chunks::<8>().0) {
            *lane ^= u64::from_le_bytes(*word);
        }
    }
    lanes.iter().fold(0, |sum, lane| sum ^ lane)
}

/// Multiplications and additions of one round of [`multiply`]; `None` where there is no such unit.
pub(crate) fn round_operations(set: InstructionSet, unit: Unit) -> Option<usize> {
    let products = match set {
        InstructionSet::Portable => match unit {
            Unit::Binary32 => Some(SUMS * 8),
            Unit::Bfloat16 | Unit::Integer8 => None,
        },
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(_) => match unit {
            Unit::Binary32 => Some(SUMS * 8),
            Unit::Bfloat16 => None,
            Unit::Integer8 => Some(SUMS * 32),
        },
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(_) => match unit {
            Unit::Binary32 => Some(SUMS * 16),
            Unit::Bfloat16 => Some(SUMS * 32),
            Unit::Integer8 => Some(SUMS * 64),
        },
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx(amx) => Some(amx.round_products(unit).unwrap_or(SUMS * 16)),
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(neon) => neon.round_products(unit),
    };
    products.map(|products| 2 * products)
}

/// Lets `unit` work for `rounds` rounds on what is in registers.
pub(crate) fn multiply(set: InstructionSet, unit: Unit, rounds: usize) {
    match set {
        InstructionSet::Portable => {
            let (weight, input) = (black_box([0.5_f32; 8]), black_box([0.25_f32; 8]));
            let mut sums = [[0.0_f32; 8]; SUMS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    for lane in 0..8 {
                        sum[lane] += weight[lane] * input[lane];
                    }
                }
            }
            black_box(sums);
        }
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(avx2) => avx2.work(unit, rounds),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(avx512) => avx512.work(unit, rounds),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx(amx) => amx.work(unit, rounds),
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(neon) => neon.work(unit, rounds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stride_is_read() {
        for set in InstructionSet::all() {
            let mut bytes = vec![0; 5 * STRIDE];
            assert_eq!(read(set, &bytes), 0, "{set:?}");
            bytes[4 * STRIDE + 9] = 3;
            assert_ne!(read(set, &bytes), 0, "{set:?}");
        }
    }

    #[test]
    fn a_part_is_in_its_place() {
        let region = Region::new(3 * STRIDE);
        assert_eq!(region.part(2, STRIDE), [1; STRIDE]);
    }
}
