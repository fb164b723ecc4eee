//! Activations as integers, in the order in which the kernels for panels read them.
//!
//! A block of 32 activations has one scale, the largest magnitude over [`BYTE_STEPS`]; each activation is
//! rounded to a multiple of it, an integer of 8 bits. A few channels of a model are so much larger than
//! the rest that such a rounding of their block loses more than all other blocks together; these blocks
//! are [`wide`](IntegerTile::wide), with a scale of the largest magnitude over [`STEPS`] and integers of
//! 16 bits. Units that multiply bytes take those as two signed bytes, of which the upper counts 256 times
//! the lower. Which blocks are wide depends on the token alone, so its products do not depend on its
//! company.

use std::cell::Cell;

use umbel_shard::WeightType;

use super::layout::{Form, QUADS};
use crate::kernel::format::BLOCK_VALUES;
use crate::kernel::packed::Arithmetic;
use crate::kernel::parallel::for_each_part;
use crate::kernel::{InstructionSet, PARALLEL_WORK_MIN};

/// Tokens that share what a kernel has unpacked of the weights: enough that unpacking costs little
/// beside their products, and few enough that what is read of them stays in the first-level cache.
pub(super) const TILE_TOKENS: usize = 16;

/// The largest byte, so that each value has an opposite.
const BYTE_STEPS: f32 = 127.0;

/// The largest integer of a wide block: 127 in the upper byte.
pub(in crate::kernel) const STEPS: f32 = 127.0 * 256.0;

/// A block has two bytes where its largest value is more than so many times the average block's. So
/// these are less than half of the blocks of any token, and the rounding of the others is at most twice
/// as coarse as if all were alike.
const WIDE_TIMES: f32 = 2.0;

/// Blocks whose largest value is below this count as zeros: their scale would be denormal and so not
/// exact, and its inverse infinite. It is [`STEPS`] times the smallest normal number, rounded up; no
/// model computes with such numbers.
const LARGEST_MIN: f32 = 4e-34;

/// 1.5 times 2^23: a sum with it has no bits below 1, so adding it rounds to the nearest integer, ties
/// to even, and leaves that integer in the low bits. Unlike a call to `round`, it becomes a vector.
const ROUNDER: f32 = 12_582_912.0;

/// 32 activations of one token: a line of 16 words of 32 bits, each of which is multiplied with a
/// quad of weights in all rows.
///
/// In order of [`Order::Bytes`] the first 8 words are the upper bytes of 4 activations each, zeros where
/// the block is not wide, and the last 8 the lower ones. In [`Order::Pairs`] words `2 i` and `2 i + 1` have the activations of quad
/// `i` as integers of 16 bits: the first and third, then the second and fourth. In [`Order::Columns`]
/// they are integers of 16 bits one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(in crate::kernel) struct Words(pub(in crate::kernel) [i32; 2 * QUADS]);

/// How the activations of a block lie in its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code, reason = "for units that multiply bytes")
    )]
    Bytes,
    Pairs,
    #[cfg(target_arch = "aarch64")]
    Columns,
}

/// What the integers of a block stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(16))]
pub(in crate::kernel) struct TokenFactors {
    /// The value of 1.
    pub(in crate::kernel) scale: f32,
    /// The sum of all values, which a minimum is multiplied with.
    pub(in crate::kernel) sum: f32,
    /// What makes up for weights that are packed from zero on: the sum of the integers times the zero
    /// of the type, negated. For Q6_K it is in two parts, of the first and of the last 16 columns.
    pub(in crate::kernel) offsets: [i32; 2],
}

/// The activations of one multiplication.
pub(in crate::kernel) struct Tokens<'a> {
    form: Activations<'a>,
    count: usize,
    blocks: usize,
}

enum Activations<'a> {
    /// `[tokens, columns]`.
    Floats(&'a [f32]),
    Integers(Room),
}

/// Where activations lie as integers, and more than there are of them.
#[derive(Default)]
struct Room {
    /// Tile by tile: `[blocks, tokens of the tile]`.
    words: Vec<Words>,
    /// As `words`.
    factors: Vec<TokenFactors>,
    /// Tile by tile: `[blocks]`.
    wide: Vec<u16>,
}

thread_local! {
    /// What the thread's last product left. In a long prompt a block takes megabytes for it several times,
    /// and memory that the system has just given has to be mapped page by page, and cleared.
    static ROOM: Cell<Room> = const { Cell::new(Room::NONE) };
}

/// A thread keeps no more than so many words: 16 MiB of them, for 512 tokens of 16,384 values.
const WORDS_KEPT_MAX: usize = (16 << 20) / size_of::<Words>();

/// At most [`TILE_TOKENS`] tokens.
#[derive(Clone, Copy)]
pub(in crate::kernel) enum TokenTile<'a> {
    /// `[tokens, columns]`.
    Floats {
        /// The activations.
        values: &'a [f32],
        /// Values of a token.
        columns: usize,
    },
    /// Block by block, in each token by token.
    Integers(IntegerTile<'a>),
}

/// Tokens as integers: `[blocks, tokens]`.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct IntegerTile<'a> {
    pub(in crate::kernel) words: &'a [Words],
    pub(in crate::kernel) factors: &'a [TokenFactors],
    pub(in crate::kernel) tokens: usize,
    /// Of each block, a bit for each token, from the lowest on: it is set where the block has upper
    /// bytes. The others are zeros and need not be multiplied.
    pub(in crate::kernel) wide: &'a [u16],
}

impl<'a> Tokens<'a> {
    /// `input`, `[tokens, columns]`, for weights of `kind` and the kernels of `set`.
    pub(super) fn prepare(
        set: InstructionSet,
        kind: WeightType,
        arithmetic: Arithmetic,
        input: &'a [f32],
        columns: usize,
    ) -> Self {
        let (count, blocks) = (input.len() / columns, columns / BLOCK_VALUES);
        if arithmetic == Arithmetic::Exact {
            return Self { form: Activations::Floats(input), count, blocks };
        }
        let (zero, in_halves) = (i32::from(Form::of(kind).zero), kind == WeightType::Q6K);
        let mut room = Room::of_thread(count * blocks, count.div_ceil(TILE_TOKENS) * blocks);
        let tiles = room.words[..count * blocks]
            .chunks_mut(TILE_TOKENS * blocks)
            .zip(room.factors.chunks_mut(TILE_TOKENS * blocks))
            .zip(room.wide.chunks_mut(blocks));
        let tiles = tiles.map(|((words, factors), wide)| Prepared { words, factors, wide });
        let parts = tiles.zip(input.chunks(TILE_TOKENS * columns));
        let work = |_, (tile, input): (Prepared<'_>, &[f32])| {
            Unprepared { input, columns, zero, in_halves, arithmetic }.prepare(set, tile);
        };
        if input.len() < PARALLEL_WORK_MIN {
            parts.for_each(|part| work(0, part));
        } else {
            for_each_part(parts.collect(), work);
        }
        Self { form: Activations::Integers(room), count, blocks }
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// The tokens from `index * TILE_TOKENS` on.
    pub(super) fn tile(&self, index: usize) -> TokenTile<'_> {
        let start = index * TILE_TOKENS;
        let tokens = TILE_TOKENS.min(self.count - start);
        let blocks = start * self.blocks..(start + tokens) * self.blocks;
        match &self.form {
            Activations::Floats(values) => TokenTile::Floats {
                values: &values[blocks.start * BLOCK_VALUES..blocks.end * BLOCK_VALUES],
                columns: self.blocks * BLOCK_VALUES,
            },
            Activations::Integers(room) => TokenTile::Integers(IntegerTile {
                words: &room.words[blocks.clone()],
                factors: &room.factors[blocks],
                tokens,
                wide: &room.wide[index * self.blocks..][..self.blocks],
            }),
        }
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        if let Activations::Integers(room) = &mut self.form
            && room.words.len() <= WORDS_KEPT_MAX
        {
            // Of several that were under way at once the largest stays.
            let kept = ROOM.take();
            let larger = kept.words.len() < room.words.len();
            ROOM.set(if larger { std::mem::take(room) } else { kept });
        }
    }
}

impl Room {
    const NONE: Self = Self { words: Vec::new(), factors: Vec::new(), wide: Vec::new() };

    /// Room for so many blocks of tokens, in whatever was there before, and none in so many blocks of tiles that
    /// is wide.
    fn of_thread(blocks: usize, tile_blocks: usize) -> Self {
        let mut room = ROOM.take();
        if room.words.len() < blocks {
            // What is there is not worth to be copied.
            room = Self::NONE;
            room.words = vec![Words([0; 2 * QUADS]); blocks];
            room.factors = vec![TokenFactors::ZERO; blocks];
        }
        room.wide.clear();
        room.wide.resize(tile_blocks, 0);
        room
    }
}

impl TokenFactors {
    const ZERO: Self = Self { scale: 0.0, sum: 0.0, offsets: [0; 2] };
}

/// A tile before it is rounded.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Unprepared<'a> {
    /// `[tokens, columns]`.
    input: &'a [f32],
    columns: usize,
    /// The zero of the weights' type.
    zero: i32,
    /// Whether both halves of a block have an offset of their own.
    in_halves: bool,
    arithmetic: Arithmetic,
}

/// Where a tile goes.
pub(in crate::kernel) struct Prepared<'a> {
    words: &'a mut [Words],
    factors: &'a mut [TokenFactors],
    wide: &'a mut [u16],
}

impl Unprepared<'_> {
    fn prepare(self, set: InstructionSet, tile: Prepared<'_>) {
        match set {
            InstructionSet::Portable => self.pairs(tile),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2(avx2) => avx2.prepare_tokens(self, tile),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(avx512) => avx512.prepare_tokens(self, tile),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx(amx) => amx.avx512().prepare_tokens(self, tile),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon(neon) => neon.prepare_tokens(self, tile),
        }
    }

    /// Whether they are for weights of 8 bits.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(in crate::kernel) const fn is_for_bytes(self) -> bool {
        self.zero == Form::of(WeightType::Q8_0).zero as i32
    }

    /// Rounds to words in the order of bytes.
    #[inline(always)]
    pub(in crate::kernel) fn bytes(self, tile: Prepared<'_>) {
        self.round(Order::Bytes, tile);
    }

    /// Rounds to words in the order of pairs.
    #[inline(always)]
    pub(in crate::kernel) fn pairs(self, tile: Prepared<'_>) {
        self.round(Order::Pairs, tile);
    }

    /// Rounds to words in the order of columns.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(in crate::kernel) fn columns(self, tile: Prepared<'_>) {
        self.round(Order::Columns, tile);
    }

    /// Blocks are wide whose largest value is above this.
    #[inline(always)]
    fn wide_above(self, blocks: &[[f32; BLOCK_VALUES]]) -> f32 {
        if self.arithmetic == Arithmetic::Careful {
            return 0.0;
        }
        // One after the other, so that every instruction set finds the same.
        let sum = blocks.iter().map(largest).fold(0.0, |sum, largest| sum + largest);
        sum / blocks.len() as f32 * WIDE_TIMES
    }

    #[inline(always)]
    fn round(self, order: Order, tile: Prepared<'_>) {
        let Prepared { words, factors, wide } = tile;
        let tokens = self.input.len() / self.columns;
        for (token, input) in self.input.chunks_exact(self.columns).enumerate() {
            let blocks = input.as_chunks::<BLOCK_VALUES>().0;
            let wide_above = self.wide_above(blocks);
            for (block, (input, wide)) in blocks.iter().zip(wide.iter_mut()).enumerate() {
                let mut integers = [0; BLOCK_VALUES];
                let largest = largest(input);
                let is_wide = largest > wide_above;
                *wide |= u16::from(is_wide) << token;
                let scale = round(input, largest, is_wide, &mut integers);
                let place = block * tokens + token;
                words[place] = match order {
                    Order::Bytes => bytes(&integers),
                    Order::Pairs => pairs(&integers),
                    #[cfg(target_arch = "aarch64")]
                    Order::Columns => columns(&integers),
                };
                let sum = |half: usize| -> i32 {
                    integers[half * 16..][..16].iter().map(|&value| i32::from(value)).sum()
                };
                let (first, last) = (sum(0), sum(1));
                factors[place] = TokenFactors {
                    scale,
                    // At most 32 * 32,512 and so exact in binary32 before it is scaled.
                    sum: scale * (first + last) as f32,
                    offsets: if self.in_halves {
                        [-self.zero * first, -self.zero * last]
                    } else {
                        [-self.zero * (first + last), 0]
                    },
                };
            }
        }
    }
}

/// The largest magnitude; NaN where there is one.
#[inline(always)]
fn largest(input: &[f32; BLOCK_VALUES]) -> f32 {
    // Without the sign, floats are ordered as the integers of their bits, and NaN is the largest.
    let magnitude = |value: &f32| (value.to_bits() & 0x7fff_ffff).cast_signed();
    let largest = input.iter().map(magnitude).fold(0, i32::max);
    f32::from_bits(largest.cast_unsigned())
}

/// Rounds `input` to multiples of the scale that it returns: to what one byte holds, or, in a wide block,
/// to what two do.
///
/// Where a value is infinite or no number, the scale is no number: what has gone wrong shows in the
/// result, and is not rounded away.
#[inline(always)]
fn round(
    input: &[f32; BLOCK_VALUES],
    largest: f32,
    wide: bool,
    output: &mut [i16; BLOCK_VALUES],
) -> f32 {
    if !largest.is_finite() || largest < LARGEST_MIN {
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    let steps = if wide { STEPS } else { BYTE_STEPS };
    let inverse = steps / largest;
    for (output, value) in output.iter_mut().zip(input) {
        // The lowest bits of the sum are the integer's: `ROUNDER` has zeros there.
        let [low, high, ..] = (value * inverse + ROUNDER).to_bits().to_le_bytes();
        *output = i16::from_le_bytes([low, high]);
    }
    largest / steps
}

/// The upper bytes, rounded to the nearest, then what is left.
#[inline(always)]
fn bytes(integers: &[i16; BLOCK_VALUES]) -> Words {
    // At most 32,512 + 128, so there is no overflow.
    let upper = integers.map(|integer| ((integer + 128) >> 8).to_le_bytes()[0]);
    let lower = integers.map(|integer| integer.to_le_bytes()[0]);
    let (upper, lower) = (upper.as_chunks::<4>().0, lower.as_chunks::<4>().0);
    let mut words = [0; 2 * QUADS];
    for quad in 0..QUADS {
        words[quad] = i32::from_le_bytes(upper[quad]);
        words[QUADS + quad] = i32::from_le_bytes(lower[quad]);
    }
    Words(words)
}

/// Two integers of 16 bits in each word: every second activation of a quad.
#[inline(always)]
fn pairs(integers: &[i16; BLOCK_VALUES]) -> Words {
    let pair = |first: i16, second: i16| i32::from(first) & 0xffff | i32::from(second) << 16;
    let mut words = [0; 2 * QUADS];
    for (words, quad) in words.as_chunks_mut::<2>().0.iter_mut().zip(integers.as_chunks::<4>().0) {
        *words = [pair(quad[0], quad[2]), pair(quad[1], quad[3])];
    }
    Words(words)
}

/// Two integers of 16 bits in each word, as they come.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn columns(integers: &[i16; BLOCK_VALUES]) -> Words {
    let mut words = [0; 2 * QUADS];
    for (word, [first, second]) in words.iter_mut().zip(integers.as_chunks::<2>().0) {
        *word = i32::from(*first) & 0xffff | i32::from(*second) << 16;
    }
    Words(words)
}

#[cfg(test)]
mod tests;
