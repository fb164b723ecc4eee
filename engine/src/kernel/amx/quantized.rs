//! Blocks of quantized weights times the two digits of activations.
//!
//! A digit of 16 tokens, 32 bytes of each, meets 8 quads of a strip; two digits and two strips make four
//! products. Each block has scales of its own, so its products leave the tiles before the next: some
//! blocks are unpacked, multiplied in one go, and then scaled token by token.

use std::arch::asm;
#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::x86_64::*;

use super::{Amx, Configuration, Shape};
use crate::kernel::avx512::{Block, load};
use crate::kernel::packed::quantized::Sums;
use crate::kernel::packed::quantized::layout::{Line, QUADS, STRIPS};
use crate::kernel::packed::quantized::tokens::{IntegerTile, TokenFactors, Words};

/// Blocks that are multiplied in one go: with their products (4 KiB each, or twice as much where both
/// halves have their own) and activations they stay in the 48 KiB of first-level cache.
const GROUP_BLOCKS: usize = 4;

/// Tokens of a tile register.
const TOKENS: usize = 16;

/// Digits of an activation.
const DIGITS: usize = 2;

/// The products of a block, or of half of one: for each digit, the upper first, each strip, and each
/// token, those of 16 rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Products([[[[i32; 16]; TOKENS]; STRIPS]; DIGITS]);

/// The weights of a block, strip by strip.
type Lines = [[Line; QUADS]; STRIPS];

/// Reads block after block and adds its products to the sums of each token, as the loop for VNNI does:
/// `add` takes the block's factors, the products, the factors of the token, and the sum so far.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(in crate::kernel) fn by_blocks<F: Copy, const HALVES: usize>(
    amx: Amx,
    tile: IntegerTile<'_>,
    sums: &mut [Sums],
    read: impl Fn(usize, usize) -> Block<F> + Copy,
    add: impl Fn(F, [__m512i; HALVES], &TokenFactors, __m512) -> __m512 + Copy,
) {
    sums.fill(Sums::ZERO);
    let mut products = [[Products([[[[0; 16]; TOKENS]; STRIPS]; DIGITS]); GROUP_BLOCKS]; HALVES];
    let mut lines = [[[Line([0; 64]); QUADS]; STRIPS]; GROUP_BLOCKS];
    let words = tile.words.chunks(GROUP_BLOCKS * tile.tokens);
    let factors = tile.factors.chunks(GROUP_BLOCKS * tile.tokens);
    let groups = words.zip(factors).zip(tile.wide.chunks(GROUP_BLOCKS));
    for (group, ((words, token_factors), wide)) in groups.enumerate() {
        let blocks = wide.len();
        let narrow = wide.iter().all(|&tokens| tokens == 0);
        let unpacked: [[F; STRIPS]; GROUP_BLOCKS] = std::array::from_fn(|index| {
            // The last group may have fewer blocks; then the first of them stands for the rest.
            let index = if index < blocks { index } else { 0 };
            let unpack = |strip: usize| {
                let Block { quads, factors } = read(group * GROUP_BLOCKS + index, strip);
                for (line, quad) in lines[index][strip].iter_mut().zip(quads.as_flattened()) {
                    load::store_line(line, *quad);
                }
                factors
            };
            [0, 1].map(unpack)
        });
        for (half, products) in products.iter_mut().enumerate() {
            let shape = Halves { index: half, count: HALVES, narrow };
            multiply(amx, shape, &lines[..blocks], words, &mut products[..blocks]);
        }
        for (token, sums) in sums.iter_mut().enumerate() {
            let mut registers = load::sums(sums);
            for (block, factors) in unpacked[..blocks].iter().enumerate() {
                let token_factors = &token_factors[block * tile.tokens + token];
                for strip in 0..STRIPS {
                    let mut sums_of = [_mm512_setzero_si512(); HALVES];
                    for (half, sum) in sums_of.iter_mut().enumerate() {
                        let [upper, lower] = &products[half][block].0;
                        let offset = _mm512_set1_epi32(token_factors.offsets[half]);
                        *sum = _mm512_add_epi32(load::integers(&lower[strip][token]), offset);
                        if !narrow {
                            let upper = load::integers(&upper[strip][token]);
                            *sum = _mm512_add_epi32(*sum, _mm512_slli_epi32::<8>(upper));
                        }
                    }
                    let sum = registers[strip];
                    registers[strip] = add(factors[strip], sums_of, token_factors, sum);
                }
            }
            load::store(sums, registers);
        }
    }
}

/// Which half of how many, 1 or 2, and whether the upper digits count as zeros.
#[derive(Clone, Copy)]
struct Halves {
    index: usize,
    count: usize,
    narrow: bool,
}

/// The products of some blocks: `words` are `[blocks, tokens]`.
#[allow(unsafe_code, reason = "instructions that the compiler does not know")]
fn multiply(_: Amx, half: Halves, lines: &[Lines], words: &[Words], products: &mut [Products]) {
    let (blocks, quads) = (lines.len(), QUADS / half.count);
    assert!(blocks > 0 && products.len() == blocks && half.index < half.count);
    let tokens = words.len() / blocks;
    assert!(words.len() == blocks * tokens && (1..=TOKENS).contains(&tokens));
    let inputs = Shape::new(tokens, quads * 4);
    let (weights, sums) = (Shape::new(quads, 64), Shape::new(tokens, 64));
    let configuration =
        Configuration::new([sums, sums, sums, sums, inputs, inputs, weights, weights]);
    let first_quad = half.index * quads;
    // SAFETY: a value of `Amx` exists only where the processor has the instructions, or they are
    // emulated, and where the system permits them. The tiles of weights are 8 lines of each strip, or
    // half of them, those of inputs the upper words of each token and its lower ones, or half of them,
    // and those of products have room for 16 tokens. The tiles are released.
    unsafe {
        asm!(
            "ldtilecfg [{configuration}]",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm4, [{words} + {row} + {digit_bytes}]",
            "tileloadd tmm6, [{lines} + {row}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{lines} + {row} + {strip_bytes}]",
            "tdpbsud tmm1, tmm4, tmm7",
            "test {upper:e}, {upper:e}",
            "jz 3f",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm5, [{words} + {row}]",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "tilestored [{products} + {row}], tmm2",
            "tilestored [{products} + {row} + {tile_bytes}], tmm3",
            "3:",
            "tilestored [{products} + {row} + 2 * {tile_bytes}], tmm0",
            "tilestored [{products} + {row} + 3 * {tile_bytes}], tmm1",
            "add {words}, {words_step}",
            "add {lines}, {lines_step}",
            "add {products}, {products_step}",
            "dec {blocks}",
            "jnz 2b",
            "tilerelease",
            configuration = in(reg) &raw const configuration,
            words = inout(reg) words.as_ptr().cast::<u8>().add(first_quad * 4) => _,
            lines = inout(reg) lines.as_ptr().cast::<Line>().add(first_quad) => _,
            products = inout(reg) products.as_mut_ptr() => _,
            blocks = inout(reg) blocks => _,
            words_step = in(reg) tokens * size_of::<Words>(),
            upper = in(reg) u32::from(!half.narrow),
            row = in(reg) 64_usize,
            lines_step = const size_of::<Lines>(),
            products_step = const size_of::<Products>(),
            strip_bytes = const size_of::<Lines>() / STRIPS,
            digit_bytes = const size_of::<Words>() / DIGITS,
            tile_bytes = const size_of::<Products>() / (DIGITS * STRIPS),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
