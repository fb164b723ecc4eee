//! Prints how well servers place themselves, beside the best that is known and the rule of Petals.
//!
//! `cargo run --release -p umbel-simnet --example placement -- [seeds] [tight] [sizes] [of Petals]`:
//! the seeds of the usual swarms and of those with little memory, as in `0..3`, and the swarms to
//! try under this project's rule and under that of Petals, by their numbers of servers, as in
//! `10..101`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a table is what it is for")]

use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::placement::{
    Own, ServedSpan, View, choose_span, consider_move, propose,
};
use umbel_protocol::{PeerId, Span};
use umbel_simnet::placement::scenario::SCENARIOS;
use umbel_simnet::placement::{Fleet, Machine, Rule, Tally, Trial, reference};
use umbel_simnet::seed::Seed;

/// Servers, and most blocks that one has room for.
const SWARMS: [(usize, u32); 6] = [(10, 40), (30, 40), (100, 40), (300, 40), (1000, 4), (1000, 40)];

/// The same, where memory holds little more than one copy of the model.
const TIGHT: [(usize, u32); 4] = [(10, 12), (20, 8), (30, 6), (100, 4)];

/// Where a placement carries this part of what none can exceed, the best is not looked for.
const NEAR: f64 = 0.95;

/// Steps of one search for the best: with ten times as many it found no more in the tight swarms.
const SEARCH_STEPS: u32 = 100_000;

/// How long it takes until all have joined.
const JOINS: Duration = Duration::from_secs(1000);

/// What is asked for on the command line.
struct Wanted {
    seeds: Range<u64>,
    tight_seeds: Range<u64>,
    sizes: Range<u64>,
    sizes_of_petals: Range<u64>,
}

impl Wanted {
    fn parse(arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut wanted =
            Self { seeds: 0..3, tight_seeds: 0..10, sizes: 0..1001, sizes_of_petals: 0..101 };
        let mut arguments = arguments.fuse();
        let all = [
            &mut wanted.seeds,
            &mut wanted.tight_seeds,
            &mut wanted.sizes,
            &mut wanted.sizes_of_petals,
        ];
        for range in all {
            let Some(argument) = arguments.next() else { break };
            let (first, end) = argument.split_once("..")?;
            *range = first.parse().ok()?..end.parse().ok()?;
        }
        arguments.next().is_none().then_some(wanted)
    }
}

fn main() -> ExitCode {
    let Some(wanted) = Wanted::parse(std::env::args().skip(1)) else {
        eprintln!("usage: placement [seeds] [tight] [sizes] [of Petals], each as in 0..10");
        return ExitCode::FAILURE;
    };
    play_scenarios();
    time_decisions();
    println!(
        "\nspare: blocks that fit into all memory, by those of the model\n\
         of best: of the best that a search finds, where the bound is not near; - where that is \
         hopeless\n\n\
         servers limit seed blocks spare phase  rule   of bound of best moves GB/change GB/server \
         unserved rest_s   looks ms/look"
    );
    let mut summary = Vec::new();
    let all = TIGHT.map(|swarm| (swarm, &wanted.tight_seeds)).into_iter();
    for ((count, limit), seeds) in all.chain(SWARMS.map(|swarm| (swarm, &wanted.seeds))) {
        for (rule, sizes) in [(Rule::Umbel, &wanted.sizes), (Rule::Petals, &wanted.sizes_of_petals)]
        {
            if sizes.contains(&(count as u64)) {
                let seeds = seeds.clone();
                let shares = seeds.flat_map(|seed| play(count, limit, Seed(seed), rule)).collect();
                summary.push((count, limit, rule, shares));
            }
        }
    }
    println!("\nservers limit rule   phases   least median below 0.95");
    for (count, limit, rule, shares) in summary {
        summarise(count, limit, rule, shares);
    }
    ExitCode::SUCCESS
}

fn summarise(count: usize, limit: u32, rule: Rule, mut shares: Vec<f64>) {
    shares.sort_by(f64::total_cmp);
    let (Some(least), Some(median)) = (shares.first(), shares.get(shares.len() / 2)) else {
        return;
    };
    let below = shares.iter().filter(|share| **share < 0.95).count();
    println!(
        "{count:7} {limit:5} {rule:6?} {:6} {least:7.3} {median:6.3} {below:10}",
        shares.len()
    );
}

fn play_scenarios() {
    for scenario in SCENARIOS {
        println!("Scenario \"{}\". Petals: {}.", scenario.name, scenario.reason);
        for rule in [Rule::Umbel, Rule::Petals] {
            let outcome = scenario.run(Seed(1), rule);
            println!(
                "  {rule:6?} {:6.1} of {:.1} tokens/s, {} moves, {} GB, {} blocks left unserved",
                outcome.throughput,
                outcome.bound,
                outcome.tally.moves,
                outcome.tally.bytes / 1_000_000_000,
                outcome.tally.unserved_by_moves,
            );
        }
    }
}

/// How long one decision takes among 1,000 servers with 80 blocks.
fn time_decisions() {
    let mut random = Random::new(5);
    let mut view = |limit: u32| {
        let servers: Vec<ServedSpan> = (0..999u16)
            .map(|name| {
                let mut key = [0; 32];
                key[..2].copy_from_slice(&name.to_be_bytes());
                let mut below = |bound: u32| {
                    u32::try_from(random.below(bound as usize)).expect("below 32 bits")
                };
                let count = 1 + below(limit);
                let start = below(81 - count);
                let span = Span::new(start, start + count).ok();
                let rate = 100.0 * 30f64.powf(random.unit());
                let peer = PeerId::from_public_key(key);
                ServedSpan { peer, span, moving_to: None, rate, held_max: 2 * count, joined: None }
            })
            .collect();
        View::new(80, servers)
    };
    for limit in [2, 40] {
        let view = view(limit);
        let own =
            Own { rate: 500.0, block_limit: limit, missing_bytes: &[], bytes_per_second: 0.0 };
        let mut random = Random::new(1);
        let began = Instant::now();
        let chosen = choose_span(&view, &own, &mut random).expect("there are blocks");
        let choosing = began.elapsed();
        let began = Instant::now();
        let found = consider_move(&view, &own, chosen);
        let considering = began.elapsed();
        let peer = PeerId::from_public_key([255; 32]);
        let span = Some(chosen);
        let me = ServedSpan { peer, span, moving_to: None, rate: 500.0, held_max: 4, joined: None };
        let began = Instant::now();
        let proposal = propose(&view, &own, me, &mut random);
        println!(
            "1000 servers, 80 blocks, limit {limit}: choose_span {choosing:.1?}, \
             consider_move {considering:.1?} ({}), propose {:.1?} ({} moves)",
            found.map_or("stays", |_| "moves"),
            began.elapsed(),
            proposal.map_or(0, |proposal| proposal.moves.len()),
        );
    }
}

/// All join, a fifth leaves, and as many join again; the share of the best after each.
fn play(count: usize, limit: u32, seed: Seed, rule: Rule) -> Vec<f64> {
    let fleet = Fleet::random(seed, count, limit);
    let mut trial = Trial::new(seed, fleet.block_count, rule);
    let pause = JOINS / u32::try_from(count).expect("a size fits");
    let mut phases = Phases { trial: &mut trial, fleet: &fleet, limit, seed, rule };
    let mut shares = Vec::new();
    let before = phases.trial.tally;
    for machine in &fleet.machines {
        phases.trial.join(*machine);
        phases.trial.wait(pause);
    }
    shares.extend(phases.report("joins", count, before));
    let before = phases.trial.tally;
    let mut random = seed.stream("leaves");
    let gone: Vec<usize> =
        phases.trial.present().into_iter().filter(|_| random.below(5) == 0).collect();
    gone.iter().for_each(|host| phases.trial.leave(*host));
    shares.extend(phases.report("leaves", gone.len(), before));
    let before = phases.trial.tally;
    let newcomers = Fleet::random(Seed(seed.0 + 1000), count, limit).machines;
    for machine in newcomers.into_iter().take(gone.len()) {
        let block_limit = machine.block_limit.min(fleet.block_count);
        phases.trial.join(Machine { block_limit, ..machine });
        phases.trial.wait(pause);
    }
    shares.extend(phases.report("again", gone.len(), before));
    shares
}

struct Phases<'a> {
    trial: &'a mut Trial,
    fleet: &'a Fleet,
    limit: u32,
    seed: Seed,
    rule: Rule,
}

impl Phases<'_> {
    /// Lets the swarm come to rest and says how it did; its share of the best, where there is one.
    #[expect(clippy::cast_precision_loss, reason = "numbers for people")]
    fn report(&mut self, phase: &str, changes: usize, before: Tally) -> Option<f64> {
        let blocks = self.fleet.block_count;
        let looks = self.trial.tally.looks;
        let began = Instant::now();
        let rest = self.trial.rest();
        let took = began.elapsed();
        let (machines, found) = (self.trial.machines(), self.trial.throughput());
        let room: u32 = machines.iter().map(|machine| machine.block_limit).sum();
        let bound = self.trial.bound();
        let share = (room >= blocks).then(|| found / self.best(bound, &machines));
        let (tally, looks) = (self.trial.tally, self.trial.tally.looks - looks);
        let gigabytes = (tally.bytes - before.bytes) as f64 / 1e9;
        println!(
            "{:7} {:5} {:4} {blocks:6} {:5.2} {phase:6} {:6?} {:8.3} {:>7} {:5} {:9.1} {:9.1} \
             {:8} {:>6} {looks:7} {:.2}",
            self.fleet.machines.len(),
            self.limit,
            self.seed.0,
            f64::from(room) / f64::from(blocks),
            self.rule,
            found / bound,
            share.map_or("-".to_owned(), |share| format!("{share:.3}")),
            tally.moves - before.moves,
            gigabytes / changes.max(1) as f64,
            gigabytes / machines.len() as f64,
            tally.unserved_by_moves - before.unserved_by_moves,
            rest.map_or("never".to_owned(), |rest| rest.as_secs().to_string()),
            took.as_secs_f64() * 1e3 / looks.max(1) as f64,
        );
        share
    }

    /// What no placement exceeds, where this one is near to it, or else the best that is found:
    /// from this placement, and from four others.
    fn best(&self, bound: f64, machines: &[Machine]) -> f64 {
        let found = self.trial.throughput();
        if found >= NEAR * bound {
            return bound;
        }
        let spans = self.trial.spans();
        let placed = (spans.len() == machines.len()).then_some(spans.as_slice());
        let mut random = self.seed.stream("best");
        let blocks = self.fleet.block_count;
        reference::search(blocks, machines, placed, 5, SEARCH_STEPS, &mut random).max(found)
    }
}
