//! Attention against the formula in binary64, in one piece and in chunks.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::kernel::specimen::{Numbers, bits};

/// Weights sum to 1 and values are at most 1, so this is in units of the result's largest value: the
/// rounding of scores of some units, which the exponential multiplies, and of the sums.
const ERROR_MAX: f64 = 2e-6;

/// A cache as a table would hold it, and the same keys and values by position.
struct Cache {
    shape: AttentionShape,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Cache {
    /// `positions` random keys and values; what lies behind them on the last page is no number.
    fn random(shape: AttentionShape, positions: usize, numbers: &mut Numbers) -> Self {
        let page = vec![f32::NAN; shape.kv_heads * PAGE_TOKENS * shape.head_size];
        let pages = vec![page; positions.div_ceil(PAGE_TOKENS)];
        let mut cache = Self { shape, keys: pages.clone(), values: pages };
        for (position, head) in
            (0..positions).flat_map(|at| (0..shape.kv_heads).map(move |head| (at, head)))
        {
            for index in 0..shape.head_size {
                *cache.key_mut(head, position, index) = numbers.float();
                let at = value_place(shape, head, position).start + index;
                cache.values[position / PAGE_TOKENS][at] = numbers.float();
            }
        }
        cache
    }

    fn key(&self, head: usize, position: usize) -> Vec<f32> {
        let page = &self.keys[position / PAGE_TOKENS];
        (0..self.shape.head_size)
            .map(|index| page[key_place(self.shape, head, position, index)])
            .collect()
    }

    fn key_mut(&mut self, head: usize, position: usize, index: usize) -> &mut f32 {
        &mut self.keys[position / PAGE_TOKENS][key_place(self.shape, head, position, index)]
    }

    fn value(&self, head: usize, position: usize) -> &[f32] {
        &self.values[position / PAGE_TOKENS][value_place(self.shape, head, position)]
    }
}

/// Where value `index` of a key is.
fn key_place(shape: AttentionShape, head: usize, position: usize, index: usize) -> usize {
    (head * shape.head_size + index) * PAGE_TOKENS + position % PAGE_TOKENS
}

fn value_place(shape: AttentionShape, head: usize, position: usize) -> Range<usize> {
    let start = (head * PAGE_TOKENS + position % PAGE_TOKENS) * shape.head_size;
    start..start + shape.head_size
}

impl KvPages for Cache {
    fn page(&self, index: usize) -> KvPage<'_> {
        KvPage {
            keys: Side::Binary32(&self.keys[index]),
            values: Side::Binary32(&self.values[index]),
        }
    }
}

fn attend(set: InstructionSet, cache: &Cache, queries: &[f32], position: usize) -> Vec<f32> {
    let mut output = vec![f32::NAN; queries.len()];
    let tokens = queries.len() / (cache.shape.heads * cache.shape.head_size);
    let session = Attending { pages: cache, position, tokens };
    attention_with(set, cache.shape, queries, &[session], &mut output);
    output
}

/// The softmax of all scores, in binary64, position by position.
fn obvious(cache: &Cache, query: &[f32], head: usize, position: usize) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_size, window } = cache.shape;
    let kv_head = head / (heads / kv_heads);
    let first = (position + 1).saturating_sub(window.unwrap_or(usize::MAX));
    let score = |position: usize| {
        let key = cache.key(kv_head, position);
        let dot: f64 = query.iter().zip(key).map(|(&q, k)| f64::from(q) * f64::from(k)).sum();
        (dot / (head_size as f64).sqrt()).exp()
    };
    let weights: Vec<f64> = (first..=position).map(score).collect();
    let total: f64 = weights.iter().sum();
    let mut sum = vec![0.0; head_size];
    for (position, weight) in (first..).zip(weights) {
        for (sum, &value) in sum.iter_mut().zip(cache.value(kv_head, position)) {
            *sum += weight / total * f64::from(value);
        }
    }
    sum
}

fn assert_as_obvious(set: InstructionSet, cache: &Cache, queries: &[f32], position: usize) {
    let AttentionShape { heads, head_size, .. } = cache.shape;
    let output = attend(set, cache, queries, position);
    let rows = queries.chunks(head_size).zip(output.chunks(head_size));
    for (index, (query, output)) in rows.enumerate() {
        let exact = obvious(cache, query, index % heads, position + index / heads);
        for (&output, exact) in output.iter().zip(exact) {
            let error = (f64::from(output) - exact).abs();
            assert!(error <= ERROR_MAX, "{:?}, row {index}: {output}, not {exact}", cache.shape);
        }
    }
}

#[test]
fn attention_is_the_softmax_of_the_scores_for_any_heads_and_windows() {
    let mut numbers = Numbers(9);
    for (heads, kv_heads, head_size) in
        [(1, 1, 8), (4, 4, 16), (9, 3, 64), (8, 2, 40), (4, 1, 80), (2, 2, 5), (6, 2, 12)]
    {
        for window in [None, Some(1), Some(7), Some(16), Some(33)] {
            let shape = AttentionShape { heads, kv_heads, head_size, window };
            for (position, tokens) in [(0, 1), (0, 20), (15, 1), (16, 1), (30, 4), (61, 17)] {
                let cache = Cache::random(shape, position + tokens, &mut numbers);
                let queries: Vec<f32> =
                    numbers.floats(tokens * heads * head_size).iter().map(|q| q * 4.0).collect();
                for set in InstructionSet::all() {
                    assert_as_obvious(set, &cache, &queries, position);
                }
            }
        }
    }
}

#[test]
fn sessions_that_attend_together_get_the_bits_of_each_alone() {
    let shape = AttentionShape { heads: 6, kv_heads: 2, head_size: 16, window: Some(20) };
    let mut numbers = Numbers(12);
    let sessions = [(0, 1), (37, 9), (15, 1), (0, 30), (100, 1)];
    let caches = sessions.map(|(start, tokens)| Cache::random(shape, start + tokens, &mut numbers));
    let queries = sessions.map(|(_, tokens)| numbers.floats(tokens * 6 * 16));
    for set in InstructionSet::all() {
        let all: Vec<_> = sessions.iter().zip(&caches).collect();
        let attending: Vec<_> = all
            .into_iter()
            .map(|(&(position, tokens), pages)| Attending { pages, position, tokens })
            .collect();
        let joined = queries.concat();
        let mut together = vec![f32::NAN; joined.len()];
        attention_with(set, shape, &joined, &attending, &mut together);
        let alone: Vec<f32> = (0..sessions.len())
            .flat_map(|at| attend(set, &caches[at], &queries[at], sessions[at].0))
            .collect();
        assert_eq!(bits(&together), bits(&alone));
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_size: 8, window: None };
    let mut numbers = Numbers(10);
    let cache = Cache::random(shape, 40, &mut numbers);
    for scale in [1e3, -1e3] {
        let queries: Vec<f32> = numbers.floats(8).iter().map(|query| query * scale).collect();
        for set in InstructionSet::all() {
            let output = attend(set, &cache, &queries, 39);
            assert!(output.iter().all(|value| value.abs() <= 1.0), "{output:?}");
        }
    }
}

#[test]
fn what_is_no_number_shows() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_size: 8, window: None };
    let mut cache = Cache::random(shape, 20, &mut Numbers(11));
    *cache.key_mut(0, 3, 5) = f32::NAN;
    for set in InstructionSet::all() {
        assert!(attend(set, &cache, &[1.0; 8], 19).iter().all(|value| value.is_nan()));
        assert!(attend(set, &cache, &[1.0; 8], 2).iter().all(|value| value.is_finite()));
    }
}

proptest! {
    // Each case attends with pools of 1, 2 and 3 threads, and starts them.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_prompt_in_one_step_in_chunks_or_token_by_token_gives_the_same_bits(
        set in proptest::sample::select(InstructionSet::all()),
        group in 1usize..4,
        kv_heads in 1usize..4,
        head_size in proptest::sample::select(&[8, 20, 64]),
        window in proptest::option::of(1usize..80),
        tokens in 1usize..70,
        chunk in 1usize..30,
        seed: u64,
    ) {
        let heads = group * kv_heads;
        let shape = AttentionShape { heads, kv_heads, head_size, window };
        let mut numbers = Numbers(seed);
        let cache = Cache::random(shape, tokens, &mut numbers);
        let queries = numbers.floats(tokens * heads * head_size);
        let in_chunks = |chunk: usize| -> Vec<f32> {
            let steps = queries.chunks(chunk * heads * head_size).enumerate();
            steps.flat_map(|(step, queries)| attend(set, &cache, queries, step * chunk)).collect()
        };
        let one_by_one = in_chunks(1);
        prop_assert_eq!(bits(&in_chunks(chunk)), bits(&one_by_one));
        for threads in 1..=3 {
            let device = Device::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            prop_assert_eq!(bits(&device.run(|| in_chunks(tokens))), bits(&one_by_one));
        }
    }
}
