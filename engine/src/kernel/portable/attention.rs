//! Some queries and one page.

use std::ops::Range;

use crate::kernel::attention::{PAGE_TOKENS, PageHead, Row};

/// Adds to the sum of each row the weighted values of the places in `slots`.
pub(in crate::kernel) fn attend(page: PageHead<'_>, slots: &Range<usize>, rows: &mut [Row<'_>]) {
    for row in rows {
        let head_size = row.sum.len();
        // A score depends on its own key alone, so those that nobody sees do no harm.
        let (weights, factor) = row.softmax.update(dots(row.query, page.keys), slots, head_size);
        if let Some(factor) = factor {
            row.sum.iter_mut().for_each(|sum| *sum *= factor);
        }
        for slot in slots.clone() {
            let (weight, values) = (weights[slot], &page.values[slot * head_size..][..head_size]);
            row.sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
    }
}

/// The dot products of a query with all keys of a page.
fn dots(query: &[f32], keys: &[f32]) -> [f32; PAGE_TOKENS] {
    let mut dots = [0.0; PAGE_TOKENS];
    for (query, keys) in query.iter().zip(keys.as_chunks::<PAGE_TOKENS>().0) {
        dots.iter_mut().zip(keys).for_each(|(dot, key)| *dot += query * key);
    }
    dots
}
