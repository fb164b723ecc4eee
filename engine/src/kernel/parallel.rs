//! Work that is divided among threads: every parallel section of the kernels begins here.

mod cores;
mod pool;
mod ranges;

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

pub(crate) use pool::Pool;
use ranges::Ranges;

/// The threads of the whole process: of a chosen number, or one for each core that it may use.
static SHARED: OnceLock<Arc<Pool>> = OnceLock::new();

thread_local! {
    /// The pool that this thread's sections are divided among.
    static CURRENT: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) };

    /// Whether this is a thread of a pool, whose work is a share of a section already.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// The threads of the whole process.
pub(crate) fn shared() -> Arc<Pool> {
    let start = || {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        // A system that has no threads to give leaves the work to the caller.
        let pool = Pool::start(threads).or_else(|_| Pool::start(1));
        Arc::new(pool.expect("a pool of the caller alone starts no thread"))
    };
    Arc::clone(SHARED.get_or_init(start))
}

/// Makes `pool` the threads of the whole process, if there are none yet; those that there are then.
pub(crate) fn share(pool: Pool) -> Arc<Pool> {
    Arc::clone(SHARED.get_or_init(|| Arc::new(pool)))
}

/// Runs `work` on this thread; its sections are divided among the threads of `pool`.
pub(crate) fn within<R>(pool: &Arc<Pool>, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<Pool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _restore = Restore(CURRENT.replace(Some(Arc::clone(pool))));
    work()
}

/// Calls `work` with each number below `count`, on the threads of the pool that this runs in.
///
/// Each number is some share of the work whose result does not depend on the others.
pub(crate) fn for_each_share(count: usize, work: impl Fn(usize) + Sync + Send) {
    if count <= 1 || IS_WORKER.get() {
        (0..count).for_each(work);
    } else {
        current().for_each_share(count, &work);
    }
}

/// Calls `work` with all numbers below `count`, in ranges of at least `piece` where there are as many, on
/// the threads of the pool that this runs in: each goes through neighbours, in order, as long as nobody
/// is left without work.
pub(crate) fn for_each_range(
    count: usize,
    piece: usize,
    work: impl Fn(Range<usize>) + Sync + Send,
) {
    let ranges = Ranges::new(count, thread_count(), piece);
    for_each_share(ranges.count(), |own| {
        while let Some(range) = ranges.take(own, piece) {
            work(range);
        }
    });
}

/// Calls `work` with each of `items`, on the threads of the pool that this runs in. One item alone
/// wakes nobody.
pub(crate) fn for_each<T: Send>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) + Sync + Send,
) {
    let mut items = items.into_iter();
    let Some(first) = items.next() else {
        return;
    };
    let Some(second) = items.next() else {
        return work(first);
    };
    // Each item is taken once, by whoever has its number: the locks are never waited for.
    let items: Vec<_> =
        [first, second].into_iter().chain(items).map(Some).map(Mutex::new).collect();
    for_each_share(items.len(), |index| {
        let item = items[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        work(item.expect("each number comes once"));
    });
}

/// How many threads share the work.
pub(crate) fn thread_count() -> usize {
    if IS_WORKER.get() { 1 } else { current().thread_count() }
}

/// What a thread of a pool does: the sections of its shares are not divided once more, nor does it start
/// the threads of the process, which could run only where it does.
fn as_worker(work: impl FnOnce()) {
    IS_WORKER.set(true);
    work();
}

fn current() -> Arc<Pool> {
    CURRENT.with_borrow(|pool| pool.clone()).unwrap_or_else(shared)
}

/// As [`for_each_share`], with a part of something for each share, such as of the output.
pub(super) fn for_each_part<T: Send>(parts: Vec<T>, work: impl Fn(usize, T) + Sync + Send) {
    for_each(parts.into_iter().enumerate(), |(share, part)| work(share, part));
}
