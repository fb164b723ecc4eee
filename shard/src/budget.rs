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
