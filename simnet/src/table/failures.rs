//! Table 1 of the Petals paper (arXiv 2312.08361): generation while servers fail.
//!
//! BLOOM-7.1B in four stages of 8, 7, 8 and 7 blocks, each on a GTX 1080 Ti. With a probability
//! `p` each server fails during each step, and another stands in its place at once.
//!
//! What is assumed, and where it comes from:
//!
//! * The time of a step: the paper's own failure-free rows of caching, 17.1 steps a second for 128
//!   tokens and 15.5 for 1,024, less the five ways of a ring in one rack. (On Petals' rows, 11.4
//!   and 10.7, steps are longer and so a repair costs a smaller part of them: this is the stricter
//!   choice.)
//! * The time of many tokens at once: the paper's cache-less row, 0.89 steps a second at 1,024
//!   tokens, where a step computes 512 tokens on average: less the transfers, 62 us a token and
//!   block, or 6.5 of the 11.3 Tflop/s of the card.
//! * The links: 1 Gbit/s, 0.25 ms one way.

mod figures;

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::server::ServerConfig;
use umbel_protocol::{ModelId, PeerId, Span};

use super::{Table, cells};
use crate::host::Speed;
use crate::link::LinkClass;
use crate::oracle::{HIDDEN_SIZE, VOCABULARY};
use crate::seed::Seed;
use crate::workload::{Plan, tokens};
use crate::world::{Hazard, Planner, Settings, World};

pub use figures::{Gaps, all_gaps, gap_plot, gap_table, kept_plot};

/// The boundaries of the four stages.
const STAGES: [u32; 5] = [0, 8, 15, 23, 30];

/// Servers for each stage: the one that computes, its spare, and one for each of them when they
/// fail.
const SERVERS_PER_STAGE: u8 = 4;

/// Elements of a hidden state, of two bytes each.
const TOKEN_BYTES: usize = 4_096 * 2;

/// Until a server is there to replace another: "at once", but not in the same instant.
const REPLACED: Duration = Duration::from_millis(100);

/// Seconds after which caching with restarts is given up, as in the paper.
const HOUR: f64 = 3_600.0;

/// How a route is found: from the announcements that the client has, without asking anybody.
const LOOKUP: Duration = Duration::from_millis(1);

/// How failures are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Every failure sends the client back to the beginning of the sequence.
    Restarts,
    /// Nothing is kept: each step computes the whole sequence before it.
    Cacheless,
    /// The machines of Umbel.
    Umbel {
        /// Whether each hop has a spare that computes along.
        standby: bool,
        /// Whether the links of a server that fails close at once.
        noticed: bool,
    },
}

/// All of them, with their names.
pub const ALGORITHMS: [(Algorithm, &str); 6] = [
    (Algorithm::Restarts, "caching with restarts"),
    (Algorithm::Cacheless, "cache-less"),
    (Algorithm::Umbel { standby: false, noticed: true }, "Umbel, replay, noticed"),
    (Algorithm::Umbel { standby: false, noticed: false }, "Umbel, replay, unnoticed"),
    (Algorithm::Umbel { standby: true, noticed: true }, "Umbel, standby, noticed"),
    (Algorithm::Umbel { standby: true, noticed: false }, "Umbel, standby, unnoticed"),
];

/// The probabilities of the paper.
pub const PROBABILITIES: [f64; 4] = [0.0, 1e-4, 1e-3, 1e-2];

/// The paper's figures for a length, by algorithm: restarts, cache-less, Petals. `NAN`: none is
/// known. Some are quoted from memory by the collection that they are taken from.
const fn paper(tokens: u32) -> [[f64; 4]; 3] {
    match tokens {
        128 => [[17.1, 16.7, 12.0, 0.18], [3.44; 4], [11.4, 11.4, 10.6, 3.38]],
        _ => [[15.5, 11.8, 0.48, 0.0], [0.89; 4], [10.7, 10.7, 7.76, 2.17]],
    }
}

/// The servers of the paper.
fn gtx_1080_ti() -> Speed {
    Speed {
        per_block: Duration::from_nanos(1_882_000),
        per_token: Duration::from_nanos(62_000),
        per_context: Duration::from_nanos(450),
    }
}

const fn link() -> LinkClass {
    LinkClass::new(Duration::from_micros(250), Duration::ZERO, 125e6)
}

/// Steps a second of a sequence of so many tokens; the mean over `seeds` of its time.
#[must_use]
pub fn rate(algorithm: Algorithm, length: u32, probability: f64, seeds: u64) -> f64 {
    let seconds = |seed| match algorithm {
        Algorithm::Restarts => restarts(length, probability, &mut Seed(seed).stream("restarts")),
        Algorithm::Cacheless => cacheless(length, probability, &mut Seed(seed).stream("cacheless")),
        Algorithm::Umbel { standby, noticed } => {
            umbel(length, probability, standby, noticed, Seed(seed))
        }
    };
    let total: f64 = (0..seeds).map(seconds).sum();
    #[expect(clippy::cast_precision_loss, reason = "a handful of seeds")]
    let rate = f64::from(length) * seeds as f64 / total;
    rate
}

/// The time of one step without failures: compute, and five ways.
fn step_seconds(position: u32, tokens: u32) -> f64 {
    let compute = gtx_1080_ti().step(STAGES[4], position, tokens).as_secs_f64();
    let way = link().delay + link().transfer(TOKEN_BYTES * tokens as usize);
    compute + 5.0 * way.as_secs_f64()
}

fn any_fails(probability: f64, random: &mut Random) -> bool {
    (0..4).fold(false, |fails, _| (random.unit() < probability) || fails)
}

/// Seconds until a run of steps in which nothing failed; endless where an hour was not enough.
fn restarts(length: u32, probability: f64, random: &mut Random) -> f64 {
    let (mut seconds, mut position) = (0.0, 0);
    while position < length {
        if seconds > HOUR {
            return f64::INFINITY;
        }
        if any_fails(probability, random) {
            seconds += step_seconds(position, 1) * random.unit();
            position = 0;
        } else {
            seconds += step_seconds(position, 1);
            position += 1;
        }
    }
    seconds
}

/// Seconds where a failure costs the step, or some of it.
fn cacheless(length: u32, probability: f64, random: &mut Random) -> f64 {
    let mut seconds = 0.0;
    for position in 0..length {
        while any_fails(probability, random) {
            seconds += step_seconds(0, position + 1) * random.unit();
        }
        seconds += step_seconds(0, position + 1);
    }
    seconds
}

/// Seconds from the first step's beginning to the last one's answer.
///
/// # Panics
/// If the session does not come to its end, or an answer is not the oracle's.
fn umbel(length: u32, probability: f64, standby: bool, noticed: bool, seed: Seed) -> f64 {
    let world = generate(length, probability, standby, noticed, seed);
    let answers = &world.clients[0].answers;
    let first = answers[0].at.since(Time::START).saturating_sub(answers[0].took);
    world.now.min(answers[answers.len() - 1].at).elapsed().saturating_sub(first).as_secs_f64()
}

/// A world in which one client has generated so many tokens.
///
/// # Panics
/// If the session does not come to its end, or an answer is not the oracle's.
#[must_use]
pub fn generate(length: u32, probability: f64, standby: bool, noticed: bool, seed: Seed) -> World {
    let model = ModelId::from_bytes([7; 32]);
    let within = Duration::from_secs_f64(step_seconds(length / 2, 1));
    let hazard = Hazard { probability, within, noticed, replaced: REPLACED };
    let mut world = World::new(
        seed,
        Settings {
            token_bytes: TOKEN_BYTES,
            planner: Planner::Announced,
            lookup: LOOKUP,
            hazard: Some(hazard),
            ..Settings::new(model, STAGES[4], link())
        },
    );
    for (stage, ends) in (0u8..).zip(STAGES.windows(2)) {
        for copy in 0..SERVERS_PER_STAGE {
            let config = ServerConfig {
                peer: PeerId::from_public_key([1 + stage * SERVERS_PER_STAGE + copy; 32]),
                model,
                span: Span::new(ends[0], ends[1]).expect("stages are not empty"),
                block_count: STAGES[4],
                vocabulary_size: Some(VOCABULARY),
                hidden_size: HIDDEN_SIZE,
                head_size: 32,
                context_tokens: 2_048,
                kv_tokens_max: 16_384,
                cache: None,
                journal_bytes_max: 16 << 20,
                keeps_pages: true,
                adapters: None,
            };
            world.serve(config, gtx_1080_ti(), 0);
        }
    }
    let mut random = seed.stream("tokens");
    let steps = (0..length).map(|position| (position, tokens(1, &mut random))).collect();
    let plan = Plan { tokens_max: length, steps, standby, ..Plan::default() };
    // The first announcements have been made by then.
    world.join(Time::after_start(Duration::from_secs(1)), plan, 0);
    world.run();
    let (client, broken) = (&world.clients[0], &world.totals.broken);
    assert!(client.failures.is_empty(), "seed {}: {:?}", seed.0, client.failures);
    assert!(broken.is_empty(), "seed {}: {broken:?}", seed.0);
    world
}

/// The paper's table and ours.
#[must_use]
pub fn table(seeds: u64) -> Table {
    let mut rows = Vec::new();
    for length in [128, 1_024] {
        for (number, (algorithm, name)) in ALGORITHMS.into_iter().enumerate() {
            let rates = PROBABILITIES.map(|p| rate(algorithm, length, p, seeds));
            let of_paper = paper(length)[number.min(2)];
            let mut row = cells([name, &length.to_string()]);
            row.extend((0..4).map(|p| format!("{} ({})", shown(rates[p]), shown(of_paper[p]))));
            row.extend([2, 3].map(|p| format!("{:.0}%", 100.0 * rates[p] / rates[0])));
            rows.push(row);
        }
    }
    Table {
        title: "BLOOM-7.1B, 4 stages on GTX 1080 Ti: steps a second (in the paper)".to_owned(),
        header: cells([
            "algorithm",
            "tokens",
            "p=0",
            "1e-4",
            "1e-3",
            "1e-2",
            "kept at 1e-3",
            "1e-2",
        ]),
        rows,
        notes: vec![format!(
            "Means of {seeds} runs each; beside Umbel stand the figures of Petals. A dash: not done \
             within an hour in at least one run."
        )],
    }
}

fn shown(rate: f64) -> String {
    if rate < 1e-6 { "-".to_owned() } else { format!("{rate:.2}") }
}

/// The milliseconds from each token to the next, sorted, of some runs.
fn gaps(standby: bool, noticed: bool, probability: f64, seeds: u64) -> Vec<f64> {
    let runs = (0..seeds).map(|seed| generate(1_024, probability, standby, noticed, Seed(seed)));
    let took = |world: World| {
        let answers = world.clients[0].answers.iter();
        answers.map(|answer| answer.took.as_secs_f64() * 1e3).collect::<Vec<_>>()
    };
    let mut gaps: Vec<f64> = runs.flat_map(took).collect();
    gaps.sort_by(f64::total_cmp);
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLAY: Algorithm = Algorithm::Umbel { standby: false, noticed: true };
    const STANDBY: Algorithm = Algorithm::Umbel { standby: true, noticed: true };

    #[test]
    fn the_failure_free_rates_are_those_of_the_paper() {
        for (length, of_paper) in [(128, 17.1), (1_024, 15.5)] {
            let ours = rate(REPLAY, length, 0.0, 1);
            let restarts = rate(Algorithm::Restarts, length, 0.0, 1);
            assert!((ours / of_paper - 1.0).abs() < 0.02, "{length}: {ours}");
            assert!((restarts / of_paper - 1.0).abs() < 0.02, "{length}: {restarts}");
        }
        let cacheless = rate(Algorithm::Cacheless, 1_024, 0.0, 1);
        assert!((cacheless / 0.89 - 1.0).abs() < 0.05, "{cacheless}");
    }

    #[test]
    fn a_failing_server_costs_less_than_in_the_paper() {
        let kept = |algorithm, p| rate(algorithm, 1_024, p, 3) / rate(algorithm, 1_024, 0.0, 1);
        for algorithm in [REPLAY, STANDBY] {
            let (rare, often) = (kept(algorithm, 1e-3), kept(algorithm, 1e-2));
            assert!(rare >= 0.9, "{algorithm:?} keeps {rare} at 1e-3");
            assert!(often >= 0.7, "{algorithm:?} keeps {often} at 1e-2");
        }
    }
}
