//! Loops at the limit of the units for tiles.

use std::arch::asm;

use super::{Configuration, Shape};

/// Products of one instruction in bfloat16: 16 tokens, 16 rows, 32 columns.
pub(super) const BFLOAT16_PRODUCTS: usize = 16 * 16 * 32;

/// Products of one instruction on bytes: 16 tokens, 16 rows, 64 columns.
pub(super) const INTEGER_PRODUCTS: usize = 16 * 16 * 64;

/// Six tiles of sums, since one waits 52 cycles for itself and another can start every 16.
macro_rules! rounds {
    ($instruction:literal, $rounds:expr) => {{
        let configuration = Configuration::new([Shape::new(16, 64); 8]);
        // SAFETY: the caller's promise; the tiles hold zeros and are released.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "2:",
                concat!($instruction, " tmm0, tmm6, tmm7"),
                "dec {rounds}",
                "jz 3f",
                concat!($instruction, " tmm1, tmm6, tmm7"),
                "dec {rounds}",
                "jz 3f",
                concat!($instruction, " tmm2, tmm6, tmm7"),
                "dec {rounds}",
                "jz 3f",
                concat!($instruction, " tmm3, tmm6, tmm7"),
                "dec {rounds}",
                "jz 3f",
                concat!($instruction, " tmm4, tmm6, tmm7"),
                "dec {rounds}",
                "jz 3f",
                concat!($instruction, " tmm5, tmm6, tmm7"),
                "dec {rounds}",
                "jnz 2b",
                "3:",
                "tilerelease",
                configuration = in(reg) &raw const configuration,
                rounds = inout(reg) $rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }};
}

/// `rounds` products of tiles of bfloat16.
///
/// # Safety
/// The processor has AMX, and the system permits it.
#[allow(unsafe_code, reason = "instructions that the compiler does not know")]
pub(super) unsafe fn bfloat16(rounds: usize) {
    rounds!("tdpbf16ps", rounds.max(1));
}

/// `rounds` products of tiles of bytes.
///
/// # Safety
/// The processor has AMX, and the system permits it.
#[allow(unsafe_code, reason = "instructions that the compiler does not know")]
pub(super) unsafe fn integers(rounds: usize) {
    rounds!("tdpbsud", rounds.max(1));
}
