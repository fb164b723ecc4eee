//! The inner loops with AVX-512: its foundation, BW, DQ, VL, BF16 and VNNI.

mod load;
mod panel;
mod products;
mod unpack;

use super::packed::quantized::tokens::{TokenFactors, TokenTile, Unprepared, Words};
use super::packed::quantized::{Panel, Sums};
use super::portable;
use super::x86::Avx2;

/// Proof that this processor has AVX-512 with BF16 and VNNI, and all of [`Avx2`]: there is no other
/// way to a value than to ask it. So Cooper Lake and Sapphire Rapids (2020, 2023), Zen 4 (2022) and
/// later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512(Avx2);

#[allow(unsafe_code, reason = "calls into functions that need AVX-512")]
impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vnni");
        if has_all { Avx2::detect().map(Self) } else { None }
    }

    /// The narrower instructions, which this processor has as well.
    pub(super) const fn avx2(self) -> Avx2 {
        self.0
    }
    /// One panel of quantized weights times one tile of tokens.
    pub(super) fn multiply_panel(self, panel: Panel<'_>, tile: TokenTile<'_>, sums: &mut [Sums]) {
        match tile {
            // SAFETY: `self` exists only where the processor has the instructions.
            TokenTile::Floats { values, columns } => unsafe {
                exactly(panel, values, columns, sums);
            },
            // SAFETY: as above.
            TokenTile::Integers(tile) => unsafe { panel::multiply(panel, tile, sums) },
        }
    }

    /// As [`Unprepared::bytes`].
    pub(super) fn prepare_tokens(
        self,
        tile: Unprepared<'_>,
        words: &mut [Words],
        factors: &mut [TokenFactors],
    ) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { prepare_tokens(tile, words, factors) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
fn exactly(panel: Panel<'_>, values: &[f32], columns: usize, sums: &mut [Sums]) {
    portable::panel::exactly(panel, values, columns, sums);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn prepare_tokens(tile: Unprepared<'_>, words: &mut [Words], factors: &mut [TokenFactors]) {
    tile.bytes(words, factors);
}
