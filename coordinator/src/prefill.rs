//! Into which chunks a prompt is cut, so that all stages of a route work on it at once.
//!
//! A stage takes `c + g L + b x + a (2 L x + x^2)` for a chunk of `x` tokens behind a prefix of `L`:
//! reading weights, reading the cache, the arithmetic of each token, and attention, which grows with
//! what went before (as SGLang's dynamic chunking has it). Many small chunks fill the stages sooner
//! and read the weights more often. Of all numbers of chunks the one is taken with which the whole
//! wavefront is over first, and the chunks become shorter as the prefix grows, so that each takes
//! the slowest stage the same time: no stage waits for the one before it.

/// Most tokens of a chunk: those of a hidden size of 16,384 in binary32 fill half a frame.
pub const CHUNK_TOKENS_MAX: u32 = 512;

/// Fewest tokens of a chunk, but for the last: the arithmetic of fewer hides behind the reading of
/// the weights, and the header of a step and its wake-ups count for more than its tokens.
pub const CHUNK_TOKENS_MIN: u32 = 32;

/// Most chunks that are tried beyond those that the longest chunk asks for: with eight stages all
/// of them are busy for 95% of the time then, and more chunks gain less than they cost.
const CHUNKS_MAX: u32 = 128;

/// What a stage of a route takes: a server with its blocks, or a link.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stage {
    /// Seconds for a chunk, however long it is (`c`).
    pub per_chunk: f64,
    /// Seconds for each token of the prefix (`g`).
    pub per_context: f64,
    /// Seconds for each token of the chunk (`b`).
    pub per_token: f64,
    /// Seconds for each pair of tokens of which one attends to the other (`2 a`).
    pub per_pair: f64,
}

impl Stage {
    /// Seconds for a chunk of `tokens` behind a prefix of `context` tokens.
    #[must_use]
    pub fn seconds(&self, context: u32, tokens: u32) -> f64 {
        let (context, tokens) = (f64::from(context), f64::from(tokens));
        let pairs = context * tokens + tokens * tokens / 2.0;
        self.per_chunk
            + self.per_context * context
            + self.per_token * tokens
            + self.per_pair * pairs
    }
}

/// The chunks in which `tokens` tokens behind a prefix of `context` are over first.
///
/// They add up to `tokens`, and none is empty or has more than `tokens_max`. Where nothing is known
/// of the stages, they are as long as they may be.
#[must_use]
pub fn plan(stages: &[Stage], context: u32, tokens: u32, tokens_max: u32) -> Vec<u32> {
    let tokens_max = tokens_max.clamp(1, CHUNK_TOKENS_MAX);
    let count_min = tokens.div_ceil(tokens_max).max(1);
    // The last chunk may be shorter than the others.
    let count_max = tokens.div_ceil(CHUNK_TOKENS_MIN).min(CHUNKS_MAX).max(count_min);
    let slowest = slowest(stages, context, tokens);
    let next = |count: &u32| Some(count + (count / 8).max(1)).filter(|next| *next <= count_max);
    let candidates = std::iter::successors(Some(count_min), next).map(|count| {
        let chunks = level(&slowest, context, tokens, tokens_max, count);
        (seconds(stages, context, &chunks), chunks)
    });
    // Of two that take the same time the one with fewer chunks.
    let best = candidates.reduce(|best, next| if next.0 < best.0 { next } else { best });
    best.map(|(_, chunks)| chunks).unwrap_or_default()
}

/// Seconds until the last chunk has left the last stage, where each stage takes a chunk as soon as
/// it has finished the one before and the stage before has finished this one.
#[must_use]
pub fn seconds(stages: &[Stage], context: u32, chunks: &[u32]) -> f64 {
    let mut finished = vec![0.0; stages.len()];
    let mut context = context;
    for &tokens in chunks {
        let mut arrived = 0.0;
        for (stage, finished) in stages.iter().zip(&mut finished) {
            arrived = stage.seconds(context, tokens) + f64::max(arrived, *finished);
            *finished = arrived;
        }
        context += tokens;
    }
    finished.last().copied().unwrap_or(0.0)
}

/// The stage that takes longest for all of it.
fn slowest(stages: &[Stage], context: u32, tokens: u32) -> Stage {
    let whole = |stage: &Stage| stage.seconds(context, tokens);
    let slowest = stages.iter().max_by(|a, b| whole(a).total_cmp(&whole(b)));
    slowest.copied().unwrap_or_default()
}

/// `tokens` tokens in `count` chunks that take `stage` the same time, as far as whole tokens and
/// the limit of `tokens_max` allow; a few more chunks where the limit asks for it.
fn level(stage: &Stage, context: u32, tokens: u32, tokens_max: u32, count: u32) -> Vec<u32> {
    let least = CHUNK_TOKENS_MIN.min(tokens_max);
    let even = tokens.div_ceil(count).clamp(least, tokens_max);
    // Where the time does not grow with the length, no length is longer than another.
    if stage.per_token + stage.per_pair <= 0.0 {
        return cut(tokens, |_, left| even.min(left));
    }
    let fits = |limit: f64| {
        let chunk = |done: u32, left: u32| {
            longest(stage, context + done, limit, tokens_max.min(left)).max(least.min(left))
        };
        cut(tokens, chunk)
    };
    // The time of a chunk lies between none and that of the longest one at the end.
    let (mut low, mut high) = (0.0, stage.seconds(context + tokens, tokens_max));
    // Fifty halvings reach the last bit of what tokens take.
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if fits(middle).len() > count as usize {
            low = middle;
        } else {
            high = middle;
        }
    }
    fits(high)
}

/// The longest chunk of at most `most` tokens that takes no more than `limit`; one token at least.
fn longest(stage: &Stage, context: u32, limit: f64, most: u32) -> u32 {
    let (mut fits, mut beyond) = (1, most + 1);
    while beyond - fits > 1 {
        let middle = u32::midpoint(fits, beyond);
        if stage.seconds(context, middle) <= limit {
            fits = middle;
        } else {
            beyond = middle;
        }
    }
    fits
}

/// Cuts off chunks until nothing is left.
fn cut(tokens: u32, chunk: impl Fn(u32, u32) -> u32) -> Vec<u32> {
    let mut chunks = Vec::new();
    let mut done = 0;
    while done < tokens {
        let next = chunk(done, tokens - done);
        chunks.push(next);
        done += next;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stage of a few blocks of a model of a billion parameters on two cores.
    const STAGE: Stage =
        Stage { per_chunk: 0.01, per_context: 2e-6, per_token: 6e-4, per_pair: 2e-7 };

    fn stages() -> impl Strategy<Value = Vec<Stage>> {
        let stage = (0.0..0.05f64, 0.0..1e-5f64, 0.0..2e-3f64, 0.0..1e-6f64);
        let stage = stage.prop_map(|(per_chunk, per_context, per_token, per_pair)| Stage {
            per_chunk,
            per_context,
            per_token,
            per_pair,
        });
        proptest::collection::vec(stage, 0..6)
    }

    proptest! {
        #[test]
        fn chunks_add_up_and_keep_the_limit(
            stages in stages(),
            context in 0u32..3_000,
            tokens in 1u32..3_000,
            tokens_max in 1u32..600,
        ) {
            let chunks = plan(&stages, context, tokens, tokens_max);
            prop_assert_eq!(chunks.iter().sum::<u32>(), tokens);
            prop_assert!(chunks.iter().all(|chunk| (1..=tokens_max.min(512)).contains(chunk)));
        }

        #[test]
        fn no_even_cut_is_over_much_sooner(
            stages in stages(),
            context in 0u32..3_000,
            tokens in 1u32..3_000,
            even in CHUNK_TOKENS_MIN..=CHUNK_TOKENS_MAX,
        ) {
            let planned = seconds(&stages, context, &plan(&stages, context, tokens, 512));
            let others = seconds(&stages, context, &cut(tokens, |_, left| even.min(left)));
            // Chunks that are level for the slowest stage are not for all of the others.
            prop_assert!(planned <= others * 1.1 + 1e-9, "{planned} against {others}");
        }
    }

    #[test]
    fn little_more_than_the_shortest_chunk_is_cut_where_that_is_sooner() {
        let first = Stage { per_token: 0.001_678, per_pair: 6.9e-7, ..Stage::default() };
        let second = Stage { per_pair: 8e-7, ..Stage::default() };
        assert_eq!(plan(&[first, second], 393, 45, 512), [32, 13]);
        assert_eq!(plan(&[STAGE; 2], 0, 33, 512), [33], "weights would be read twice");
    }

    #[test]
    fn chunks_become_shorter_as_the_prefix_grows_and_take_the_same_time() {
        let chunks = plan(&[STAGE; 4], 0, 8_000, 512);
        assert!(chunks.windows(2).rev().skip(1).all(|pair| pair[0] >= pair[1]), "{chunks:?}");
        assert!(chunks[0] > chunks[chunks.len() - 2], "{chunks:?}");
        let mut context = 0;
        let mut times = Vec::new();
        for &tokens in &chunks {
            if tokens < CHUNK_TOKENS_MAX {
                times.push(STAGE.seconds(context, tokens));
            }
            context += tokens;
        }
        // But for the last one, which is what is left.
        times.pop();
        let (least, most) = (
            times.iter().copied().fold(f64::INFINITY, f64::min),
            times.iter().copied().fold(0.0, f64::max),
        );
        assert!(times.len() > 5 && most / least < 1.02, "{chunks:?} take {times:?}");
    }

    #[test]
    fn four_stages_at_once_take_little_more_than_a_quarter() {
        let (stages, tokens) = ([STAGE; 4], 2_000);
        let streamed = seconds(&stages, 0, &plan(&stages, 0, tokens, 512));
        let one_after_another = 4.0 * STAGE.seconds(0, tokens);
        assert!(streamed < 0.35 * one_after_another, "{streamed} of {one_after_another}");
    }

    #[test]
    fn one_stage_and_a_short_prompt_are_not_cut() {
        assert_eq!(plan(&[STAGE], 0, 500, 512), [500]);
        assert_eq!(plan(&[STAGE; 4], 0, 20, 512), [20]);
        assert_eq!(plan(&[], 0, 1_000, 512), [500, 500]);
    }
}
