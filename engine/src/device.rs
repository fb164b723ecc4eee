//! Where the arithmetic runs: today the processor's cores, and how many of them.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::kernel::Pool;
use crate::kernel::parallel;

/// The threads that compute. A clone shares them.
///
/// A forward pass runs on the thread that asks for it, with the others beside it. How many there
/// are changes no bit of any result.
#[derive(Clone)]
pub struct Device {
    pool: Arc<Pool>,
}

impl Device {
    /// The threads that the whole process shares, also for packing weights: one for each core that it may
    /// use, unless [`Device::choose_shared`] was called.
    #[must_use]
    pub fn shared() -> Self {
        Self { pool: parallel::shared() }
    }

    /// Lets the whole process share `threads`, of which whoever asks for work is the first.
    ///
    /// # Errors
    /// [`ChooseThreadsError`] where the operating system refuses that many, or another number of threads
    /// has computed something already.
    pub fn choose_shared(threads: NonZeroUsize) -> Result<(), ChooseThreadsError> {
        let pool =
            Pool::start(threads.get()).map_err(|source| StartThreadsError { threads, source })?;
        let in_use = parallel::share(pool).thread_count();
        if in_use == threads.get() { Ok(()) } else { Err(ChooseThreadsError::InUse { in_use }) }
    }

    /// `threads` of its own, of which the one that asks for work is the first.
    ///
    /// # Errors
    /// [`StartThreadsError`] where the operating system refuses that many.
    pub fn with_threads(threads: NonZeroUsize) -> Result<Self, StartThreadsError> {
        let pool =
            Pool::start(threads.get()).map_err(|source| StartThreadsError { threads, source })?;
        Ok(Self { pool: Arc::new(pool) })
    }

    /// How many threads compute.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.pool.thread_count()
    }

    /// Tells the threads that there will be work within some 50 µs: they wake meanwhile, and sleep again
    /// where there is none.
    pub fn rouse(&self) {
        self.pool.rouse();
    }

    /// Runs `work` on this thread, and what it does in parallel on all threads of the device.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        parallel::within(&self.pool, work)
    }
}

impl Default for Device {
    fn default() -> Self {
        Self::shared()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} threads)", self.thread_count())
    }
}

/// The operating system gave fewer threads than asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} compute threads; ask for fewer")]
pub struct StartThreadsError {
    /// How many were asked for.
    pub threads: NonZeroUsize,
    /// What the operating system said.
    pub source: std::io::Error,
}

/// The threads that a process shares cannot be as many as were chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChooseThreadsError {
    /// The operating system does not give so many.
    #[error(transparent)]
    Start(#[from] StartThreadsError),
    /// Others have been started, and there is one set of them.
    #[error("threads are chosen before anything is computed: {in_use} are in use")]
    InUse {
        /// How many compute.
        in_use: usize,
    },
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_runs_on_the_threads_of_its_device() {
        let two = Device::with_threads(NonZeroUsize::new(2).unwrap()).unwrap();
        assert_eq!(two.thread_count(), 2);
        assert_eq!(two.run(parallel::thread_count), 2);
        let cores = std::thread::available_parallelism().unwrap().get();
        assert_eq!(two.run(|| Device::shared().run(parallel::thread_count)), cores);
        assert_eq!(parallel::thread_count(), cores);
    }

    #[test]
    fn a_share_of_the_work_is_not_divided_once_more_by_a_thread_of_the_device() {
        let two = Device::with_threads(NonZeroUsize::new(2).unwrap()).unwrap();
        let (arrived, counts) = (AtomicUsize::new(0), [const { AtomicUsize::new(0) }; 2]);
        two.run(|| {
            parallel::for_each_share(2, |share| {
                // Two that wait for each other need two threads.
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
                counts[share].store(parallel::thread_count(), Ordering::SeqCst);
            });
        });
        let mut counts = counts.map(AtomicUsize::into_inner);
        counts.sort_unstable();
        assert_eq!(counts, [1, 2], "the caller may, but its pool is busy");
    }

    #[test]
    fn the_shared_threads_are_chosen_before_they_are_used() {
        let in_use = Device::shared().thread_count();
        Device::choose_shared(NonZeroUsize::new(in_use).unwrap()).unwrap();
        let error = Device::choose_shared(NonZeroUsize::new(in_use + 1).unwrap()).unwrap_err();
        assert!(error.to_string().contains(&format!("{in_use} are in use")), "{error}");
        assert_eq!(Device::shared().thread_count(), in_use);
    }
}
