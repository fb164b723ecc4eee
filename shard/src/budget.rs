//! How many blocks fit. Pure.

/// How many consecutive blocks fit in `free_bytes`, wherever in the model they begin.
///
/// `block_bytes` are the weights of each block; with each comes a KV cache of `kv_tokens` tokens of
/// `kv_bytes_per_token_per_block`. As the span is chosen later, the answer holds for the largest
/// blocks there are.
#[must_use]
pub fn blocks_that_fit(
    block_bytes: &[u64],
    kv_bytes_per_token_per_block: u64,
    kv_tokens: u64,
    free_bytes: u64,
) -> u32 {
    let kv_bytes = kv_bytes_per_token_per_block.saturating_mul(kv_tokens);
    let mut largest_first = block_bytes.to_vec();
    largest_first.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = free_bytes;
    let mut count = 0;
    for bytes in largest_first {
        match left.checked_sub(bytes.saturating_add(kv_bytes)) {
            Some(rest) => left = rest,
            None => break,
        }
        count += 1;
    }
    count
}

/// How many blocks can be held at once by a server that has chosen to serve `block_count` of them,
/// with room for `kv_bytes` of keys and values of all its sessions: so many while it moves to others,
/// and loads those beside the ones that it serves.
///
/// It is never fewer than it serves, and never more than twice as many.
#[must_use]
pub fn blocks_held_max(
    block_bytes: &[u64],
    block_count: u32,
    kv_bytes: u64,
    free_bytes: u64,
) -> u32 {
    // Any blocks at all may come together, so there are enough of the largest for two spans.
    let largest = block_bytes.iter().copied().max().unwrap_or_default();
    let held = vec![largest; 2 * block_count as usize];
    let fit = blocks_that_fit(&held, 0, 0, free_bytes.saturating_sub(kv_bytes));
    fit.max(block_count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_come_with_their_cache() {
        assert_eq!(blocks_that_fit(&[100; 30], 1, 50, 1500), 10);
        assert_eq!(blocks_that_fit(&[100; 30], 1, 50, 1499), 9);
        assert_eq!(blocks_that_fit(&[100; 3], 1, 50, u64::MAX), 3);
        assert_eq!(blocks_that_fit(&[], 1, 50, u64::MAX), 0);
        assert_eq!(blocks_that_fit(&[1], u64::MAX, 2, u64::MAX - 1), 0);
    }

    #[test]
    fn two_spans_are_held_at_once_only_where_there_is_room_for_both() {
        assert_eq!(blocks_held_max(&[100; 30], 10, 500, 2500), 20);
        assert_eq!(blocks_held_max(&[100; 30], 10, 500, 2499), 19);
        assert_eq!(blocks_held_max(&[100; 30], 10, 500, u64::MAX), 20);
        // What it serves it holds, whatever the estimate was.
        assert_eq!(blocks_held_max(&[100; 30], 10, 500, 0), 10);
        assert_eq!(blocks_held_max(&[100, 300], 1, 0, 599), 1);
    }

    proptest! {
        #[test]
        fn every_span_of_that_many_blocks_fits(
            blocks in proptest::collection::vec(0u64..1000, 1..20),
            kv in 0u64..50,
            free in 0u64..20_000,
        ) {
            let count = blocks_that_fit(&blocks, kv, 2, free) as usize;
            prop_assert!(count <= blocks.len());
            for span in blocks.windows(count.max(1)).filter(|_| count > 0) {
                prop_assert!(span.iter().map(|bytes| bytes + 2 * kv).sum::<u64>() <= free);
            }
        }
    }
}
