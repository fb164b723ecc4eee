//! Activations in the words that the kernels multiply, tokens of a tile side by side.

use std::ops::Range;

use super::{Format, TILE_STEPS};
use crate::kernel::parallel::for_each;
use crate::kernel::{InstructionSet, PARALLEL_WORK_MIN};

/// The tokens of one multiplication.
pub(super) struct Inputs {
    format: Format,
    /// For each tile `[words of a row, tokens of the tile]`, where a group of words counts as one.
    words: Vec<u32>,
    tokens: usize,
    row_words: usize,
}

impl Inputs {
    /// `input` is `[tokens, columns]`.
    pub(super) fn prepare(
        set: InstructionSet,
        format: Format,
        input: &[f32],
        columns: usize,
    ) -> Self {
        let row_words = format.words_until(columns.div_ceil(format.step_columns()));
        let tokens = input.len() / columns;
        let mut inputs = Self { format, words: vec![0; tokens * row_words], tokens, row_words };
        let mut rest = &mut inputs.words[..];
        let mut tiles = Vec::with_capacity(format.tile_count(tokens));
        for range in format.tile_tokens(tokens) {
            let (words, after) = rest.split_at_mut(range.len() * row_words);
            tiles.push((words, &input[range.start * columns..range.end * columns]));
            rest = after;
        }
        let write = |(words, input): (&mut [u32], &[f32])| {
            write_tile(set, format, input, columns, words);
        };
        if input.len() < PARALLEL_WORK_MIN {
            tiles.into_iter().for_each(write);
        } else {
            for_each(tiles, write);
        }
        inputs
    }

    pub(super) const fn format(&self) -> Format {
        self.format
    }

    pub(super) const fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) const fn tile_count(&self) -> usize {
        self.format.tile_count(self.tokens)
    }

    /// The tokens of each tile, and their words.
    pub(super) fn tiles(&self) -> impl Iterator<Item = (Range<usize>, &[u32])> {
        self.format.tile_tokens(self.tokens).map(|tokens| {
            let words = tokens.start * self.row_words..tokens.end * self.row_words;
            (tokens, &self.words[words])
        })
    }
}

/// Writes the words of one tile. Words beyond the columns stay zeros.
fn write_tile(
    set: InstructionSet,
    format: Format,
    input: &[f32],
    columns: usize,
    words: &mut [u32],
) {
    let tokens = input.len() / columns;
    let mut pairs = Vec::new();
    for (token, input) in input.chunks_exact(columns).enumerate() {
        match format {
            Format::Binary32 | Format::Binary16 | Format::Bfloat16 => {
                let places = words[token..].iter_mut().step_by(tokens);
                places.zip(input).for_each(|(place, value)| *place = value.to_bits());
            }
            Format::Bfloat16Pairs => {
                pairs.resize(columns.div_ceil(2), 0);
                round_to_pairs(set, input, &mut pairs);
                let places = words[token..].iter_mut().step_by(tokens);
                places.zip(&pairs).for_each(|(place, &pair)| *place = pair);
            }
            Format::Bfloat16Tiles => {
                pairs.resize(columns.div_ceil(2), 0);
                round_to_pairs(set, input, &mut pairs);
                let places = words.as_chunks_mut::<TILE_STEPS>().0[token..].iter_mut();
                for (place, pairs) in places.step_by(tokens).zip(pairs.chunks(TILE_STEPS)) {
                    place[..pairs.len()].copy_from_slice(pairs);
                }
            }
        }
    }
}

/// Rounds `input` to bfloat16, two a word.
fn round_to_pairs(set: InstructionSet, input: &[f32], pairs: &mut [u32]) {
    match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(avx512) => avx512.round_pairs(input, pairs),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(_) => round_pairs(input, pairs),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx(amx) => amx.avx512().round_pairs(input, pairs),
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(_) => round_pairs(input, pairs),
        InstructionSet::Portable => round_pairs(input, pairs),
    }
}

/// As [`round_to_pairs`], for the compiler to make vectors of.
#[inline(always)]
pub(in crate::kernel) fn round_pairs(input: &[f32], pairs: &mut [u32]) {
    let (whole, rest) = input.as_chunks::<2>();
    for (pair, &[first, second]) in pairs.iter_mut().zip(whole) {
        *pair = bfloat16(first) | bfloat16(second) << 16;
    }
    if let (&[last], Some(pair)) = (rest, pairs.last_mut()) {
        *pair = bfloat16(last);
    }
}

/// `value` rounded to the nearest bfloat16, ties to even; what is no number stays so.
#[inline(always)]
const fn bfloat16(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        // Quiet, and not infinite, whatever the lower half was.
        bits >> 16 | 0x40
    } else {
        (bits + 0x7fff + (bits >> 16 & 1)) >> 16
    }
}
