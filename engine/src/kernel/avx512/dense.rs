//! Panels of weights in floating point, 16 rows a register.
//!
//! VDPBF16PS multiplies pairs of bfloat16 and adds both products to a sum in binary32, the second
//! pair first, each addition rounded to nearest. It counts denormals as zeros and writes none:
//! weights and activations below 2^-126 are lost, which no model has.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled, and only then do arrays become registers"
)]

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use super::load;
use crate::kernel::packed::dense::{Format, PANEL_ROWS, Sums, Tile};

/// Registers of a panel's rows.
const REGISTERS: usize = PANEL_ROWS / 16;

/// Steps between two turns of fetching ahead: some lines at a time, so that the fetches are spread
/// over the tile.
const STRETCH_STEPS: usize = 8;

/// Adds the products of `tile` to the sums of its tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
pub(super) fn multiply(format: Format, tile: Tile<'_>, sums: &mut [Sums]) {
    let fused = |sum, weights, input| _mm512_fmadd_ps(weights, input, sum);
    match format {
        Format::Binary32 => by_tokens::<256, 1, REGISTERS>(
            tile,
            sums,
            |step, register, _| _mm512_castsi512_ps(bytes_64(step, register)),
            fused,
        ),
        Format::Binary16 => by_tokens::<128, 1, REGISTERS>(
            tile,
            sums,
            |step, register, _| _mm512_cvtph_ps(bytes_32(step, register)),
            fused,
        ),
        Format::Bfloat16 => by_tokens::<256, 2, 2>(
            tile,
            sums,
            |step, register, column| widen(bytes_64(step, register), column),
            fused,
        ),
        Format::Bfloat16Pairs => by_tokens::<256, 1, REGISTERS>(
            tile,
            sums,
            |step, register, _| _mm512_castsi512_ps(bytes_64(step, register)),
            |sum, weights, input| dot_pairs(sum, weights, input),
        ),
        Format::Bfloat16Tiles => unreachable!("AVX-512 has no tiles"),
    }
}

/// `STEP` is how many bytes a step has, `WORDS` how many words of each token, and `TAKEN` how many
/// registers of rows 5 or 6 tokens take at a time: all 4, or 2 where both columns of a pair are in
/// registers at once, as there are 32 of these.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
#[inline]
fn by_tokens<const STEP: usize, const WORDS: usize, const TAKEN: usize>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    load: impl Fn(&[u8; STEP], usize, usize) -> __m512 + Copy,
    add: impl Fn(__m512, __m512, __m512) -> __m512 + Copy,
) {
    match sums.len() {
        1 => multiply_tokens::<STEP, WORDS, 1, REGISTERS>(tile, sums, load, add),
        2 => multiply_tokens::<STEP, WORDS, 2, REGISTERS>(tile, sums, load, add),
        3 => multiply_tokens::<STEP, WORDS, 3, REGISTERS>(tile, sums, load, add),
        4 => multiply_tokens::<STEP, WORDS, 4, REGISTERS>(tile, sums, load, add),
        5 => multiply_tokens::<STEP, WORDS, 5, TAKEN>(tile, sums, load, add),
        6 => multiply_tokens::<STEP, WORDS, 6, TAKEN>(tile, sums, load, add),
        count => unreachable!("a tile of {count} tokens"),
    }
}

/// Takes `TAKEN` registers of rows through all steps, then the next ones.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
#[inline]
fn multiply_tokens<
    const STEP: usize,
    const WORDS: usize,
    const TOKENS: usize,
    const TAKEN: usize,
>(
    tile: Tile<'_>,
    sums: &mut [Sums],
    weights_of: impl Fn(&[u8; STEP], usize, usize) -> __m512 + Copy,
    add: impl Fn(__m512, __m512, __m512) -> __m512 + Copy,
) {
    let steps = tile.weights.as_chunks::<STEP>().0;
    let inputs = tile.inputs.as_chunks::<TOKENS>().0.as_chunks::<WORDS>().0;
    let stretches = steps.len().div_ceil(STRETCH_STEPS) * (REGISTERS / TAKEN);
    let ahead_bytes = tile.ahead.len().div_ceil(stretches).next_multiple_of(64).max(64);
    let mut ahead = tile.ahead.chunks(ahead_bytes);
    for first in (0..REGISTERS).step_by(TAKEN) {
        let mut registers = [[_mm512_setzero_ps(); TAKEN]; TOKENS];
        for token in 0..TOKENS {
            for register in 0..TAKEN {
                registers[token][register] = floats(&sums[token], first + register);
            }
        }
        for (steps, inputs) in steps.chunks(STRETCH_STEPS).zip(inputs.chunks(STRETCH_STEPS)) {
            fetch(ahead.next().unwrap_or_default());
            for (step, inputs) in steps.iter().zip(inputs) {
                if TOKENS == 1 {
                    load::fetch_lone(step);
                }
                for word in 0..WORDS {
                    let mut weights = [_mm512_setzero_ps(); TAKEN];
                    for register in 0..TAKEN {
                        weights[register] = weights_of(step, first + register, word);
                    }
                    for token in 0..TOKENS {
                        let input = _mm512_set1_epi32(inputs[word][token].cast_signed());
                        let input = _mm512_castsi512_ps(input);
                        for register in 0..TAKEN {
                            let sum = registers[token][register];
                            registers[token][register] = add(sum, weights[register], input);
                        }
                    }
                }
            }
        }
        for token in 0..TOKENS {
            for register in 0..TAKEN {
                store(&mut sums[token], first + register, registers[token][register]);
            }
        }
    }
}

/// The even (0) or odd (1) columns of pairs of bfloat16, in binary32.
#[target_feature(enable = "avx512f")]
#[inline]
fn widen(pairs: __m512i, column: usize) -> __m512 {
    let words = if column == 0 {
        _mm512_slli_epi32::<16>(pairs)
    } else {
        _mm512_and_si512(pairs, _mm512_set1_epi32(-0x1_0000))
    };
    _mm512_castsi512_ps(words)
}

/// Adds to `sum` the products of pairs of bfloat16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
#[allow(unsafe_code, reason = "there is no safe way to the type of a register of bfloat16")]
pub(super) fn dot_pairs(sum: __m512, weights: __m512, input: __m512) -> __m512 {
    // SAFETY: both types are the 512 bits of one register, and all bits are valid in both.
    let pairs = |register: __m512| unsafe { std::mem::transmute::<__m512, __m512bh>(register) };
    _mm512_dpbf16_ps(sum, pairs(weights), pairs(input))
}

/// Brings these bytes into the second-level cache.
#[target_feature(enable = "avx512f")]
#[inline]
fn fetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
    }
}

/// The 64 bytes at `index`.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
fn bytes_64<const STEP: usize>(step: &[u8; STEP], index: usize) -> __m512i {
    let bytes = &step.as_chunks::<64>().0[index];
    // SAFETY: the reference is to 64 bytes; the load asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The 32 bytes at `index`.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
fn bytes_32<const STEP: usize>(step: &[u8; STEP], index: usize) -> __m256i {
    let bytes = &step.as_chunks::<32>().0[index];
    // SAFETY: the reference is to 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The 16 sums at `index`.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
fn floats(sums: &Sums, index: usize) -> __m512 {
    let floats = &sums.as_chunks::<16>().0[index];
    // SAFETY: the reference is to 64 bytes; the load asks for no alignment.
    unsafe { _mm512_loadu_ps(floats.as_ptr()) }
}

/// Writes the 16 sums at `index`.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code, reason = "the intrinsic takes a pointer")]
fn store(sums: &mut Sums, index: usize, register: __m512) {
    let floats = &mut sums.as_chunks_mut::<16>().0[index];
    // SAFETY: the reference is to 64 bytes; the store asks for no alignment.
    unsafe { _mm512_storeu_ps(floats.as_mut_ptr(), register) }
}
