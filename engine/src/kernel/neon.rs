//! The inner loops with NEON, which all processors of the target have (ARMv8-A), and with SDOT where
//! there is one (ARMv8.2 and later: Cortex-A55 and A76, Neoverse N1, Apple's M1).
//!
//! Everything below is safe Rust in functions that ask for NEON, but for the loads (`load`), which read
//! references to arrays, for SDOT, which needs a value of `Products`, and for the calls into those
//! functions, which only a value of [`Neon`] can make. Registers hold 4 values, and there are 32.
//!
//! What is computed value by value (`swiglu`, `normalize`, `rope`, roundings) and weights as their file
//! has them are left to the portable loops: the compiler makes them with NEON already.

mod attention;
mod limits;
mod load;
mod packed_dense;
mod packed_quantized;
mod products;
mod unpack;

use std::arch::is_aarch64_feature_detected;
use std::ops::Range;

use self::products::Products;
use super::attention::{PageHead, Row};
use super::packed::dense::{self as panels, Format, Tile};
use super::packed::quantized::tokens::{Prepared, TokenTile, Unprepared};
use super::packed::quantized::{self as packed, Sums};
use super::portable;
use crate::limits::Unit;

#[cfg(target_endian = "big")]
compile_error!("the lanes of a register are taken to be in the order of their bytes in memory");

/// Proof that this processor has NEON, and whether it has SDOT: there is no other way to a value than
/// to ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neon {
    products: Option<Products>,
}

#[allow(unsafe_code, reason = "calls into functions that need NEON")]
impl Neon {
    /// NEON alone.
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self { products: None })
    }

    /// NEON with SDOT.
    pub(super) fn detect_with_products() -> Option<Self> {
        Self::detect()?;
        Products::detect().map(|products| Self { products: Some(products) })
    }

    /// Whether products of bytes are summed by SDOT.
    pub(super) const fn has_products(self) -> bool {
        self.products.is_some()
    }

    /// Adds the products of `tile` to the sums of its tokens.
    pub(super) fn multiply_tile(self, format: Format, tile: Tile<'_>, sums: &mut [panels::Sums]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { packed_dense::multiply(format, tile, sums) }
    }

    /// Products of one round of [`Self::work`].
    pub(super) const fn round_products(self, unit: Unit) -> Option<usize> {
        limits::round_products(self.products, unit)
    }

    /// As [`multiply`](super::limits::multiply).
    pub(super) fn work(self, unit: Unit, rounds: usize) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { limits::work(self.products, unit, rounds) }
    }

    /// One panel of quantized weights times one tile of tokens.
    pub(super) fn multiply_panel(
        self,
        panel: packed::Panel<'_>,
        tile: TokenTile<'_>,
        sums: &mut [Sums],
    ) {
        match tile {
            TokenTile::Floats { values, columns } => {
                portable::packed_quantized::exactly(panel, values, columns, sums);
            }
            // SAFETY: `self` exists only where the processor has the instructions.
            TokenTile::Integers(tile) => unsafe {
                packed_quantized::multiply(self.products, panel, tile, sums);
            },
        }
    }

    /// As [`Unprepared::bytes`] for SDOT, and as [`Unprepared::columns`] without it.
    pub(super) fn prepare_tokens(self, input: Unprepared<'_>, tile: Prepared<'_>) {
        if self.has_products() {
            input.bytes(tile);
        } else {
            input.columns(tile);
        }
    }

    /// Lets some queries attend to the places in `slots` of one page; a head fills registers.
    pub(super) fn attend(self, page: PageHead<'_>, slots: Range<usize>, rows: &mut [Row<'_>]) {
        // SAFETY: `self` exists only where the processor has the instructions.
        unsafe { attention::attend(page, &slots, rows) }
    }
}
