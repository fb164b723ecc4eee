//! Figures of failures, and the times from token to token.

use super::super::{Table, cells};
use super::{ALGORITHMS, gaps, rate};
use crate::plot::{Line, Plot};

/// The probability with which a server fails during each step where gaps are measured.
const GAPS_PROBABILITY: f64 = 1e-2;

/// Probabilities of the figure.
const PROBABILITIES: [f64; 5] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2];

/// What Petals keeps of its failure-free rate, by the paper.
const PETALS: [(f64, f64); 3] = [(1e-4, 1.0), (1e-3, 7.76 / 10.7), (1e-2, 2.17 / 10.7)];

/// The part of the failure-free rate that is kept, over the probability of failures.
#[must_use]
pub fn kept_plot(seeds: u64) -> Plot {
    let shown = ALGORITHMS.into_iter().filter(|(_, name)| *name != "cache-less");
    let line = |(algorithm, name): (_, &str)| {
        let sound = rate(algorithm, 1_024, 0.0, 1);
        let kept = |p| (p, rate(algorithm, 1_024, p, seeds) / sound);
        Line { name: name.to_owned(), points: PROBABILITIES.map(kept).to_vec() }
    };
    let mut lines: Vec<_> = shown.map(line).collect();
    lines.push(Line { name: "Petals (paper)".to_owned(), points: PETALS.to_vec() });
    Plot {
        title: "Rate that is kept while servers fail, 1,024 tokens".to_owned(),
        x: "probability that a server fails during a step".to_owned(),
        y: "part of the failure-free rate".to_owned(),
        log_x: true,
        lines,
    }
}

/// From each token to the next, in milliseconds, sorted: by the way in which failures are met.
pub type Gaps = [(&'static str, Vec<f64>); 4];

/// The gaps of some runs of each way.
#[must_use]
pub fn all_gaps(seeds: u64) -> Gaps {
    let ways = [
        (false, true, "replay, noticed"),
        (false, false, "replay, unnoticed"),
        (true, true, "standby, noticed"),
        (true, false, "standby, unnoticed"),
    ];
    ways.map(|(standby, noticed, name)| (name, gaps(standby, noticed, GAPS_PROBABILITY, seeds)))
}

/// What most gaps do not exceed.
#[must_use]
pub fn gap_table(of: &Gaps) -> Table {
    let row = |(name, gaps): &(&str, Vec<f64>)| {
        let below = |part: usize| format!("{:.0}", gaps[(gaps.len() - 1) * part / 1000]);
        let [p50, p99, p999, longest] = [500, 990, 999, 1000].map(below);
        cells([name, &p50, &p99, &p999, &longest])
    };
    Table {
        title: format!("From token to token, p = {GAPS_PROBABILITY}, 1,024 tokens: milliseconds"),
        header: cells(["algorithm", "p50", "p99", "p99.9", "longest"]),
        rows: of.iter().map(row).collect(),
        notes: Vec::new(),
    }
}

/// The part of all tokens that take longer than so many milliseconds.
#[must_use]
pub fn gap_plot(of: &Gaps) -> Plot {
    let line = |(name, gaps): &(&str, Vec<f64>)| {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand tokens")]
        let point = |(number, gap): (usize, &f64)| (*gap, 1.0 - number as f64 / gaps.len() as f64);
        // The part that is not disturbed is one vertical line.
        let points = gaps.iter().enumerate().step_by(1 + gaps.len() / 2_000).map(point).collect();
        Line { name: (*name).to_owned(), points }
    };
    Plot {
        title: format!("Time from token to token, p = {GAPS_PROBABILITY}, 1,024 tokens"),
        x: "milliseconds".to_owned(),
        y: "part of the tokens that take longer".to_owned(),
        log_x: true,
        lines: of.iter().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_table_says_what_so_many_gaps_do_not_exceed() {
        let gaps: Vec<f64> = (0..=1000).map(f64::from).collect();
        let table = gap_table(&["a", "b", "c", "d"].map(|name| (name, gaps.clone())));
        assert_eq!(table.rows[0], cells(["a", "500", "990", "999", "1000"]));
        assert_eq!(table.rows.len(), 4);
    }
}
