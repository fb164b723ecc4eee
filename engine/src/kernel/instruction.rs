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
    /// AVX2 with FMA and F16C: x86-64-v3, so Haswell (2013), Zen (2017) and later. With AVX-VNNI or
    /// without.
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

/// The set that kernels use, since one of them has asked for it or somebody has chosen it.
static IN_USE: OnceLock<InstructionSet> = OnceLock::new();

/// Kernels cannot use the instructions that were chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseInstructionsError {
    /// This machine has no such set.
    #[error("this machine has no instructions {name:?}: it has {available}")]
    Missing {
        /// What was asked for.
        name: String,
        /// What there is instead, the best one last.
        available: String,
    },
    /// Kernels have used another set already, and the bits of a session must not change.
    #[error("instructions are chosen before anything is computed: {in_use} are in use")]
    InUse {
        /// The set that they use.
        in_use: &'static str,
    },
}

impl InstructionSet {
    /// The set that kernels use: the best that this machine has, looked up once, or another that was
    /// chosen.
    #[must_use]
    pub fn detected() -> Self {
        *IN_USE.get_or_init(|| *Self::found().last().expect("every machine has the portable set"))
    }

    /// Lets all kernels of this process use the set that is called `name`, although there may be a
    /// better one.
    ///
    /// # Errors
    /// Where this machine has no such set, or kernels use another already.
    pub fn choose(name: &str) -> Result<(), ChooseInstructionsError> {
        let found = Self::found();
        let Some(&chosen) = found.iter().find(|set| set.name() == name) else {
            let available = found.iter().map(|set| set.name()).collect::<Vec<_>>().join(", ");
            return Err(ChooseInstructionsError::Missing { name: name.to_owned(), available });
        };
        let in_use = *IN_USE.get_or_init(|| chosen);
        if in_use == chosen {
            Ok(())
        } else {
            Err(ChooseInstructionsError::InUse { in_use: in_use.name() })
        }
    }

    /// What people call the set.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => {
                if avx2.has_vnni() {
                    "avx2-vnni"
                } else {
                    "avx2"
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => "amx",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(neon) => {
                if neon.has_products() {
                    "neon-sdot"
                } else {
                    "neon"
                }
            }
        }
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
            Avx2::detect_with_vnni().map(Self::Avx2),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_of_this_machine_can_be_chosen_until_one_is_in_use() {
        let in_use = InstructionSet::detected();
        assert_eq!(InstructionSet::choose(in_use.name()), Ok(()));
        for set in InstructionSet::found().into_iter().filter(|set| *set != in_use) {
            let refused = Err(ChooseInstructionsError::InUse { in_use: in_use.name() });
            assert_eq!(InstructionSet::choose(set.name()), refused);
        }
        assert_eq!(InstructionSet::detected(), in_use);
        let error = InstructionSet::choose("mmx").unwrap_err().to_string();
        assert!(error.contains("\"mmx\": it has portable"), "{error}");
    }
}
