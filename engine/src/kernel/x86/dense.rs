//! Weights in floating point: widened as they are loaded, 8 at a time.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;
use std::array;

use super::load;
use crate::kernel::LANES;
use crate::kernel::matmul::Panel;

/// IEEE 754 binary32.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn binary32(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens(panel, outputs, |octet: &[u8; 32]| _mm256_castsi256_ps(load::bytes_32(octet)));
}

/// IEEE 754 binary16.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn binary16(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens(panel, outputs, |octet: &[u8; 16]| _mm256_cvtph_ps(load::bytes_16(octet)));
}

/// The upper half of a binary32.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn bfloat16(panel: Panel<'_>, outputs: &mut [&mut [f32]]) {
    by_tokens(panel, outputs, |octet: &[u8; 16]| {
        let words = _mm256_cvtepu16_epi32(load::bytes_16(octet));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    });
}

/// `OCTET` is how many bytes 8 weights have.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_tokens<const OCTET: usize>(
    panel: Panel<'_>,
    outputs: &mut [&mut [f32]],
    widen: impl Fn(&[u8; OCTET]) -> __m256 + Copy,
) {
    let row = |token: usize| panel.activations.floats(panel.first_token + token);
    // 12 sums, 3 weights and an input fill the 16 registers.
    match outputs.len() {
        1 => by_rows::<OCTET, 4, 1>(panel, array::from_fn(row), outputs, widen),
        2 => by_rows::<OCTET, 4, 2>(panel, array::from_fn(row), outputs, widen),
        3 => by_rows::<OCTET, 3, 3>(panel, array::from_fn(row), outputs, widen),
        4 => by_rows::<OCTET, 3, 4>(panel, array::from_fn(row), outputs, widen),
        count => unreachable!("a tile of {count} tokens"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_rows<const OCTET: usize, const ROWS: usize, const TOKENS: usize>(
    panel: Panel<'_>,
    tokens: [&[f32]; TOKENS],
    outputs: &mut [&mut [f32]],
    widen: impl Fn(&[u8; OCTET]) -> __m256 + Copy,
) {
    let mut place = panel.first_row;
    let mut tiles = panel.bytes.chunks_exact(ROWS * panel.row_bytes);
    for tile in &mut tiles {
        let rows = array::from_fn(|row| &tile[row * panel.row_bytes..][..panel.row_bytes]);
        write(place, dot::<OCTET, ROWS, TOKENS>(rows, tokens, widen), outputs);
        place += ROWS;
    }
    for row in tiles.remainder().chunks_exact(panel.row_bytes) {
        write(place, dot::<OCTET, 1, TOKENS>([row], tokens, widen), outputs);
        place += 1;
    }
}

/// The dot product of each row with each token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dot<const OCTET: usize, const ROWS: usize, const TOKENS: usize>(
    rows: [&[u8]; ROWS],
    tokens: [&[f32]; TOKENS],
    widen: impl Fn(&[u8; OCTET]) -> __m256 + Copy,
) -> [[f32; TOKENS]; ROWS] {
    let octets = rows[0].len() / OCTET;
    let rows = rows.map(|row| row.as_chunks::<OCTET>());
    let tokens = tokens.map(|token| token.as_chunks::<LANES>());
    let row_octets = rows.map(|(row, _)| &row[..octets]);
    let token_octets = tokens.map(|(token, _)| &token[..octets]);
    let mut sums = [[_mm256_setzero_ps(); TOKENS]; ROWS];
    for octet in 0..octets {
        let mut weights = [_mm256_setzero_ps(); ROWS];
        for row in 0..ROWS {
            weights[row] = widen(&row_octets[row][octet]);
        }
        for token in 0..TOKENS {
            let inputs = load::floats(&token_octets[token][octet]);
            for row in 0..ROWS {
                sums[row][token] = _mm256_fmadd_ps(weights[row], inputs, sums[row][token]);
            }
        }
    }
    if !rows[0].1.is_empty() {
        for row in 0..ROWS {
            let weights = widen(&padded(rows[row].1));
            for token in 0..TOKENS {
                let inputs = load::floats(&padded(tokens[token].1));
                sums[row][token] = _mm256_fmadd_ps(weights, inputs, sums[row][token]);
            }
        }
    }
    let mut dots = [[0.0; TOKENS]; ROWS];
    for row in 0..ROWS {
        for token in 0..TOKENS {
            dots[row][token] = load::sum(sums[row][token]);
        }
    }
    dots
}

/// What is left of a row, followed by zeros, which add nothing.
#[inline]
fn padded<T: Copy + Default, const N: usize>(rest: &[T]) -> [T; N] {
    let mut padded = [T::default(); N];
    padded[..rest.len()].copy_from_slice(rest);
    padded
}

/// Puts the results of a tile whose first row is at `place` where they belong.
#[inline]
pub(super) fn write<const ROWS: usize, const TOKENS: usize>(
    place: usize,
    dots: [[f32; TOKENS]; ROWS],
    outputs: &mut [&mut [f32]],
) {
    for (token, output) in outputs.iter_mut().enumerate() {
        for (row, dots) in dots.iter().enumerate() {
            output[place + row] = dots[token];
        }
    }
}
