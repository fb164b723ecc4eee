//! Work that is divided among threads.

use std::sync::Mutex;

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

/// As [`for_each_share`], with a part of something for each share, such as of the output.
pub(super) fn for_each_part<T: Send>(parts: Vec<T>, work: impl Fn(usize, T) + Sync + Send) {
    let parts: Vec<_> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
    for_each_share(parts.len(), |share| {
        // Each lock is taken once, by nobody else.
        let part = parts[share].lock().ok().and_then(|mut part| part.take());
        work(share, part.expect("each share is worked on once"));
    });
}
