//! Where the arithmetic runs: today the processor's cores, and how many of them.

use std::num::NonZeroUsize;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// The threads that compute. A clone shares them.
///
/// Every forward pass enters its device's pool once and stays there, because each entry from
/// outside costs a wake-up. How many threads there are changes no bit of any result.
#[derive(Clone, Debug, Default)]
pub struct Device {
    pool: Option<Arc<ThreadPool>>,
}

impl Device {
    /// The threads that the whole process shares: one for each core that it may use.
    #[must_use]
    pub fn shared() -> Self {
        Self { pool: None }
    }

    /// A pool of `threads` of its own.
    ///
    /// # Errors
    /// [`StartThreadsError`] where the operating system refuses that many.
    pub fn with_threads(threads: NonZeroUsize) -> Result<Self, StartThreadsError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .thread_name(|index| format!("umbel-compute-{index}"))
            .build()
            .map_err(|source| StartThreadsError { threads, source })?;
        Ok(Self { pool: Some(Arc::new(pool)) })
    }

    /// How many threads compute.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.pool
            .as_ref()
            .map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    /// Runs `work` inside the pool, where what it does in parallel stays.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            // `scope` moves into the shared pool; called from inside it, it stays on its thread.
            None => rayon::scope(|_| work()),
        }
    }
}

/// The operating system gave fewer threads than asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} compute threads; ask for fewer")]
pub struct StartThreadsError {
    /// How many were asked for.
    pub threads: NonZeroUsize,
    /// What the operating system said.
    pub source: rayon::ThreadPoolBuildError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_on_the_threads_of_its_device() {
        let two = Device::with_threads(NonZeroUsize::new(2).unwrap()).unwrap();
        assert_eq!(two.thread_count(), 2);
        assert_eq!(two.run(rayon::current_num_threads), 2);
        let shared = Device::shared();
        assert!(shared.run(|| rayon::current_thread_index().is_some()));
    }
}
