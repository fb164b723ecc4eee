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
