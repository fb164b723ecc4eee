//! What memory there is for this process.

use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

/// Memory in bytes, of the machine or of the part of it that this process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// What could be taken now.
    pub(crate) available: u64,
    /// What there is in all.
    pub(crate) total: u64,
}

/// What the system lets a group of processes have, such as those of a container or of a unit with
/// `MemoryMax=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    /// What of that is processes' own. Pages of files count against the limit too, and go as soon as there
    /// is need: those of a model are far more than what is left then.
    taken: u64,
}

impl Memory {
    /// What there is now.
    ///
    /// # Errors
    /// Where the system does not say.
    pub(crate) fn now() -> Result<Self, sysinfo::Error> {
        let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let mut system = System::new_with_specifics(kind)?;
        let machine = Self { available: system.available_memory(), total: system.total_memory() };
        Ok(machine.within(limit(&mut system)))
    }

    fn within(self, limit: Option<Limit>) -> Self {
        let Some(Limit { bytes, taken }) = limit else { return self };
        Self {
            available: self.available.min(bytes.saturating_sub(taken)),
            total: self.total.min(bytes),
        }
    }
}

/// The limit that holds for this process; none where all of the machine is its.
fn limit(system: &mut System) -> Option<Limit> {
    let own = Pid::from_u32(std::process::id());
    let kind = ProcessRefreshKind::nothing();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, kind);
    let limits = system.process(own)?.cgroup_limits()?;
    Some(Limit { bytes: limits.total_memory, taken: limits.rss })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Memory = Memory { available: 24_000, total: 32_000 };

    fn within(bytes: u64, taken: u64) -> Memory {
        MACHINE.within(Some(Limit { bytes, taken }))
    }

    #[test]
    fn a_process_has_what_its_limit_leaves_and_no_more_than_the_machine_has() {
        assert_eq!(MACHINE.within(None), MACHINE);
        assert_eq!(within(4_000, 1_000), Memory { available: 3_000, total: 4_000 });
        assert_eq!(within(30_000, 1_000), Memory { available: 24_000, total: 30_000 });
        assert_eq!(within(64_000, 1_000), MACHINE);
        assert_eq!(within(4_000, 5_000), Memory { available: 0, total: 4_000 });
    }

    #[test]
    fn the_system_says_what_there_is() {
        let Memory { available, total } = Memory::now().unwrap();
        assert!(0 < available && available <= total, "{available} of {total}");
    }
}
