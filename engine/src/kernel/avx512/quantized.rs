//! Panels of quantized weights times activations of 8 or 16 bits.
//!
//! `vpdpbusd` multiplies unsigned bytes with signed ones and adds four products to a lane of 32 bits.
//! The lower and, in wide blocks, the upper bytes of the activations are multiplied one after the other
//! with the same registers of weights. There is no overflow: 32 products of a byte and an integer of 16 bits are at
//! most `32 * 255 * 32,768`, 2^28, and the offset is at most half of that.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use umbel_shard::WeightType;

use super::load;
use super::products::{self, GROUP, Products};
use super::unpack::{self, Quads};
use crate::kernel::amx::{self, Amx};
use crate::kernel::packed::quantized::layout::{STRIPS, SUPER_BLOCKS};
use crate::kernel::packed::quantized::tokens::{IntegerTile, TokenFactors};
use crate::kernel::packed::quantized::{Panel, Sums};

/// The bits of a group among those that say which tokens have upper bytes.
const GROUP_BITS: u16 = (1 << GROUP) - 1;

/// The weights of a block, and what their integers stand for.
pub(in crate::kernel) struct Block<F> {
    pub(in crate::kernel) quads: Quads,
    pub(in crate::kernel) factors: F,
}

/// One panel times one tile of tokens, with the products of tiles where there are any.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply(
    amx: Option<Amx>,
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
) {
    // Each loop is compiled on its own: sharing closures, none would have them inlined, which costs a
    // sixth of the speed.
    match (amx.is_some(), tile.tokens == 1) {
        (false, false) => by_type::<false, false>(amx, panel, tile, sums),
        (false, true) => by_type::<false, true>(amx, panel, tile, sums),
        (true, _) => by_type::<true, false>(amx, panel, tile, sums),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn by_type<const TILES: bool, const ALONE: bool>(
    amx: Option<Amx>,
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
) {
    match panel.kind {
        WeightType::Q4_0 => scaled::<TILES, ALONE>(amx, tile, sums, |block, strip| {
            let quads = unpack::bits_4::<ALONE>(panel.lines(block, strip));
            with_scale::<ALONE>(panel, block, strip, quads)
        }),
        WeightType::Q5_0 => scaled::<TILES, ALONE>(amx, tile, sums, |block, strip| {
            let quads = unpack::bits_5::<ALONE>(panel.lines(block, strip));
            with_scale::<ALONE>(panel, block, strip, quads)
        }),
        WeightType::Q8_0 => scaled::<TILES, ALONE>(amx, tile, sums, |block, strip| {
            let quads = unpack::bits_8::<ALONE>(panel.lines(block, strip));
            with_scale::<ALONE>(panel, block, strip, quads)
        }),
        WeightType::Q4_1 => with_minimum::<_, TILES, ALONE>(
            amx,
            tile,
            sums,
            |_, _| (),
            |block, strip, ()| {
                let quads = unpack::bits_4::<ALONE>(panel.lines(block, strip));
                with_own_factors(panel, block, strip, quads)
            },
        ),
        WeightType::Q5_1 => with_minimum::<_, TILES, ALONE>(
            amx,
            tile,
            sums,
            |_, _| (),
            |block, strip, ()| {
                let quads = unpack::bits_5::<ALONE>(panel.lines(block, strip));
                with_own_factors(panel, block, strip, quads)
            },
        ),
        WeightType::Q4K => with_minimum::<_, TILES, ALONE>(
            amx,
            tile,
            sums,
            |block, strip| shared_factors(panel, block, strip),
            |block, strip, shared| {
                let quads = unpack::bits_4::<ALONE>(panel.lines(block, strip));
                with_shared_factors(panel, block, strip, (quads, shared))
            },
        ),
        WeightType::Q5K => with_minimum::<_, TILES, ALONE>(
            amx,
            tile,
            sums,
            |block, strip| shared_factors(panel, block, strip),
            |block, strip, shared| {
                let quads = unpack::bits_5::<ALONE>(panel.lines(block, strip));
                with_shared_factors(panel, block, strip, (quads, shared))
            },
        ),
        WeightType::Q6K => in_halves::<TILES, ALONE>(amx, panel, tile, sums),
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("weights in floating point are not packed as integers")
        }
    }
}

/// The factor of Q4_0, Q5_0 and Q8_0.
#[target_feature(enable = "avx512f")]
#[inline]
fn with_scale<const ALONE: bool>(
    panel: Panel<'_>,
    block: usize,
    strip: usize,
    quads: Quads,
) -> Block<__m512> {
    let [scale] = panel.factors(block, strip);
    Block { quads, factors: load::scales::<ALONE>(scale) }
}

/// The factors of Q4_1 and Q5_1.
#[target_feature(enable = "avx512f")]
#[inline]
fn with_own_factors(
    panel: Panel<'_>,
    block: usize,
    strip: usize,
    quads: Quads,
) -> Block<[__m512; 2]> {
    let [scale, minimum] = panel.factors(block, strip);
    Block { quads, factors: [load::binary16(scale), load::binary16(minimum)] }
}

/// What eight blocks of Q4_K or Q5_K have in common: the scale of their scales, and that of their minimums,
/// which are taken away.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn shared_factors(panel: Panel<'_>, block: usize, strip: usize) -> [__m512; 2] {
    let [scale, minimum] = panel.supers(block, strip);
    [load::binary16(scale), _mm512_xor_ps(load::binary16(minimum), _mm512_set1_ps(-0.0))]
}

/// The factors of Q4_K and Q5_K.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn with_shared_factors(
    panel: Panel<'_>,
    block: usize,
    strip: usize,
    (quads, [scale, minimum]): (Quads, [__m512; 2]),
) -> Block<[__m512; 2]> {
    let [factors] = panel.factors::<1>(block, strip);
    let widen = |bytes| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load::bytes_16(bytes)));
    let [scales, minimums] = factors.halves().map(widen);
    Block { quads, factors: [_mm512_mul_ps(scale, scales), _mm512_mul_ps(minimum, minimums)] }
}

/// Types without a minimum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn scaled<const TILES: bool, const ALONE: bool>(
    amx: Option<Amx>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    read: impl Fn(usize, usize) -> Block<__m512> + Copy,
) {
    let read = |block, strip, ()| read(block, strip);
    by_blocks::<_, _, TILES, ALONE, 1>(
        amx,
        tile,
        sums,
        |_, _| (),
        read,
        |scale, [products], token, sum| {
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(token.scale));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sum)
        },
    );
}

/// Types with a minimum: the scale, and the minimum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn with_minimum<S: Copy, const TILES: bool, const ALONE: bool>(
    amx: Option<Amx>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    shared: impl Fn(usize, usize) -> S + Copy,
    read: impl Fn(usize, usize, S) -> Block<[__m512; 2]> + Copy,
) {
    by_blocks::<_, _, TILES, ALONE, 1>(
        amx,
        tile,
        sums,
        shared,
        read,
        |[scale, minimum], [products], token, sum| {
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(token.scale));
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sum);
            _mm512_fmadd_ps(minimum, _mm512_set1_ps(token.sum), sum)
        },
    );
}

/// Q6_K, whose blocks have a scale for each half.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn in_halves<const TILES: bool, const ALONE: bool>(
    amx: Option<Amx>,
    panel: Panel<'_>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
) {
    let shared = |block: usize, strip: usize| {
        let [scale] = panel.supers(block, strip);
        load::binary16(scale)
    };
    let read = |block: usize, strip: usize, scale: __m512| {
        let [factors] = panel.factors::<1>(block, strip);
        let scales = factors.halves().map(|bytes| {
            let integers = _mm512_cvtepi8_epi32(load::bytes_16(bytes));
            _mm512_mul_ps(scale, _mm512_cvtepi32_ps(integers))
        });
        Block { quads: unpack::bits_6::<ALONE>(panel.lines(block, strip)), factors: scales }
    };
    let add = |scales: [__m512; 2], [first, last]: [__m512i; 2], token: &TokenFactors, sum| {
        let first = _mm512_mul_ps(_mm512_cvtepi32_ps(first), scales[0]);
        let both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(last), scales[1], first);
        _mm512_fmadd_ps(both, _mm512_set1_ps(token.scale), sum)
    };
    by_blocks::<_, _, TILES, ALONE, 2>(amx, tile, sums, shared, read, add);
}

/// Reads block after block, each with what it shares with its neighbours, and adds its products to the
/// sums of each token: `add` takes the block's factors, the products, the factors of the token, and the
/// sum so far.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn by_blocks<F: Copy, S: Copy, const TILES: bool, const ALONE: bool, const HALVES: usize>(
    amx: Option<Amx>,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    shared: impl Fn(usize, usize) -> S + Copy,
    read: impl Fn(usize, usize, S) -> Block<F> + Copy,
    add: impl Fn(F, [__m512i; HALVES], &TokenFactors, __m512) -> __m512 + Copy,
) {
    if ALONE {
        return of_lone_token(tile, sums, shared, read, add);
    }
    let read = |block, strip| read(block, strip, shared(block, strip));
    if let (true, Some(amx)) = (TILES, amx) {
        return amx::by_blocks::<F, HALVES>(amx, tile, sums, read, add);
    }
    sums.iter_mut().for_each(|sums| load::store(sums, [_mm512_setzero_ps(); STRIPS]));
    let (sums, last_sums) = sums.as_chunks_mut::<GROUP>();
    let blocks = tile.words.chunks_exact(tile.tokens).zip(tile.factors.chunks_exact(tile.tokens));
    for (place, ((words, factors), wide)) in blocks.zip(tile.wide).enumerate() {
        let [first, second] = [read(place, 0), read(place, 1)];
        let (quads, block_factors) = ([first.quads, second.quads], [first.factors, second.factors]);
        let add = |products: Products<HALVES>, factors: &TokenFactors, sums: &mut Sums| {
            let mut registers = load::sums(sums);
            for strip in 0..STRIPS {
                let sum = registers[strip];
                registers[strip] = add(block_factors[strip], products[strip], factors, sum);
            }
            load::store(sums, registers);
        };
        let (words, last_words) = words.as_chunks::<GROUP>();
        let (factors, last_factors) = factors.as_chunks::<GROUP>();
        let groups = words.iter().zip(factors).zip(sums.iter_mut()).enumerate();
        for (group, ((words, factors), sums)) in groups {
            let products = if wide >> (group * GROUP) & GROUP_BITS == 0 {
                products::of_group::<true, HALVES>(&quads, words, factors)
            } else {
                products::of_group::<false, HALVES>(&quads, words, factors)
            };
            for token in 0..GROUP {
                add(products[token], &factors[token], &mut sums[token]);
            }
        }
        let last = last_words.iter().zip(last_factors).zip(last_sums.iter_mut());
        for ((words, factors), sums) in last {
            let products = if wide >> (tile.tokens - 1) == 0 {
                products::of_one_narrow::<HALVES>(&quads, words, factors)
            } else {
                products::of_one::<HALVES>(&quads, words, factors)
            };
            add(products, factors, sums);
        }
    }
}

/// As [`by_blocks`] for one token, whose sums stay in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn of_lone_token<F: Copy, S: Copy, const HALVES: usize>(
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    shared: impl Fn(usize, usize) -> S + Copy,
    read: impl Fn(usize, usize, S) -> Block<F> + Copy,
    add: impl Fn(F, [__m512i; HALVES], &TokenFactors, __m512) -> __m512 + Copy,
) {
    let mut registers = [_mm512_setzero_ps(); STRIPS];
    let Some(mut shares) = (!tile.words.is_empty()).then(|| [shared(0, 0), shared(0, 1)]) else {
        return sums.iter_mut().for_each(|sums| load::store(sums, registers));
    };
    let blocks = tile.words.iter().zip(tile.factors).zip(tile.wide);
    for (place, ((words, factors), wide)) in blocks.enumerate() {
        if place.is_multiple_of(SUPER_BLOCKS) {
            shares = [shared(place, 0), shared(place, 1)];
        }
        let [first, second] = [read(place, 0, shares[0]), read(place, 1, shares[1])];
        let (quads, block_factors) = ([first.quads, second.quads], [first.factors, second.factors]);
        let products = if *wide == 0 {
            products::of_one_narrow::<HALVES>(&quads, words, factors)
        } else {
            products::of_one::<HALVES>(&quads, words, factors)
        };
        for strip in 0..STRIPS {
            let sum = registers[strip];
            registers[strip] = add(block_factors[strip], products[strip], factors, sum);
        }
    }
    sums.iter_mut().for_each(|sums| load::store(sums, registers));
}
