//! The inner loops with AVX-512: its foundation, BW, DQ, VL, BF16 and VNNI.

mod attention;
mod dense;
mod limits;
pub(super) mod load;
mod products;
mod quantized;
mod unpack;

use std::ops::Range;

pub(super) use self::quantized::Block;
use super::amx::Amx;
use super::attention::{PageHead, Row};
use super::packed::dense::{self as packed_dense, Format, Tile, round_pairs};
use super::packed::quantized::tokens::{IntegerTile, Prepared, TokenTile, Unprepared};
use super::packed::quantized::{Panel, Sums};
use super::x86::Avx2;
use super::{portable, swiglu};
use crate::limits::Unit;

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

    /// Lets some queries attend to the places in `slots` of one page; a head fills registers of
    /// [`Avx2`], which take it where it does not fill wider ones.
    pub(super) fn attend(self, page: PageHead<'_>, slots: Range<usize>, rows: &mut [Row<'_>]) {
        if !attention::fills(rows) {
            return self.0.attend(page, slots, rows);
        }
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { attention::attend(page, &slots, rows) }
    }

    /// As [`swiglu::gate`].
    pub(super) fn gate(self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { gate_values(gate, up) }
    }

    /// Adds the products of `tile` to the sums of its tokens.
    pub(super) fn multiply_tile(
        self,
        format: Format,
        tile: Tile<'_>,
        sums: &mut [packed_dense::Sums],
    ) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { dense::multiply(format, tile, sums) }
    }

    /// As [`fold`](super::limits::fold).
    pub(super) fn fold(self, bytes: &[u8]) -> u64 {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { limits::fold(bytes) }
    }

    /// As [`multiply`](super::limits::multiply).
    pub(super) fn work(self, unit: Unit, rounds: usize) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { limits::work(unit, rounds) }
    }

    /// Rounds `input` to bfloat16, two a word.
    pub(super) fn round_pairs(self, input: &[f32], pairs: &mut [u32]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { rounded_pairs(input, pairs) }
    }

    /// One panel of quantized weights times one tile of tokens.
    pub(super) fn multiply_panel(self, panel: Panel<'_>, tile: TokenTile<'_>, sums: &mut [Sums]) {
        match tile {
            // SAFETY: `self` exists only where the processor has the instructions.
            TokenTile::Floats { values, columns } => unsafe {
                exactly(panel, values, columns, sums);
            },
            TokenTile::Integers(tile) => self.multiply_integers(None, panel, tile, sums),
        }
    }

    /// As [`Self::multiply_panel`], and the products are those of tiles where there are any.
    pub(super) fn multiply_integers(
        self,
        amx: Option<Amx>,
        panel: Panel<'_>,
        tile: IntegerTile<'_>,
        sums: &mut [Sums],
    ) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { quantized::multiply(amx, panel, tile, sums) }
    }

    /// As [`Unprepared::bytes`].
    pub(super) fn prepare_tokens(self, input: Unprepared<'_>, tile: Prepared<'_>) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { prepare_tokens(input, tile) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn gate_values(gate: &mut [f32], up: &[f32]) {
    swiglu::gate(gate, up);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn rounded_pairs(input: &[f32], pairs: &mut [u32]) {
    round_pairs(input, pairs);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
fn exactly(panel: Panel<'_>, values: &[f32], columns: usize, sums: &mut [Sums]) {
    portable::packed_quantized::exactly(panel, values, columns, sums);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn prepare_tokens(input: Unprepared<'_>, tile: Prepared<'_>) {
    input.bytes(tile);
}
