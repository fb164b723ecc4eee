//! Which instructions the inner loops may use.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
pub use super::x86::Avx2;

/// The instructions that a kernel uses; the results of two sets differ in rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// What every machine of the target has.
    Portable,
    /// AVX2 with FMA and F16C: x86-64-v3, so Haswell (2013), Zen (2017) and later.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

impl InstructionSet {
    /// The best set that this machine has, looked up once.
    #[must_use]
    pub fn detected() -> Self {
        static DETECTED: OnceLock<InstructionSet> = OnceLock::new();
        *DETECTED.get_or_init(Self::detect)
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        Avx2::detect().map_or(Self::Portable, Self::Avx2)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Portable
    }
}
