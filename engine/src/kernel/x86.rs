//! The inner loops with AVX2, FMA and F16C, and with AVX-VNNI where there is one.
//!
//! Everything below is safe Rust in functions that ask for these instructions, but for three things:
//! the loads (`load`), which read references to arrays; VNNI's product (`products`), which needs a value of
//! [`Vnni`]; and the calls into those functions, which only a value of [`Avx2`] can make.

mod attention;
mod limits;
mod load;
mod packed_dense;
mod packed_quantized;
mod products;
mod unpack;

use std::ops::Range;

use self::products::Vnni;
use super::attention::{PageHead, Row, Widening};
use super::packed::dense::{self as panels, Format, Tile};
use super::packed::quantized::tokens::{Prepared, TokenTile, Unprepared};
use super::packed::quantized::{self as packed, Sums};
use super::{portable, swiglu};
use crate::limits::Unit;

/// Proof that this processor has AVX2, FMA and F16C, and whether it has AVX-VNNI: there is no other way to
/// a value than to ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2 {
    vnni: Option<Vnni>,
}

#[allow(unsafe_code, reason = "calls into functions that need AVX2, FMA and F16C")]
impl Avx2 {
    /// AVX2, FMA and F16C alone.
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Self { vnni: None })
    }

    /// With AVX-VNNI.
    pub(super) fn detect_with_vnni() -> Option<Self> {
        Self::detect()?;
        Vnni::detect().map(|vnni| Self { vnni: Some(vnni) })
    }

    /// Whether products of bytes are summed by AVX-VNNI.
    pub(super) const fn has_vnni(self) -> bool {
        self.vnni.is_some()
    }

    /// Adds the products of `tile` to the sums of its tokens.
    pub(super) fn multiply_tile(self, format: Format, tile: Tile<'_>, sums: &mut [panels::Sums]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { packed_dense::multiply(format, tile, sums) }
    }

    /// As [`fold`](super::limits::fold).
    pub(super) fn fold(self, bytes: &[u8]) -> u64 {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { limits::fold(bytes) }
    }

    /// As [`multiply`](super::limits::multiply).
    pub(super) fn work(self, unit: Unit, rounds: usize) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { limits::work(self.vnni, unit, rounds) }
    }

    /// One panel of quantized weights times one tile of tokens.
    pub(super) fn multiply_panel(
        self,
        panel: packed::Panel<'_>,
        tile: TokenTile<'_>,
        sums: &mut [Sums],
    ) {
        match tile {
            // SAFETY: `self` exists only where the processor has the instructions.
            TokenTile::Floats { values, columns } => unsafe {
                exactly(panel, values, columns, sums);
            },
            // SAFETY: as above.
            TokenTile::Integers(tile) => unsafe {
                packed_quantized::multiply(self.vnni, panel, tile, sums);
            },
        }
    }

    /// As [`Unprepared::bytes`], or [`Unprepared::pairs`] for weights of 8 bits without AVX-VNNI.
    pub(super) fn prepare_tokens(self, input: Unprepared<'_>, tile: Prepared<'_>) {
        let in_pairs = input.is_for_bytes() && !self.has_vnni();
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { prepare_tokens(input, tile, in_pairs) }
    }

    /// As [`swiglu::gate`].
    pub(super) fn gate(self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { gate_values(gate, up) }
    }

    /// As [`Widening::portable`].
    pub(super) fn widen(self, from: Widening<'_>, room: &mut [f32]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { widen(from, room) }
    }

    /// Lets some queries attend to the places in `slots` of one page; a head fills registers.
    pub(super) fn attend(self, page: PageHead<'_>, slots: Range<usize>, rows: &mut [Row<'_>]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { attention::attend(page, &slots, rows) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(from: Widening<'_>, room: &mut [f32]) {
    from.portable(room);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn gate_values(gate: &mut [f32], up: &[f32]) {
    swiglu::gate(gate, up);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn exactly(panel: packed::Panel<'_>, values: &[f32], columns: usize, sums: &mut [Sums]) {
    portable::packed_quantized::exactly(panel, values, columns, sums);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn prepare_tokens(input: Unprepared<'_>, tile: Prepared<'_>, in_pairs: bool) {
    if in_pairs { input.pairs(tile) } else { input.bytes(tile) }
}
