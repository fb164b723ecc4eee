//! Work that is divided among threads.

use rayon::prelude::*;

/// Calls `work` with each number below `count`, on the threads of the pool that this runs in.
///
/// Each number is some share of the work whose result does not depend on the others.
pub(super) fn for_each_share(count: usize, work: impl Fn(usize) + Sync + Send) {
    if count <= 1 {
        (0..count).for_each(work);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(work);
    }
}

/// Calls `work` with each of `items`, on the threads of the pool that this runs in. One item alone
/// wakes nobody.
pub(super) fn for_each<T: Send>(
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
    let items: Vec<_> = [first, second].into_iter().chain(items).collect();
    items.into_par_iter().with_max_len(1).for_each(work);
}

/// How many threads share the work.
pub(super) fn thread_count() -> usize {
    rayon::current_num_threads()
}
