//! How fast this machine computes the blocks that it serves, measured on them when it starts.

use std::time::{Duration, Instant};

use umbel_engine::{ForwardError, HiddenStates, HostedSpan, KvArena};
use umbel_protocol::announcement::Throughput;

/// Tokens that are decoded, one at a time, after one that warms up.
const DECODE_STEPS: usize = 3;

/// Tokens of the prefill.
const PREFILL_TOKENS: usize = 32;

/// Measures tokens a second through one block, for decode and for prefill.
///
/// # Errors
/// Where the blocks cannot be computed at all.
pub fn throughput(blocks: &HostedSpan, arena: &KvArena) -> Result<Throughput, ForwardError> {
    let span = blocks.span();
    let tokens = PREFILL_TOKENS + DECODE_STEPS + 1;
    let Ok(mut table) = arena.open(span, tokens) else {
        // A budget too small to measure in says nothing of the speed.
        return Ok(Throughput::default());
    };
    let mut run = |tokens: usize| -> Result<Duration, ForwardError> {
        // Small and uneven, as hidden states are, so that no shortcut for zeros is measured.
        let values: Vec<f32> =
            (0..tokens * blocks.hidden_size()).map(|i| ((i % 97) as f32 - 48.0) / 97.0).collect();
        let hidden = HiddenStates::from_values(values, blocks.hidden_size())
            .expect("as many values as the tokens have");
        let started = Instant::now();
        blocks.forward(&mut table, &hidden)?;
        Ok(started.elapsed())
    };
    run(1)?;
    let mut decode: Vec<_> = (0..DECODE_STEPS).map(|_| run(1)).collect::<Result<_, _>>()?;
    let prefill = run(PREFILL_TOKENS)?;
    arena.close(table);
    decode.sort();
    let blocks = f64::from(span.block_count());
    #[expect(clippy::cast_possible_truncation, reason = "a rate needs no more digits")]
    let rate = |tokens: usize, took: Duration| {
        (tokens as f64 * blocks / took.as_secs_f64().max(1e-9)) as f32
    };
    Ok(Throughput {
        decode_tokens_per_second: rate(1, decode[decode.len() / 2]),
        prefill_tokens_per_second: rate(PREFILL_TOKENS, prefill),
        ..Throughput::default()
    })
}
