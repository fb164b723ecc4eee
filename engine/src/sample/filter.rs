//! What is done to logits before a token is drawn from them.

use super::{Sampling, id, larger_first};

/// Makes what is not a number impossible.
pub(super) fn replace_nan(logits: &mut [f32]) {
    for logit in logits.iter_mut().filter(|logit| logit.is_nan()) {
        *logit = f32::NEG_INFINITY;
    }
}

/// Makes every token of `history` less likely, once however often it occurred.
pub(super) fn penalize_repetition(logits: &mut [f32], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        // A history may hold tokens that the model's vocabulary lacks; they have no logit.
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// Divides the logits by a temperature above zero.
pub(super) fn divide_by_temperature(logits: &mut [f32], temperature: f32) {
    // Measured from the largest, so that no division overflows at the top: a tiny temperature
    // leaves the likeliest token at 0 and sends the others down.
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let infinite = largest.is_infinite();
    for logit in logits.iter_mut() {
        *logit = match (infinite, *logit == largest) {
            (true, true) => 0.0,
            (true, false) => f32::NEG_INFINITY,
            (false, _) => (*logit - largest) / temperature,
        };
    }
}

/// The tokens, with their logits, that top-k, top-p and min-p leave: at least one.
///
/// `logits` has no NaN and its largest value is 0.
pub(super) fn keep(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f32)> {
    let mut kept = numbered(logits);
    if sampling.top_k > 0 && sampling.top_k < kept.len() {
        kept.select_nth_unstable_by(sampling.top_k - 1, larger_first);
        kept.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        keep_top_p(&mut kept, sampling.top_p);
    }
    if sampling.min_p > 0.0 {
        // A probability is the likeliest one's times e to the logit, since the largest logit is 0.
        kept.retain(|&(_, logit)| logit.exp() >= sampling.min_p);
    }
    kept
}

/// Each logit with its token.
pub(super) fn numbered(logits: &[f32]) -> Vec<(u32, f32)> {
    logits.iter().enumerate().map(|(index, &logit)| (id(index), logit)).collect()
}

/// Keeps the likeliest tokens until their probabilities, among those given, reach `top_p`.
fn keep_top_p(kept: &mut Vec<(u32, f32)>, top_p: f32) {
    kept.sort_unstable_by(larger_first);
    let weight = |&(_, logit): &(u32, f32)| f64::from(logit).exp();
    let enough = f64::from(top_p) * kept.iter().map(weight).sum::<f64>();
    let mut sum = 0.0;
    let below = kept.iter().take_while(|token| {
        sum += weight(token);
        sum < enough
    });
    let count = below.count() + 1;
    kept.truncate(count);
}
