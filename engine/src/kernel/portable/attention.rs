//! One query and one page.

use crate::kernel::LANES;
use crate::kernel::attention::{PAGE_TOKENS, PageQuery, Softmax};

/// Adds to `sum`, the weighted values so far, what the query sees of the page.
pub(in crate::kernel) fn attend(query: PageQuery<'_>, softmax: &mut Softmax, sum: &mut [f32]) {
    let head_size = sum.len();
    let slot = |place: usize| place * head_size..(place + 1) * head_size;
    let mut dots = [0.0; PAGE_TOKENS];
    for place in query.slots.clone() {
        dots[place] = dot(query.query, &query.keys[slot(place)]);
    }
    let (weights, factor) = softmax.update(dots, &query.slots, head_size);
    sum.iter_mut().for_each(|sum| *sum *= factor);
    for place in query.slots {
        let values = &query.values[slot(place)];
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weights[place] * value);
    }
}

/// [`LANES`] sums over every eighth value, added from the first to the last.
fn dot(query: &[f32], key: &[f32]) -> f32 {
    let (queries, query_rest) = query.as_chunks::<LANES>();
    let (keys, key_rest) = key.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (query, key) in queries.iter().zip(keys) {
        for lane in 0..LANES {
            sums[lane] += query[lane] * key[lane];
        }
    }
    for ((sum, query), key) in sums.iter_mut().zip(query_rest).zip(key_rest) {
        *sum += query * key;
    }
    sums.iter().sum()
}
