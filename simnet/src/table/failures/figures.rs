//! The figures of the table.

use super::{ALGORITHMS, gaps, rate};
use crate::plot::{Line, Plot};

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

/// The part of all tokens that come within so many milliseconds of the one before.
#[must_use]
pub fn gap_plot(seeds: u64) -> Plot {
    let runs = [
        (false, true, "replay, noticed"),
        (false, false, "replay, unnoticed"),
        (true, true, "standby, noticed"),
        (true, false, "standby, unnoticed"),
    ];
    let line = |(standby, noticed, name): (bool, bool, &str)| {
        let gaps = gaps(standby, noticed, 1e-2, seeds);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand tokens")]
        let point = |(number, gap): (usize, &f64)| (*gap, 1.0 - number as f64 / gaps.len() as f64);
        // The part that is not disturbed is one vertical line.
        let points = gaps.iter().enumerate().step_by(1 + gaps.len() / 2_000).map(point).collect();
        Line { name: name.to_owned(), points }
    };
    Plot {
        title: "Time from token to token, p = 1e-2, 1,024 tokens".to_owned(),
        x: "milliseconds".to_owned(),
        y: "part of the tokens that take longer".to_owned(),
        log_x: true,
        lines: runs.map(line).to_vec(),
    }
}
