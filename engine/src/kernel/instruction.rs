//! Which instructions the inner loops may use.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
pub use super::amx::Amx;
#[cfg(target_arch = "x86_64")]
pub use super::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use super::neon::Neon;
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
    /// AVX-512 with BF16 and VNNI, beside AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// AMX for bfloat16 and for bytes, beside AVX-512.
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    /// NEON, with SDOT or without.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl InstructionSet {
    /// The best set that this machine has, looked up once.
    #[must_use]
    pub fn detected() -> Self {
        static DETECTED: OnceLock<InstructionSet> = OnceLock::new();
        *DETECTED.get_or_init(|| *Self::found().last().expect("every machine has the portable set"))
    }

    /// All sets that this machine can run, the best one last. Tests of the kernels emulate AMX.
    #[must_use]
    pub fn all() -> Vec<Self> {
        #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
        let emulated = Amx::emulated().map(Self::Amx);
        #[cfg(not(all(test, target_arch = "x86_64", target_os = "linux")))]
        let emulated = None;
        let mut all = Self::found();
        all.extend(emulated.filter(|set| !all.contains(set)));
        all
    }

    /// All sets that this machine has, the best one last.
    fn found() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = [
            Avx2::detect().map(Self::Avx2),
            Avx512::detect().map(Self::Avx512),
            Amx::detect().map(Self::Amx),
        ];
        #[cfg(target_arch = "aarch64")]
        let wide = [Neon::detect(), Neon::detect_with_products()].map(|neon| neon.map(Self::Neon));
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let wide = [None];
        std::iter::once(Self::Portable).chain(wide.into_iter().flatten()).collect()
    }
}
