//! What is measured in a round, and what is told of many.

use std::time::{Duration, Instant};

use umbel_client::chain::StepTime;

/// One prompt and the tokens after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Tokens of the prompt, a second.
    pub(super) prefill: f64,
    /// Tokens after the first, a second.
    pub(super) decode: f64,
    /// The same of each turn, where there were turns.
    pub(super) turns: Vec<f64>,
    /// Bytes a second that memory gave right before and right after these tokens, on average.
    pub(super) read: f64,
    /// From token to token; empty where a program does not tell.
    pub(super) gaps: Vec<Duration>,
    /// What each token took in blocks, in milliseconds; empty where a program does not tell.
    pub(super) blocks_ms: Vec<f64>,
    /// What it took from block to block: links, waits and wakes.
    pub(super) between_ms: Vec<f64>,
    /// Bytes that crossed the loopback device for each token, where they can be counted.
    pub(super) wire_bytes: Option<f64>,
}

impl Sample {
    /// Adds where the time of a token went, before it was drawn.
    pub(super) fn add(&mut self, time: &StepTime) {
        let blocks: Duration = time.hops.iter().map(|hop| hop.compute).sum();
        self.blocks_ms.push(blocks.as_secs_f64() * 1e3);
        self.between_ms.push(time.total.saturating_sub(blocks).as_secs_f64() * 1e3);
    }
}

/// From each time to the next.
pub(super) fn gaps(times: &[Instant]) -> impl Iterator<Item = Duration> {
    times.windows(2).map(|pair| pair[1] - pair[0])
}

/// The value in the middle; NaN of none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of the ratios one by one: machines drift, and neighbours in time drift least.
pub(super) fn median_ratio(
    above: impl IntoIterator<Item = f64>,
    below: impl IntoIterator<Item = f64>,
) -> f64 {
    median(above.into_iter().zip(below).map(|(above, below)| above / below))
}

/// How fast tokens came in one way for one in another: turn by turn, in the middle of all, where both had
/// turns, else round by round.
pub(super) fn decode_ratio(above: &[Sample], below: &[Sample]) -> f64 {
    let have_turns = |samples: &[Sample]| samples.iter().all(|sample| !sample.turns.is_empty());
    if have_turns(above) && have_turns(below) {
        let turns =
            |samples| <[Sample]>::iter(samples).flat_map(|sample| sample.turns.iter().copied());
        return median_ratio(turns(above), turns(below));
    }
    let rounds = |samples| <[Sample]>::iter(samples).map(|sample| sample.decode);
    median_ratio(rounds(above), rounds(below))
}

/// The gap that `share` of all are at most, in milliseconds; NaN of none.
pub(super) fn quantile_ms(gaps: &[Duration], share: f64) -> f64 {
    let mut sorted = gaps.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a vector, from a share of its length"
    )]
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).map_or(f64::NAN, |gap| gap.as_secs_f64() * 1e3)
}

/// The least of what was measured: others on the machine only ever add.
pub(super) fn least(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    values.into_iter().min_by(f64::total_cmp)
}

/// A number with so many decimals for a table, or a dash where there is none.
pub(super) fn cell(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { "-".to_owned() }
}

/// A share as a percentage for a table, or a dash where there is none.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.0}%", share * 100.0) } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let gaps: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        let close = |share, expected: f64| (quantile_ms(&gaps, share) - expected).abs() < 1e-9;
        assert!(close(0.5, 51.0) && close(0.99, 100.0) && close(1.0, 101.0));
        assert!(quantile_ms(&[], 0.5).is_nan());
    }

    #[test]
    fn a_ratio_compares_what_was_measured_in_the_same_round() {
        // The machine was half as fast in the second round, and both suffered alike.
        let ratio = median_ratio([30.0, 15.0, 33.0], [20.0, 10.0, 20.0]);
        assert!((ratio - 1.5).abs() < 1e-12, "{ratio}");
        assert!(median_ratio([1.0], []).is_nan());
    }

    #[test]
    fn turns_are_compared_with_the_turns_beside_them() {
        let sample =
            |decode, turns: &[f64]| Sample { decode, turns: turns.to_vec(), ..Sample::default() };
        // In one of six turns the machine stood still for one of the two.
        let above = [sample(20.0, &[27.0, 54.0, 9.0]), sample(30.0, &[27.0, 36.0, 45.0])];
        let below = [sample(40.0, &[30.0, 60.0, 30.0]), sample(40.0, &[30.0, 40.0, 50.0])];
        assert!((decode_ratio(&above, &below) - 0.9).abs() < 1e-12);
        // A program that has no turns is compared by rounds.
        let rounds = [sample(80.0, &[]), sample(80.0, &[])];
        assert!((decode_ratio(&rounds, &below) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_median_is_in_the_middle_and_the_least_at_the_end() {
        assert_eq!(median([9.0, 1.0, 4.0]).to_bits(), 4.0_f64.to_bits());
        assert!(median([]).is_nan());
        assert_eq!(least([9.0, 1.0, 4.0]), Some(1.0));
        assert_eq!(least([]), None);
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!((cell(f64::NAN, 1), percent(f64::NAN)), ("-".to_owned(), "-".to_owned()));
        assert_eq!((cell(12.34, 1), percent(0.804)), ("12.3".to_owned(), "80%".to_owned()));
    }
}
