//! How quantized weights are written, block by block.
//!
//! The formats are those of GGML (`ggml-common.h` and `ggml-quants.c` in
//! <https://github.com/ggml-org/ggml>). Each function here reads one block into small integers and
//! the factors that they stand for.

use half::f16;

/// Values in a block of the types that are not K-quants.
pub(super) const BLOCK_VALUES: usize = 32;

/// Values in a block of a K-quant.
pub(super) const SUPER_VALUES: usize = 256;

/// Values of a K-quant's block that share a scale; those of Q4_K and Q5_K come in pairs of groups.
pub(super) const GROUP_VALUES: usize = 16;

/// Groups in a block of a K-quant.
pub(super) const GROUPS: usize = SUPER_VALUES / GROUP_VALUES;

const Q4_0_BYTES: usize = 2 + 16;
const Q4_1_BYTES: usize = 2 + 2 + 16;
const Q5_0_BYTES: usize = 2 + 4 + 16;
const Q5_1_BYTES: usize = 2 + 2 + 4 + 16;
const Q8_0_BYTES: usize = 2 + 32;
const Q4_K_BYTES: usize = 2 + 2 + 12 + 128;
const Q5_K_BYTES: usize = 2 + 2 + 12 + 32 + 128;
const Q6_K_BYTES: usize = 128 + 64 + 16 + 2;

/// 32 weights: each is `scale * value + minimum`.
pub(super) struct Block {
    pub(super) values: [i8; BLOCK_VALUES],
    pub(super) scale: f32,
    pub(super) minimum: f32,
}

/// 256 weights: each is `scale * scales[group] * value - minimum * minimums[group]`.
pub(super) struct SuperBlock {
    pub(super) values: [i8; SUPER_VALUES],
    pub(super) scales: [i8; GROUPS],
    pub(super) minimums: [i8; GROUPS],
    pub(super) scale: f32,
    pub(super) minimum: f32,
}

/// Scale; 4 bits of each value, above 8: the first 16 values in the lower halves of 16 bytes.
pub(super) fn q4_0(block: &[u8; Q4_0_BYTES]) -> Block {
    let values = nibbles(part(block, 2)).map(|value| value - 8);
    Block { values, scale: binary16(part(block, 0)), minimum: 0.0 }
}

/// Scale; minimum; 4 bits of each value.
pub(super) fn q4_1(block: &[u8; Q4_1_BYTES]) -> Block {
    let values = nibbles(part(block, 4));
    Block { values, scale: binary16(part(block, 0)), minimum: binary16(part(block, 2)) }
}

/// Scale; the fifth bits, the first value's lowest; 4 bits of each value. All are above 16.
pub(super) fn q5_0(block: &[u8; Q5_0_BYTES]) -> Block {
    let values = with_fifth_bits(nibbles(part(block, 6)), part(block, 2)).map(|value| value - 16);
    Block { values, scale: binary16(part(block, 0)), minimum: 0.0 }
}

/// Scale; minimum; the fifth bits; 4 bits of each value.
pub(super) fn q5_1(block: &[u8; Q5_1_BYTES]) -> Block {
    let values = with_fifth_bits(nibbles(part(block, 8)), part(block, 4));
    Block { values, scale: binary16(part(block, 0)), minimum: binary16(part(block, 2)) }
}

/// Scale; a byte for each value.
pub(super) fn q8_0(block: &[u8; Q8_0_BYTES]) -> Block {
    let values = part::<u8, 32, Q8_0_BYTES>(block, 2).map(u8::cast_signed);
    Block { values, scale: binary16(part(block, 0)), minimum: 0.0 }
}

/// Scale; factor of the minima; scales and minima of 8 groups of 32; 4 bits of each value, where 32
/// bytes hold the values of one group in their lower halves, and of the next in their upper ones.
pub(super) fn q4_k(block: &[u8; Q4_K_BYTES]) -> SuperBlock {
    let (scales, minimums) = six_bit_factors(part(block, 4));
    SuperBlock {
        values: paired_nibbles(part(block, 16)),
        scales: std::array::from_fn(|group| scales[group / 2].cast_signed()),
        minimums: std::array::from_fn(|group| minimums[group / 2].cast_signed()),
        scale: binary16(part(block, 0)),
        minimum: binary16(part(block, 2)),
    }
}

/// As Q4_K; before the 4 bits stand the fifth: bit `g` of byte `i` for value `i` of group `g`.
pub(super) fn q5_k(block: &[u8; Q5_K_BYTES]) -> SuperBlock {
    let (scales, minimums) = six_bit_factors(part(block, 4));
    let fifth: &[u8; 32] = part(block, 16);
    let mut values = paired_nibbles(part(block, 48));
    for (index, value) in values.iter_mut().enumerate() {
        *value |= (fifth[index % 32] >> (index / 32) & 1).cast_signed() << 4;
    }
    SuperBlock {
        values,
        scales: std::array::from_fn(|group| scales[group / 2].cast_signed()),
        minimums: std::array::from_fn(|group| minimums[group / 2].cast_signed()),
        scale: binary16(part(block, 0)),
        minimum: binary16(part(block, 2)),
    }
}

/// The lower 4 bits, the upper 2 bits, signed scales of 16 groups, the scale of all; values are above
/// 32. Each half of the block has 64 bytes of lower bits and 32 of upper ones for four runs of 32.
pub(super) fn q6_k(block: &[u8; Q6_K_BYTES]) -> SuperBlock {
    let (lower, upper): (&[u8; 128], &[u8; 64]) = (part(block, 0), part(block, 128));
    let values = std::array::from_fn(|index| {
        let (half, run, place) = (index / 128, index % 128 / 32, index % 32);
        let low = lower[half * 64 + run % 2 * 32 + place] >> (run / 2 * 4) & 0xf;
        let high = upper[half * 32 + place] >> (run * 2) & 3;
        (low | high << 4).cast_signed() - 32
    });
    SuperBlock {
        values,
        scales: part::<u8, GROUPS, Q6_K_BYTES>(block, 192).map(u8::cast_signed),
        minimums: [0; GROUPS],
        scale: binary16(part(block, 208)),
        minimum: 0.0,
    }
}

/// The 8 scales and the 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes.
///
/// Bytes 0 to 3 and 4 to 7 have the first four scales and minima in their lower 6 bits; bytes 8 to
/// 11 have the lower 4 bits of the last four of both, whose upper 2 bits are above the first ones.
fn six_bit_factors(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |index: usize| u32::from_le_bytes(*part(bytes, index * 4));
    let (first, second, third) = (word(0), word(1), word(2));
    let joined = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let scales = joined(first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | (first >> 6 & 0x0303_0303) << 4);
    let minimums =
        joined(second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | (second >> 6 & 0x0303_0303) << 4);
    (scales.to_le_bytes(), minimums.to_le_bytes())
}

/// The `N` items of a block from `start` on.
const fn part<T, const N: usize, const LENGTH: usize>(
    block: &[T; LENGTH],
    start: usize,
) -> &[T; N] {
    block.split_at(start).1.first_chunk().expect("the part lies in the block")
}

fn binary16(bytes: &[u8; 2]) -> f32 {
    f16::from_le_bytes(*bytes).to_f32()
}

fn nibbles(bytes: &[u8; 16]) -> [i8; BLOCK_VALUES] {
    let value = |index: usize| bytes[index % 16] >> (index / 16 * 4) & 0xf;
    std::array::from_fn(|index| value(index).cast_signed())
}

fn with_fifth_bits(mut values: [i8; BLOCK_VALUES], bits: &[u8; 4]) -> [i8; BLOCK_VALUES] {
    let bits = u32::from_le_bytes(*bits);
    for (index, value) in values.iter_mut().enumerate() {
        if bits >> index & 1 == 1 {
            *value |= 0x10;
        }
    }
    values
}

fn paired_nibbles(bytes: &[u8; 128]) -> [i8; SUPER_VALUES] {
    std::array::from_fn(|index| {
        let (pair, upper, place) = (index / 64, index / 32 % 2, index % 32);
        (bytes[pair * 32 + place] >> (upper * 4) & 0xf).cast_signed()
    })
}
