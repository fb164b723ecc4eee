//! What the process has allocated and freed, which the system does not get back by itself.

/// Gives memory that was freed back to the system.
///
/// Allocators keep what is freed, and those that cut it into pieces of all sizes keep more the longer
/// they run: after a long prompt a server would hold its buffers, and the pages of sessions that have
/// ended, for as long as it lives. It takes some milliseconds, in which other threads may have to
/// wait for memory, so it is nothing to do in each pass.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code, reason = "the standard library does not speak to its allocator")]
        // SAFETY: malloc_trim(3) may be called at any time by any thread; it takes the allocator's
        // own locks, and touches nothing that is allocated.
        let _whether_there_was_any = unsafe { libc::malloc_trim(0) };
    }
}

/// Lets all threads allocate from one heap, which keeps what is freed until [`give_back`], from now on;
/// nothing else of the process may run yet.
///
/// Each thread has a heap of its own otherwise. Of those `give_back` cannot free the ends: what a thread
/// once took for loading stays with it. And their parts go back to the system whenever they are empty: in
/// a prompt of 512 tokens a block of a small model takes and frees some 50 MB, and what comes back page by
/// page, each cleared first, costs a tenth of the prompt's time. Threads that compute allocate little,
/// so they seldom wait for each other.
pub fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // At the end of the heap it keeps more than a prompt computes in; and from 32 MiB on, the most that
        // can be said, pieces are memory of their own, which goes back when it is freed.
        let settings = [
            (libc::M_ARENA_MAX, 1),
            (libc::M_TRIM_THRESHOLD, 256 << 20),
            (libc::M_MMAP_THRESHOLD, 32 << 20),
        ];
        for (setting, value) in settings {
            #[allow(unsafe_code, reason = "the standard library does not speak to its allocator")]
            // SAFETY: mallopt(3) takes the allocator's own lock, and touches nothing that is allocated.
            let _whether_it_was_taken = unsafe { libc::mallopt(setting, value) };
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("proc(5) is mounted");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")).map(str::parse::<u64>);
        number.expect("a number of kB").expect("a number of kB") * 1024
    }

    #[test]
    fn what_was_freed_between_what_is_held_goes_back() {
        // Too small to be maps of their own, and every other one stays.
        let mut pieces: Vec<_> = (0..4_000).map(|_| Some(vec![1u8; 64 << 10])).collect();
        pieces.iter_mut().step_by(2).for_each(|piece| *piece = None);
        let before = resident_bytes();
        give_back();
        let after = resident_bytes();
        assert!(before.saturating_sub(after) > 100 << 20, "{before} and {after}");
        assert!(pieces.iter().flatten().all(|piece| piece[5_000] == 1));
    }
}
