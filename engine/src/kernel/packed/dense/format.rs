//! How weights are written, and how inputs lie for the kernels.

use std::ops::Range;

use umbel_shard::WeightType;

use super::PANEL_ROWS;

/// The most tokens that share the weights in a kernel's registers. AVX2 takes 16 rows at a time with
/// them: 12 of its 16 registers.
const TILE_TOKENS: usize = 6;

/// The most tokens that share tiles of weights in AMX: two tiles.
pub(super) const AMX_TOKENS: usize = 32;

/// Steps of a tile of AMX: its rows of weights.
pub(in crate::kernel) const TILE_STEPS: usize = 16;

/// What a kernel multiplies: how the weights are written, and what the words of its inputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only x86-64 has units for bfloat16 that we use")
)]
pub(in crate::kernel) enum Format {
    /// IEEE 754 binary32; a word is a binary32.
    Binary32,
    /// IEEE 754 binary16; a word is a binary32.
    Binary16,
    /// Two columns of bfloat16 a step, each with a word in binary32.
    Bfloat16,
    /// Two columns of bfloat16 a step, with one word of two bfloat16, the first in the lower half.
    Bfloat16Pairs,
    /// The same, where a token has the words of [`TILE_STEPS`] steps side by side, the last ones filled
    /// up with zeros: a row of a tile of AMX.
    Bfloat16Tiles,
}

impl Format {
    pub(super) fn of(kind: WeightType) -> Option<Self> {
        match kind {
            WeightType::F32 => Some(Self::Binary32),
            WeightType::F16 => Some(Self::Binary16),
            WeightType::BF16 => Some(Self::Bfloat16),
            WeightType::Q4_0
            | WeightType::Q4_1
            | WeightType::Q5_0
            | WeightType::Q5_1
            | WeightType::Q8_0
            | WeightType::Q4K
            | WeightType::Q5K
            | WeightType::Q6K => None,
        }
    }

    /// Columns of a step.
    pub(super) const fn step_columns(self) -> usize {
        match self {
            Self::Binary32 | Self::Binary16 => 1,
            Self::Bfloat16 | Self::Bfloat16Pairs | Self::Bfloat16Tiles => 2,
        }
    }

    /// Words of the input for a step.
    pub(super) const fn step_words(self) -> usize {
        match self {
            Self::Binary32 | Self::Binary16 | Self::Bfloat16Pairs | Self::Bfloat16Tiles => 1,
            Self::Bfloat16 => 2,
        }
    }

    /// Bytes of a row in a step.
    pub(super) const fn row_bytes(self) -> usize {
        match self {
            Self::Binary16 => 2,
            Self::Binary32 | Self::Bfloat16 | Self::Bfloat16Pairs | Self::Bfloat16Tiles => 4,
        }
    }

    /// Words of a token before those of step `steps`, in whole tiles where inputs come in tiles.
    pub(super) const fn words_until(self, steps: usize) -> usize {
        let words = steps * self.step_words();
        match self {
            Self::Bfloat16Tiles => words.next_multiple_of(TILE_STEPS),
            Self::Binary32 | Self::Binary16 | Self::Bfloat16 | Self::Bfloat16Pairs => words,
        }
    }

    pub(super) const fn tile_count(self, tokens: usize) -> usize {
        match self {
            Self::Bfloat16Tiles => tokens.div_ceil(AMX_TOKENS),
            Self::Binary32 | Self::Binary16 | Self::Bfloat16 | Self::Bfloat16Pairs => {
                tokens.div_ceil(TILE_TOKENS)
            }
        }
    }

    /// The tokens of each tile: as few tiles as may be, and all of about one size, but those of AMX are
    /// full before the last.
    pub(super) fn tile_tokens(self, tokens: usize) -> impl Iterator<Item = Range<usize>> {
        let count = self.tile_count(tokens);
        let start = move |tile: usize| match self {
            Self::Bfloat16Tiles => tokens.min(tile * AMX_TOKENS),
            Self::Binary32 | Self::Binary16 | Self::Bfloat16 | Self::Bfloat16Pairs => {
                tile * tokens / count
            }
        };
        (0..count).map(move |tile| start(tile)..start(tile + 1))
    }

    /// Bytes of a step.
    pub(super) const fn step_bytes(self) -> usize {
        PANEL_ROWS * self.row_bytes()
    }
}
