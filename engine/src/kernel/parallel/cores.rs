//! Which core each thread of a pool runs on.
//!
//! A system whose cores are all in use does not look for an idle one when a thread wakes: it wakes
//! where it last ran, or where the one runs that wakes it. Then a pass of a few milliseconds is computed
//! by one core while another is idle, and over before the system makes up for it. So where a pool has a
//! thread for each core, the caller of a section stays where the system has it, and each of the others
//! gets one of the other cores.

use std::sync::{Mutex, OnceLock};

/// Threads for which there is a core each, with that of the caller.
#[derive(Debug)]
pub(super) struct Cores {
    /// The cores that this process may use.
    numbers: Vec<usize>,
    /// All threads but the caller, once they run.
    threads: Vec<OnceLock<system::Thread>>,
    /// Where the caller was when the others were placed.
    caller: Mutex<Caller>,
}

/// Where a caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// There has been none, or not all of the others ran yet.
    Unknown,
    /// On this core.
    On(usize),
    /// It does not matter: somebody else has placed one of the others, and knows better.
    Ignored,
}

impl Cores {
    /// For a caller and others, `threads` in all; `None` where that is not one for each core that the
    /// thread that asks may use.
    pub(super) fn for_threads(threads: usize) -> Option<Self> {
        let numbers = system::allowed();
        (threads > 1 && numbers.len() == threads).then(|| Self {
            numbers,
            threads: (1..threads).map(|_| OnceLock::new()).collect(),
            caller: Mutex::new(Caller::Unknown),
        })
    }

    /// The thread that this is called on is the one of number `index`, from one: the caller is 0.
    pub(super) fn join(&self, index: usize) {
        // A thread joins once.
        let _is_new = self.threads[index - 1].set(system::thread());
    }

    /// Gives each of the others a core that the thread that this is called on does not have now.
    pub(super) fn place(&self) {
        // Who is being placed by another caller is not to be moved away again at once.
        let Ok(mut caller) = self.caller.try_lock() else {
            return;
        };
        let core = system::core();
        if *caller != Caller::On(core) && *caller != Caller::Ignored {
            *caller = self.place_around(*caller, core);
        }
    }

    /// Moves the others from around a caller who was there before to around one on that core; where that
    /// is then, as far as they are concerned.
    fn place_around(&self, before: Caller, core: usize) -> Caller {
        let Some(wanted) = self.around(core) else {
            return Caller::Ignored;
        };
        let had = match before {
            Caller::On(core) => self.around(core),
            Caller::Unknown | Caller::Ignored => None,
        };
        let mut had = had.into_iter().flatten();
        for (thread, wanted) in self.threads.iter().zip(wanted) {
            let had = had.next();
            let Some(&thread) = thread.get() else {
                return Caller::Unknown;
            };
            let was_moved = had.is_some_and(|had| !system::is_placed(thread, had));
            if was_moved || !system::place(thread, wanted) {
                return Caller::Ignored;
            }
        }
        Caller::On(core)
    }

    /// The cores behind that one, and then those before it; `None` where it is none of them.
    fn around(&self, core: usize) -> Option<impl Iterator<Item = usize>> {
        let own = self.numbers.iter().position(|&number| number == core)?;
        let (before, after) = (&self.numbers[..own], &self.numbers[own + 1..]);
        Some(after.iter().chain(before).copied())
    }
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

    pub(super) type Thread = rustix::thread::Pid;

    pub(super) fn thread() -> Thread {
        gettid()
    }

    /// The core that runs this thread.
    pub(super) fn core() -> usize {
        sched_getcpu()
    }

    /// The cores that may run it.
    pub(super) fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
    }

    /// Has a thread run on one core alone; whether the system did.
    pub(super) fn place(thread: Thread, core: usize) -> bool {
        sched_setaffinity(Some(thread), &only(core)).is_ok()
    }

    /// Whether a thread runs on that core alone.
    pub(super) fn is_placed(thread: Thread, core: usize) -> bool {
        sched_getaffinity(Some(thread)).is_ok_and(|set| set == only(core))
    }

    fn only(core: usize) -> CpuSet {
        let mut set = CpuSet::new();
        set.set(core);
        set
    }
}

/// Where no thread can be placed.
#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) type Thread = ();

    pub(super) fn thread() {}

    pub(super) fn core() -> usize {
        0
    }

    pub(super) fn allowed() -> Vec<usize> {
        Vec::new()
    }

    pub(super) fn place(_: Thread, _: usize) -> bool {
        false
    }

    pub(super) fn is_placed(_: Thread, _: usize) -> bool {
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::thread;

    use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

    use super::*;

    fn set(cores: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cores.iter().for_each(|&core| set.set(core));
        set
    }

    /// Runs `work` on a thread that may use `cores`, and on no others of this machine.
    fn on<R: Send>(cores: &[usize], work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let bound = scope.spawn(|| {
                sched_setaffinity(None, &set(cores)).expect("a thread may leave cores that it has");
                work()
            });
            bound.join().expect("the work does not panic")
        })
    }

    #[test]
    fn the_others_have_the_cores_that_the_caller_does_not_have() {
        let all = system::allowed();
        let [first, .., last] = *all else {
            return;
        };
        let cores = Cores::for_threads(all.len()).unwrap();
        let (tell, others) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let (go, mut waiting) = (thread::park, Vec::new());
            for index in 1..all.len() {
                let (cores, tell) = (&cores, tell.clone());
                waiting.push(scope.spawn(move || {
                    cores.join(index);
                    tell.send(gettid()).unwrap();
                    go();
                }));
            }
            let others: Vec<_> = others.iter().take(waiting.len()).collect();
            let placed = || -> Vec<_> {
                others.iter().map(|&other| sched_getaffinity(Some(other)).unwrap()).collect()
            };
            for core in [first, last, first] {
                on(&[core], || cores.place());
                let mut left: Vec<_> = all.iter().filter(|&&other| other != core).collect();
                for other in placed() {
                    left.retain(|&&core| other != set(&[core]));
                }
                assert!(left.is_empty(), "nobody is on {left:?}");
            }
            // Somebody else places one of them.
            sched_setaffinity(Some(others[0]), &set(&all)).unwrap();
            let theirs = placed();
            for core in [last, first] {
                on(&[core], || cores.place());
                assert_eq!(placed(), theirs);
            }
            waiting.iter().for_each(|other| other.thread().unpark());
        });
    }

    #[test]
    fn threads_are_placed_only_where_there_is_a_core_for_each() {
        let all = system::allowed();
        assert_eq!(Cores::for_threads(all.len()).is_some(), all.len() > 1);
        assert!(Cores::for_threads(1).is_none());
        assert!(Cores::for_threads(all.len() + 1).is_none());
        assert!(on(&all[..1], || Cores::for_threads(all.len())).is_none_or(|_| all.len() == 1));
    }
}
