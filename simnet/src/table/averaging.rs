//! How far lies and churn lead a run away, with and without a rule against them.

use umbel_coordinator::training::round::Rule;

use super::{Table, cells};
use crate::averaging::{Nature, Outcome, Setting, distance, run};
use crate::seed::Seed;

/// Trainers of a run, of whom some may lie.
const TRAINERS: usize = 16;

/// Rounds of a run.
const ROUNDS: u64 = 20;

/// The share that leaves in each round, and the share that stalls.
const LEAVING: f64 = 0.2;
const STALLING: f64 = 0.1;

/// A run in which nobody leaves, stalls or lies.
#[must_use]
pub(crate) fn clean() -> Setting {
    Setting {
        honest: TRAINERS,
        liars: Vec::new(),
        leaving: 0.0,
        stalling: 0.0,
        rule: Rule::TrimmedMean,
        rounds: ROUNDS,
    }
}

/// One in which a fifth leaves in each round, some stall, and `liars` lie.
#[must_use]
pub(crate) fn troubled(liars: &[Nature], rule: Rule) -> Setting {
    let honest = TRAINERS - liars.len();
    Setting { honest, liars: liars.to_vec(), leaving: LEAVING, stalling: STALLING, rule, ..clean() }
}

/// The table, of so many seeds.
#[must_use]
pub fn table(runs: u64) -> Table {
    use Nature::{Garbage, SignFlipped};
    let seeds = || (0..runs).map(Seed);
    let clean: Vec<Outcome> = seeds().map(|seed| run(seed, &clean())).collect();
    let mut rows = vec![row("nobody leaves or lies", "trimmed mean", &clean, &clean)];
    let liars: [(&str, &[Nature]); 3] = [
        ("a fifth leaves", &[]),
        ("and one flips signs", &[SignFlipped]),
        ("and one sends garbage too", &[SignFlipped, Garbage]),
    ];
    for (name, liars) in liars {
        for (rule_name, rule) in [("trimmed mean", Rule::TrimmedMean), ("mean", Rule::Mean)] {
            let outcomes: Vec<_> = seeds().map(|seed| run(seed, &troubled(liars, rule))).collect();
            rows.push(row(name, rule_name, &outcomes, &clean));
        }
    }
    Table {
        title: format!("{TRAINERS} trainers, {ROUNDS} rounds, {runs} runs"),
        header: cells([
            "run",
            "rule",
            "distance",
            "error",
            "seconds a round",
            "left",
            "downloads",
        ]),
        rows,
        notes: vec![
            "distance: from the adapter of the first row, as a share of how far that one has come; the \
             worst run. error: from what is best for all honest trainers, as a share of what it was at \
             first. The rest are means."
                .to_owned(),
        ],
    }
}

fn row(name: &str, rule: &str, outcomes: &[Outcome], clean: &[Outcome]) -> Vec<String> {
    let count = outcomes.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / count;
    let pairs = outcomes.iter().zip(clean);
    let worst = pairs.map(|(outcome, clean)| distance(&outcome.values, &clean.values));
    let worst = worst.fold(0.0, f64::max);
    vec![
        name.to_owned(),
        rule.to_owned(),
        format!("{worst:.3}"),
        format!("{:.3}", mean(&|outcome| outcome.error)),
        format!("{:.1}", mean(&|outcome| outcome.round.as_secs_f64())),
        format!("{:.1}", mean(&|outcome| outcome.left as f64)),
        format!("{:.1}", mean(&|outcome| outcome.downloads as f64)),
    ]
}
