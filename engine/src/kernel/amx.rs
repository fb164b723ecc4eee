//! Products of matrices with AMX: eight tiles of 16 rows of 64 bytes, and units that multiply them.
//!
//! A tile of 16 tokens times a tile of weights makes the sums of 16 tokens and 16 rows in 16 cycles,
//! and either panel lies in memory as its tiles are loaded: 16 steps of a panel of bfloat16 are four
//! tiles side by side, and 8 quads of a block of bytes are one. So nothing is packed anew. All else,
//! products that are no matrices and those of other types, is left to [`Avx512`], which every processor
//! with AMX has as well.
//!
//! # Which products
//!
//! - In bfloat16 the unit sums 16 products of even columns, then 16 of odd ones, and adds both to what
//!   was there. VDPBF16PS has another order, so one token goes through tiles as many do: its bits must
//!   not depend on its company. A tile of one row costs no more than reading its weights does.
//! - Sums of integers are exact, so quantized weights have the same bits with AMX as with VNNI, and
//!   tiles are used where they are faster: with many tokens.
//!
//! The compiler does not know what is in a tile, and Rust's intrinsics for AMX are not stable. So what
//! must stay together is one block of assembly: from the configuration of tiles to their release.

mod dense;
#[cfg(all(test, target_os = "linux"))]
mod emulator;
mod limits;
mod quantized;
#[cfg(test)]
mod tests;

use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::avx512::Avx512;
use super::packed::dense::{self as packed_dense, Format, Tile};
use super::packed::quantized::tokens::TokenTile;
use super::packed::quantized::{Panel, Sums};
use crate::limits::Unit;

pub(super) use self::quantized::by_blocks;

/// Tokens from which on tiles multiply quantized weights: half a tile. The steps around the products
/// (unpacking, storing, scaling) are shared by all tokens of a tile, and VNNI has none of them to pay
/// for. It is a count of instructions, not a measurement.
const QUANTIZED_TOKENS_MIN: usize = 8;

/// Proof that this processor has AMX for bfloat16 and for bytes and [`Avx512`], and that the system
/// lets this process use it. So Sapphire Rapids (2023) and later, on Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amx(Avx512);

#[allow(unsafe_code, reason = "calls into functions that need AMX")]
impl Amx {
    /// Asks the processor, and then the system for its permission, which holds for all threads.
    pub(super) fn detect() -> Option<Self> {
        static IS_PERMITTED: OnceLock<bool> = OnceLock::new();
        let avx512 = Avx512::detect()?;
        let is_usable = has_tiles() && *IS_PERMITTED.get_or_init(ask_permission);
        is_usable.then_some(Self(avx512))
    }

    /// As [`Self::detect`], and where there is no AMX, an emulation of it in this process.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn emulated() -> Option<Self> {
        Self::detect().or_else(|| {
            let avx512 = Avx512::detect()?;
            emulator::install();
            Some(Self(avx512))
        })
    }

    /// The vectors, which this processor has as well.
    pub(super) const fn avx512(self) -> Avx512 {
        self.0
    }

    /// Adds the products of `tile` to the sums of its tokens.
    pub(super) fn multiply_tile(
        self,
        format: Format,
        tile: Tile<'_>,
        sums: &mut [packed_dense::Sums],
    ) {
        if format == Format::Bfloat16Tiles {
            // SAFETY: `self` exists only where the processor has the instructions, or they are
            // emulated, and where the system permits them.
            unsafe { dense::multiply(tile, sums) }
        } else {
            self.0.multiply_tile(format, tile, sums);
        }
    }

    /// One panel of quantized weights times one tile of tokens.
    pub(super) fn multiply_panel(self, panel: Panel<'_>, tile: TokenTile<'_>, sums: &mut [Sums]) {
        match tile {
            TokenTile::Integers(tile) if tile.tokens >= QUANTIZED_TOKENS_MIN => {
                self.0.multiply_integers(Some(self), panel, tile, sums);
            }
            TokenTile::Integers(_) | TokenTile::Floats { .. } => {
                self.0.multiply_panel(panel, tile, sums);
            }
        }
    }

    /// Products of one round of [`Self::work`]; `None` where the unit is that of the vectors.
    pub(super) const fn round_products(self, unit: Unit) -> Option<usize> {
        match unit {
            Unit::Binary32 => None,
            Unit::Bfloat16 => Some(limits::BFLOAT16_PRODUCTS),
            Unit::Integer8 => Some(limits::INTEGER_PRODUCTS),
        }
    }

    /// As [`multiply`](super::limits::multiply).
    pub(super) fn work(self, unit: Unit, rounds: usize) {
        match unit {
            Unit::Binary32 => self.0.work(unit, rounds),
            // SAFETY: as for `multiply_tile`.
            Unit::Bfloat16 => unsafe { limits::bfloat16(rounds) },
            // SAFETY: as for `multiply_tile`.
            Unit::Integer8 => unsafe { limits::integers(rounds) },
        }
    }
}

/// Whether the processor has the tiles that the kernels count on, and the system saves them.
///
/// Intel's manual, volume 1, chapters 13 and 18.
#[allow(unsafe_code, reason = "the register is read by an instruction that needs XSAVE")]
fn has_tiles() -> bool {
    /// AMX-BF16, AMX-TILE and AMX-INT8 in EDX of leaf 7.
    const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// Configurations and data of tiles in XCR0.
    const STATES: u64 = 1 << 17 | 1 << 18;
    if __cpuid_count(7, 0).edx & FEATURES != FEATURES {
        return false;
    }
    // SAFETY: AVX-512 has been detected, which the system saves by XSAVE.
    if unsafe { _xgetbv(0) } & STATES != STATES {
        return false;
    }
    // Palette 1: 8 tiles of 1 KiB, in 16 rows of 64 bytes.
    let palette = __cpuid_count(0x1d, 1);
    palette.eax == (1024 << 16) | (8 * 1024)
        && palette.ebx == (8 << 16) | 64
        && palette.ecx & 0xffff == 16
}

/// Asks Linux for the state of tiles, which is too large to be given unasked
/// (`Documentation/arch/x86/xstate.rst` of the kernel).
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "there is no safe way to this call of the system")]
fn ask_permission() -> bool {
    const REQUEST_PERMISSION: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and writes no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

/// Other systems are not known to give it.
#[cfg(not(target_os = "linux"))]
const fn ask_permission() -> bool {
    false
}

/// What a tile register is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Shape {
    rows: u8,
    row_bytes: u16,
}

impl Shape {
    /// A tile of `rows` rows, at most 16, of `row_bytes` bytes, at most 64.
    fn new(rows: usize, row_bytes: usize) -> Self {
        let fits = rows <= 16 && row_bytes <= 64;
        let (rows, row_bytes) = (u8::try_from(rows), u16::try_from(row_bytes));
        let (Ok(rows), Ok(row_bytes), true) = (rows, row_bytes, fits) else {
            unreachable!("a kernel asked for a tile that no register holds")
        };
        Self { rows, row_bytes }
    }
}

/// The shapes of the eight tiles, as LDTILECFG reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// A register of no rows is not used.
    fn new(shapes: [Shape; 8]) -> Self {
        let mut configuration =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (index, shape) in shapes.into_iter().enumerate().filter(|(_, shape)| shape.rows > 0) {
            configuration.row_bytes[index] = shape.row_bytes;
            configuration.rows[index] = shape.rows;
        }
        configuration
    }
}

const _: () = assert!(size_of::<Configuration>() == 64, "LDTILECFG reads 64 bytes");
