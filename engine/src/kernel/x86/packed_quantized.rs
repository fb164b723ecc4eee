//! Panels of quantized weights times activations of 8 or 16 bits, 8 rows in a register.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use umbel_shard::WeightType;

use super::load;
use super::products::{self, Inputs, Maddubs, Products, QUADS_OF_4, QUADS_OF_5, QUADS_OF_6, Vnni};
use super::unpack::{self, Quads};
use crate::kernel::LANES;
use crate::kernel::packed::quantized::layout::{QUADS, STRIP_ROWS, STRIPS, SUPER_BLOCKS};
use crate::kernel::packed::quantized::tokens::{IntegerTile, TokenFactors};
use crate::kernel::packed::quantized::{Panel, Sums};

/// Registers for the rows of a strip.
const PARTS: usize = STRIP_ROWS / LANES;

/// 8 rows of a block.
#[derive(Clone, Copy)]
struct Rows {
    block: usize,
    strip: usize,
    part: usize,
}

/// One panel times one tile of tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply(
    vnni: Option<Vnni>,
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
) {
    // Each loop is compiled on its own, since what several share is not inlined.
    match (vnni, tile.tokens == 1) {
        (None, false) => by_type::<_, false>(Maddubs, panel, tile, sums),
        (None, true) => by_type::<_, true>(Maddubs, panel, tile, sums),
        (Some(vnni), false) => by_type::<_, false>(vnni, panel, tile, sums),
        (Some(vnni), true) => by_type::<_, true>(vnni, panel, tile, sums),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn by_type<P: Products, const ALONE: bool>(
    products: P,
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
) {
    match panel.kind {
        WeightType::Q4_0 => scaled::<_, ALONE, QUADS_OF_4>(products, tile, sums, |rows| {
            (unpack::bits_4(lines::<ALONE, 4>(panel, rows)), scale::<ALONE>(panel, rows))
        }),
        WeightType::Q5_0 => scaled::<_, ALONE, QUADS_OF_5>(products, tile, sums, |rows| {
            (unpack::bits_5(lines::<ALONE, 5>(panel, rows)), scale::<ALONE>(panel, rows))
        }),
        WeightType::Q8_0 if products.vnni().is_some() => {
            scaled::<_, ALONE, 1>(products, tile, sums, |rows| {
                (lines::<ALONE, QUADS>(panel, rows), scale::<ALONE>(panel, rows))
            });
        }
        WeightType::Q8_0 => by_blocks::<_, _, _, ALONE>(
            tile,
            sums,
            |_| (),
            |rows, ()| {
                let pairs = unpack::pairs(lines::<ALONE, QUADS>(panel, rows));
                (pairs, scale::<ALONE>(panel, rows))
            },
            |pairs, scale, inputs, token, sum| {
                let products = products::dot_pairs(pairs, inputs.words);
                add_scaled(above(products, token.offsets[0]), *scale, token, sum)
            },
        ),
        WeightType::Q4_1 => with_minimum::<_, _, ALONE, QUADS_OF_4>(
            products,
            tile,
            sums,
            |_| (),
            |rows, ()| {
                let quads = unpack::bits_4(lines::<ALONE, 4>(panel, rows));
                (quads, own_factors(panel, rows))
            },
        ),
        WeightType::Q5_1 => with_minimum::<_, _, ALONE, QUADS_OF_5>(
            products,
            tile,
            sums,
            |_| (),
            |rows, ()| {
                let quads = unpack::bits_5(lines::<ALONE, 5>(panel, rows));
                (quads, own_factors(panel, rows))
            },
        ),
        WeightType::Q4K => with_minimum::<_, _, ALONE, QUADS_OF_4>(
            products,
            tile,
            sums,
            |rows| shared_factors(panel, rows),
            |rows, shared| {
                let quads = unpack::bits_4(lines::<ALONE, 4>(panel, rows));
                (quads, factors_of_shared(panel, rows, shared))
            },
        ),
        WeightType::Q5K => with_minimum::<_, _, ALONE, QUADS_OF_5>(
            products,
            tile,
            sums,
            |rows| shared_factors(panel, rows),
            |rows, shared| {
                let quads = unpack::bits_5(lines::<ALONE, 5>(panel, rows));
                (quads, factors_of_shared(panel, rows, shared))
            },
        ),
        WeightType::Q6K => in_halves::<_, ALONE>(products, panel, tile, sums),
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("weights in floating point are not packed as integers")
        }
    }
}

/// The rows' part of the lines of their block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn lines<const ALONE: bool, const N: usize>(panel: Panel<'_>, rows: Rows) -> [__m256i; N] {
    let mut registers = [_mm256_setzero_si256(); N];
    for (register, line) in registers.iter_mut().zip(panel.lines::<N>(rows.block, rows.strip)) {
        *register = load::part::<ALONE>(line, rows.part);
    }
    registers
}

/// The factor of Q4_0, Q5_0 and Q8_0.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scale<const ALONE: bool>(panel: Panel<'_>, rows: Rows) -> __m256 {
    let [scale] = panel.factors(rows.block, rows.strip);
    load::scales::<ALONE>(scale, rows.part)
}

/// The factors of Q4_1 and Q5_1.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn own_factors(panel: Panel<'_>, rows: Rows) -> [__m256; 2] {
    let [scale, minimum] = panel.factors(rows.block, rows.strip);
    [load::scales::<false>(scale, rows.part), load::scales::<false>(minimum, rows.part)]
}

/// What eight blocks of Q4_K or Q5_K have in common: the scale of their scales, and that of their minimums,
/// which are taken away.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn shared_factors(panel: Panel<'_>, rows: Rows) -> [__m256; 2] {
    let [scale, minimum] = panel.supers(rows.block, rows.strip);
    let minimum = load::scales::<false>(minimum, rows.part);
    [load::scales::<false>(scale, rows.part), _mm256_xor_ps(minimum, _mm256_set1_ps(-0.0))]
}

/// The factors of Q4_K and Q5_K.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn factors_of_shared(panel: Panel<'_>, rows: Rows, [scale, minimum]: [__m256; 2]) -> [__m256; 2] {
    let [factors] = panel.factors::<1>(rows.block, rows.strip);
    let [scales, minimums] = factors.halves();
    let scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load::eighth(scales, rows.part)));
    let minimums = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load::eighth(minimums, rows.part)));
    [_mm256_mul_ps(scale, scales), _mm256_mul_ps(minimum, minimums)]
}

/// Types without a minimum.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled<P: Products, const ALONE: bool, const TOGETHER: usize>(
    products: P,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    read: impl Fn(Rows) -> (Quads, __m256) + Copy,
) {
    by_blocks::<_, _, _, ALONE>(
        tile,
        sums,
        |_| (),
        |rows, ()| read(rows),
        |quads, scale, inputs, token, sum| {
            let products = products::dot::<TOGETHER, QUADS>(products, quads, inputs, 0);
            add_scaled(above(products, token.offsets[0]), *scale, token, sum)
        },
    );
}

/// Types with a minimum: the scale, and the minimum.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn with_minimum<P: Products, S: Copy, const ALONE: bool, const TOGETHER: usize>(
    products: P,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    shared: impl Fn(Rows) -> S + Copy,
    read: impl Fn(Rows, S) -> (Quads, [__m256; 2]) + Copy,
) {
    by_blocks::<_, _, _, ALONE>(
        tile,
        sums,
        shared,
        read,
        |quads, [scale, minimum], inputs, token, sum| {
            let products = products::dot::<TOGETHER, QUADS>(products, quads, inputs, 0);
            let sum = add_scaled(products, *scale, token, sum);
            _mm256_fmadd_ps(*minimum, _mm256_set1_ps(token.sum), sum)
        },
    );
}

/// Q6_K, whose blocks have a scale for each half.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn in_halves<P: Products, const ALONE: bool>(
    products: P,
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
) {
    const HALF: usize = QUADS / 2;
    by_blocks::<_, _, _, ALONE>(
        tile,
        sums,
        |rows| {
            let [scale] = panel.supers(rows.block, rows.strip);
            load::scales::<false>(scale, rows.part)
        },
        |rows, scale| {
            let [factors] = panel.factors::<1>(rows.block, rows.strip);
            let mut scales = [scale; 2];
            for (scale, bytes) in scales.iter_mut().zip(factors.halves()) {
                let integers = _mm256_cvtepi8_epi32(load::eighth(bytes, rows.part));
                *scale = _mm256_mul_ps(*scale, _mm256_cvtepi32_ps(integers));
            }
            (unpack::bits_6(lines::<ALONE, 6>(panel, rows)), scales)
        },
        |quads, scales, inputs, token, sum| {
            let first = products::dot::<QUADS_OF_6, HALF>(products, quads, inputs, 0);
            let last = products::dot::<QUADS_OF_6, HALF>(products, quads, inputs, HALF);
            let first = _mm256_cvtepi32_ps(above(first, token.offsets[0]));
            let last = _mm256_cvtepi32_ps(above(last, token.offsets[1]));
            let both = _mm256_fmadd_ps(last, scales[1], _mm256_mul_ps(first, scales[0]));
            _mm256_fmadd_ps(both, _mm256_set1_ps(token.scale), sum)
        },
    );
}

/// Reads block after block, each with what it shares with its neighbours, and adds its products to the
/// sums of each token: `read` gives the weights and their factors, which `add` takes, with the factors of
/// the token, and the sum so far.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_blocks<W, F, S: Copy, const ALONE: bool>(
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    shared: impl Fn(Rows) -> S + Copy,
    read: impl Fn(Rows, S) -> (W, F) + Copy,
    add: impl Fn(&W, &F, Inputs<'_>, &TokenFactors, __m256) -> __m256 + Copy,
) {
    if ALONE {
        return of_lone_token(tile, sums, shared, read, add);
    }
    sums.fill(Sums::ZERO);
    let words = tile.words.chunks_exact(tile.tokens);
    for (block, (words, tokens)) in words.zip(tile.factors.chunks_exact(tile.tokens)).enumerate() {
        for index in 0..STRIPS * PARTS {
            let rows = Rows { block, strip: index / PARTS, part: index % PARTS };
            let (weights, factors) = read(rows, shared(rows));
            // Counted, since what std chains together is called for each token where features differ.
            for (index, sums) in sums.iter_mut().enumerate() {
                let wide = tile.wide[block] >> index & 1 == 1;
                let inputs = Inputs { words: &words[index], wide };
                let sums = &mut sums.0[rows.strip].as_chunks_mut::<LANES>().0[rows.part];
                let sum = add(&weights, &factors, inputs, &tokens[index], load::floats(sums));
                load::store(sums, sum);
            }
        }
    }
}

/// As [`by_blocks`] for one token, whose sums stay in registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn of_lone_token<W, F, S: Copy>(
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    shared: impl Fn(Rows) -> S + Copy,
    read: impl Fn(Rows, S) -> (W, F) + Copy,
    add: impl Fn(&W, &F, Inputs<'_>, &TokenFactors, __m256) -> __m256 + Copy,
) {
    let mut registers = [_mm256_setzero_ps(); STRIPS * PARTS];
    let rows = |block, index| Rows { block, strip: index / PARTS, part: index % PARTS };
    for start in (0..tile.words.len()).step_by(SUPER_BLOCKS) {
        let shares = [0, 1, 2, 3].map(|index| shared(rows(start, index)));
        for block in start..tile.words.len().min(start + SUPER_BLOCKS) {
            let inputs = Inputs { words: &tile.words[block], wide: tile.wide[block] != 0 };
            for index in 0..STRIPS * PARTS {
                let (weights, factors) = read(rows(block, index), shares[index]);
                let sum = registers[index];
                registers[index] = add(&weights, &factors, inputs, &tile.factors[block], sum);
            }
        }
    }
    for sums in sums {
        let parts = sums.0.as_flattened_mut().as_chunks_mut::<LANES>().0;
        for (sums, register) in parts.iter_mut().zip(registers) {
            load::store(sums, register);
        }
    }
}

/// Products with weights that are packed from zero on, which `offset` makes up for.
#[target_feature(enable = "avx2")]
#[inline]
fn above(products: __m256i, offset: i32) -> __m256i {
    _mm256_add_epi32(products, _mm256_set1_epi32(offset))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_scaled(products: __m256i, scale: __m256, token: &TokenFactors, sum: __m256) -> __m256 {
    let scale = _mm256_mul_ps(scale, _mm256_set1_ps(token.scale));
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sum)
}
