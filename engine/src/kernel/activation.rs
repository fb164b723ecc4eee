//! Activations as the kernels of each type of weight want them: as they are, or as 8-bit integers.
//!
//! The integers are rounded to even, with a scale in binary32 for each block. Rounding moves a value
//! by at most half a step, [`ROUNDING_MAX`] of the largest value in its block.

use umbel_shard::WeightType;

use super::format::{BLOCK_VALUES, GROUP_VALUES, GROUPS, SUPER_VALUES};
use super::{InstructionSet, PARALLEL_WORK_MIN, parallel};

/// The largest integer; -128 is left out, so that every integer has an opposite.
const STEPS: f32 = 127.0;

/// Half a step, as a part of the largest value of a block.
#[cfg(test)]
pub(super) const ROUNDING_MAX: f64 = 0.5 / 127.0;

/// Blocks whose largest value is below this count as zeros: the inverse of their scale would be
/// infinite. It is `127 / f32::MAX`, rounded up, far below what any model computes.
const LARGEST_MIN: f32 = 4e-37;

/// 1.5 times 2^23: a sum with it has no bits below 1, so adding it rounds to the nearest integer, ties
/// to even, and leaves that integer in the low bits. Unlike a call to `round`, it becomes a vector.
const ROUNDER: f32 = 12_582_912.0;

/// 32 activations, aligned so that no load crosses a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(32))]
pub(super) struct Integers(pub(super) [i8; BLOCK_VALUES]);

/// What the integers of a block of 32 stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Factors {
    /// The value of 1.
    pub(super) scale: f32,
    /// An eighth of the sum of all values: the part of it that each of 8 lanes adds.
    pub(super) eighth_sum: f32,
}

/// 256 activations with one scale.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(32))]
pub(super) struct SuperIntegers {
    pub(super) values: [i8; SUPER_VALUES],
    /// The sum of each group of 16 values: at most 16 times 127.
    pub(super) group_sums: [i16; GROUPS],
    /// The value of 1.
    pub(super) scale: f32,
}

/// One row of activations in blocks of 32.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRow<'a> {
    pub(super) values: &'a [Integers],
    pub(super) factors: &'a [Factors],
}

/// The rows of one multiplication.
pub(super) enum Activations<'a> {
    /// For weights in floating point: `[tokens, columns]`.
    Floats { values: &'a [f32], columns: usize },
    /// For blocks of 32 weights: `[tokens, row_blocks]`.
    Blocks { values: Vec<Integers>, factors: Vec<Factors>, row_blocks: usize },
    /// For K-quants: `[tokens, row_blocks]`.
    SuperBlocks { values: Vec<SuperIntegers>, row_blocks: usize },
}

impl<'a> Activations<'a> {
    /// What weights of `kind` are multiplied with: `input` is `[tokens, columns]`.
    pub(super) fn prepare(
        set: InstructionSet,
        kind: WeightType,
        input: &'a [f32],
        columns: usize,
    ) -> Self {
        match kind {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                Self::Floats { values: input, columns }
            }
            WeightType::Q4_0
            | WeightType::Q4_1
            | WeightType::Q5_0
            | WeightType::Q5_1
            | WeightType::Q8_0 => Self::blocks(set, input, columns / BLOCK_VALUES),
            WeightType::Q4K | WeightType::Q5K | WeightType::Q6K => {
                Self::super_blocks(set, input, columns / SUPER_VALUES)
            }
        }
    }

    fn blocks(set: InstructionSet, input: &[f32], row_blocks: usize) -> Self {
        let input = input.as_chunks::<BLOCK_VALUES>().0;
        let mut values = vec![Integers([0; BLOCK_VALUES]); input.len()];
        let mut factors = vec![Factors { scale: 0.0, eighth_sum: 0.0 }; input.len()];
        let share = share(BLOCK_VALUES);
        let integers = values.chunks_mut(share).zip(factors.chunks_mut(share));
        parallel::for_each(
            integers.zip(input.chunks(share)),
            |((values, factors), input)| match set {
                InstructionSet::Portable => quantize(input, values, factors),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2(avx2) => avx2.quantize(input, values, factors),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512(avx512) => avx512.avx2().quantize(input, values, factors),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Amx(amx) => amx.avx512().avx2().quantize(input, values, factors),
                #[cfg(target_arch = "aarch64")]
                InstructionSet::Neon(_) => quantize(input, values, factors),
            },
        );
        Self::Blocks { values, factors, row_blocks }
    }

    fn super_blocks(set: InstructionSet, input: &[f32], row_blocks: usize) -> Self {
        let input = input.as_chunks::<SUPER_VALUES>().0;
        let zero = SuperIntegers { values: [0; SUPER_VALUES], group_sums: [0; GROUPS], scale: 0.0 };
        let mut values = vec![zero; input.len()];
        let share = share(SUPER_VALUES);
        let shares = values.chunks_mut(share).zip(input.chunks(share));
        parallel::for_each(shares, |(values, input)| match set {
            InstructionSet::Portable => quantize_super(input, values),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2(avx2) => avx2.quantize_super(input, values),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(avx512) => avx512.avx2().quantize_super(input, values),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx(amx) => amx.avx512().avx2().quantize_super(input, values),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon(_) => quantize_super(input, values),
        });
        Self::SuperBlocks { values, row_blocks }
    }

    /// The row of `token`, for weights in floating point.
    pub(super) fn floats(&self, token: usize) -> &[f32] {
        let Self::Floats { values, columns } = self else {
            unreachable!("the activations were prepared for weights of another type")
        };
        &values[token * columns..][..*columns]
    }

    /// The row of `token`, for blocks of 32 weights.
    pub(super) fn block_row(&self, token: usize) -> BlockRow<'_> {
        let Self::Blocks { values, factors, row_blocks } = self else {
            unreachable!("the activations were prepared for weights of another type")
        };
        let row = token * row_blocks..(token + 1) * row_blocks;
        BlockRow { values: &values[row.clone()], factors: &factors[row] }
    }

    /// The row of `token`, for K-quants.
    pub(super) fn super_row(&self, token: usize) -> &[SuperIntegers] {
        let Self::SuperBlocks { values, row_blocks } = self else {
            unreachable!("the activations were prepared for weights of another type")
        };
        &values[token * row_blocks..][..*row_blocks]
    }
}

/// How many blocks of `block_values` one thread takes at a time.
const fn share(block_values: usize) -> usize {
    PARALLEL_WORK_MIN / block_values
}

/// Rounds blocks of 32 values.
#[inline(always)]
pub(super) fn quantize(
    input: &[[f32; BLOCK_VALUES]],
    values: &mut [Integers],
    factors: &mut [Factors],
) {
    for ((input, values), factors) in input.iter().zip(values).zip(factors) {
        let scale = round(input, &mut values.0);
        let sum: i32 = values.0.iter().map(|&value| i32::from(value)).sum();
        // The sum is at most 32 * 127 and so exact in binary32.
        *factors = Factors { scale, eighth_sum: scale * (sum as f32 / super::LANES as f32) };
    }
}

/// Rounds blocks of 256 values.
#[inline(always)]
pub(super) fn quantize_super(input: &[[f32; SUPER_VALUES]], blocks: &mut [SuperIntegers]) {
    for (input, block) in input.iter().zip(blocks) {
        block.scale = round(input, &mut block.values);
        let groups = block.values.as_chunks::<GROUP_VALUES>().0;
        for (sum, group) in block.group_sums.iter_mut().zip(groups) {
            *sum = group.iter().map(|&value| i16::from(value)).sum();
        }
    }
}

/// What rounding blocks of `N` values leaves over of each.
pub(super) fn residual<const N: usize>(input: &[f32], left: &mut [f32]) {
    let blocks = input.as_chunks::<N>().0.iter().zip(left.as_chunks_mut::<N>().0);
    for (input, left) in blocks {
        let mut integers = [0; N];
        let scale = round(input, &mut integers);
        for ((left, value), integer) in left.iter_mut().zip(input).zip(integers) {
            *left = value - scale * f32::from(integer);
        }
    }
}

/// Rounds `input` to multiples of the scale that it returns.
///
/// Where a value is infinite or no number, the scale is no number: what has gone wrong shows in the
/// result, and is not rounded away.
#[inline(always)]
fn round<const N: usize>(input: &[f32; N], output: &mut [i8; N]) -> f32 {
    // Without the sign, floats are ordered as the integers of their bits, and NaN is the largest.
    let magnitude = |value: &f32| (value.to_bits() & 0x7fff_ffff).cast_signed();
    let largest = input.iter().map(magnitude).fold(0, i32::max);
    let largest = f32::from_bits(largest.cast_unsigned());
    if !largest.is_finite() || largest < LARGEST_MIN {
        *output = [0; N];
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = STEPS / largest;
    for (output, value) in output.iter_mut().zip(input) {
        // The lowest byte of the sum's bits is the integer's: `ROUNDER` has zeros there.
        *output = (value * inverse + ROUNDER).to_bits().to_le_bytes()[0].cast_signed();
    }
    largest / STEPS
}

#[cfg(test)]
mod tests;
