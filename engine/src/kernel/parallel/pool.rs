//! Threads that stay awake between the sections of a pass.
//!
//! A pass has some two hundred short sections, each of 5 to 200 µs for a small model, and a thread
//! that sleeps between them costs more to wake than a section takes. So idle threads look for work
//! for a while, then offer their core to others, and sleep when somebody takes it or nothing comes.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::cores::Cores;

/// How often an idle thread looks for work without giving up its core: some 5 to 20 µs, the time
/// between the sections of a pass.
const SPINS: u32 = 300;

/// How often it then offers its core to others before it sleeps: some 30 µs where nobody wants it.
const YIELDS: u32 = 50;

/// Longer than an offer takes that nobody accepts. Who has accepted has work, and would be interrupted by
/// the next offers.
const ACCEPTED: Duration = Duration::from_micros(50);

/// Threads that share the work of one caller at a time. They end when it is dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Where there is a core for each thread.
    cores: Option<Arc<Cores>>,
}

/// The work of a section: it is called with the number of a share.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// How many shares the section has, in the upper half, and how many were taken, in the lower.
    ticket: AtomicU64,
    /// The section's work; written only while no share is out.
    work: UnsafeCell<Option<Work<'static>>>,
    /// Shares that are done.
    done: AtomicUsize,
    /// Whether a caller has a section here.
    is_busy: AtomicBool,
    has_panicked: AtomicBool,
    sleepers: AtomicUsize,
    is_over: AtomicBool,
}

#[expect(unsafe_code, reason = "the work of a section is shared by its threads")]
// SAFETY: `work` is written by the one caller that has set `is_busy`, and only when every share of
// the section before is done; it is read by who has taken a share of this section. Taking a share
// happens after the ticket was stored, which is after the write; and the next write happens after
// `done` has counted the share. What it points to is `Sync`.
unsafe impl Sync for Shared {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` in all: the caller is one of them.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            is_busy: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        let cores = Cores::for_threads(threads).map(Arc::new);
        let mut pool = Self { shared, workers: Vec::new(), cores };
        for index in 1..threads {
            let (shared, cores) = (Arc::clone(&pool.shared), pool.cores.clone());
            let name = format!("umbel-compute-{index}");
            // Where one cannot be started, dropping the pool ends those that were.
            let serve = move || {
                if let Some(cores) = cores {
                    cores.join(index);
                }
                super::as_worker(|| shared.serve());
            };
            pool.workers.push(thread::Builder::new().name(name).spawn(serve)?);
        }
        Ok(pool)
    }

    /// How many threads share the work.
    pub(crate) fn thread_count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Wakes the threads that sleep, so that they look for work for a while: waking takes longer than
    /// many a section, and who knows that work comes can have it done by then.
    pub(crate) fn rouse(&self) {
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            self.place();
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
    }

    /// Calls `work` with each number below `count`, and returns when all calls have.
    ///
    /// Where the pool works for another caller, or for one further up on this thread, the caller
    /// does everything itself.
    ///
    /// # Panics
    /// Where a call has panicked.
    pub(crate) fn for_each_share(&self, count: usize, work: Work<'_>) {
        let Ok(shares) = u32::try_from(count) else {
            return (0..count).for_each(work);
        };
        if count <= 1
            || self.workers.is_empty()
            || self.shared.is_busy.swap(true, Ordering::Acquire)
        {
            return (0..count).for_each(work);
        }
        self.place();
        self.shared.begin(shares, work);
        let threads = self.workers.iter().map(JoinHandle::thread);
        self.shared.wake(threads, count - 1);
        while self.shared.work_on_a_share() {}
        self.shared.wait_for(count);
        let has_panicked = self.shared.has_panicked.swap(false, Ordering::Relaxed);
        self.shared.is_busy.store(false, Ordering::Release);
        assert!(!has_panicked, "a share of the work has panicked");
    }

    /// Has the threads run where the caller does not.
    fn place(&self) {
        if let Some(cores) = &self.cores {
            cores.place();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches what panics in its work.
            let _never_panics = worker.join();
        }
    }
}

impl Shared {
    /// Opens a section; the caller has set `is_busy`, and must wait for it.
    fn begin(&self, shares: u32, work: Work<'_>) {
        self.done.store(0, Ordering::Relaxed);
        #[expect(unsafe_code, reason = "the work outlives the section, which the types cannot say")]
        // SAFETY: every share of the section before is done and no ticket is left, so nobody reads
        // `work` now. The longer lifetime is not used: `work` is called only for a share that was
        // taken, and the caller returns from `for_each_share`, where `work` is borrowed, only when
        // all shares are done; a share that panics counts as done, and the caller's own panics are
        // caught like those of others.
        unsafe {
            *self.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work));
        }
        self.ticket.store(u64::from(shares) << 32, Ordering::SeqCst);
    }

    /// Wakes up to `most` of the threads, if any sleeps.
    fn wake<'a>(&self, threads: impl Iterator<Item = &'a Thread>, most: usize) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            threads.take(most).for_each(Thread::unpark);
        }
    }

    /// Takes a share and works on it; whether there was one.
    fn work_on_a_share(&self) -> bool {
        let Some(share) = self.take() else {
            return false;
        };
        #[expect(unsafe_code, reason = "the work of a section is shared by its threads")]
        // SAFETY: a share was taken, so the section's work was written before and is not written
        // again until this share is done.
        let work = unsafe { *self.work.get() };
        let work = work.expect("a section has work before it has shares");
        if catch_unwind(AssertUnwindSafe(|| work(share))).is_err() {
            self.has_panicked.store(true, Ordering::Relaxed);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    /// The number of a share that nobody has taken.
    fn take(&self) -> Option<usize> {
        let next = |ticket: u64| {
            let (shares, taken) = (ticket >> 32, ticket & u64::from(u32::MAX));
            (taken < shares).then_some(ticket + 1)
        };
        let ticket = self.ticket.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        let taken = u32::try_from(ticket & u64::from(u32::MAX)).expect("the lower half");
        Some(taken as usize)
    }

    fn wait_for(&self, count: usize) {
        let mut idle = 0;
        while self.done.load(Ordering::Acquire) < count {
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }

    /// What a worker does until the pool is dropped.
    fn serve(&self) {
        let mut idle = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            if self.work_on_a_share() {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
            } else if idle < SPINS + YIELDS {
                let offered = Instant::now();
                thread::yield_now();
                if offered.elapsed() > ACCEPTED {
                    idle = SPINS + YIELDS;
                }
            } else {
                self.sleep();
                idle = 0;
            }
        }
    }

    /// Sleeps until there may be work. Who opens a section looks for sleepers after the ticket is
    /// there, and a sleeper looks for the ticket after it has said that it sleeps: one sees the other.
    fn sleep(&self) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let ticket = self.ticket.load(Ordering::SeqCst);
        let has_work = ticket >> 32 > ticket & u64::from(u32::MAX);
        if !has_work && !self.is_over.load(Ordering::SeqCst) {
            thread::park();
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_is_worked_on_once_in_one_section_after_another() {
        for threads in 1..=4 {
            let pool = Pool::start(threads).unwrap();
            assert_eq!(pool.thread_count(), threads);
            for section in 0..2_000 {
                let counts: Vec<_> = (0..section % 37).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each_share(counts.len(), &|share| {
                    counts[share].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn callers_that_find_the_pool_busy_work_by_themselves() {
        let pool = Pool::start(3).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.for_each_share(5, &|outer| {
                            // A section inside of a section.
                            pool.for_each_share(3, &|inner| {
                                sum.fetch_add(outer * 3 + inner, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 200 * (0..15).sum::<usize>());
    }

    #[test]
    fn threads_that_have_fallen_asleep_wake_for_the_next_section() {
        let pool = Pool::start(2).unwrap();
        while pool.shared.sleepers.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        // Two shares that wait for each other need two threads.
        let arrived = AtomicUsize::new(0);
        pool.for_each_share(2, &|_| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
        });
        assert_eq!(arrived.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn threads_that_are_roused_without_work_fall_asleep_again() {
        let pool = Pool::start(2).unwrap();
        for _ in 0..3 {
            while pool.shared.sleepers.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            pool.rouse();
            // A thread may be between saying that it sleeps and sleeping: then it wakes at once, later.
            while pool.shared.sleepers.load(Ordering::SeqCst) == 1 {
                pool.rouse();
                thread::yield_now();
            }
        }
        let sum = AtomicUsize::new(0);
        pool.for_each_share(8, &|share| {
            sum.fetch_add(share, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 28);
    }

    #[test]
    fn a_share_that_panics_is_the_callers_panic_and_the_pool_goes_on() {
        let pool = Pool::start(2).unwrap();
        let section = || pool.for_each_share(8, &|share| assert_ne!(share, 5, "five"));
        assert!(catch_unwind(AssertUnwindSafe(section)).is_err());
        let sum = AtomicUsize::new(0);
        pool.for_each_share(8, &|share| {
            sum.fetch_add(share, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 28);
    }
}
