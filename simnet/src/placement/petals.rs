//! The rule of Petals 2.3 (`block_selection.py`), as the baseline.
//!
//! A server's throughput is what it announces there: its rate by half of one more than its blocks,
//! because a request enters it at a block drawn at random. A block's throughput is the sum over
//! its servers.

use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::placement::{ServedSpan, View};
use umbel_protocol::Span;

/// A server moves only where the throughput rises from less than this part of what it will be.
const BALANCE_QUALITY: f64 = 0.75;

/// Against differences that rounding makes.
const EPSILON: f64 = 1e-3;

/// Most rounds of simulated moves of the others. Petals has no limit, and no swarm that was tried
/// needed this many.
const ROUNDS_MAX: usize = 100;

/// A server in the simulation.
#[derive(Debug, Clone, Copy)]
struct Placed {
    start: usize,
    count: usize,
    throughput: f64,
}

impl Placed {
    fn new(span: Span, rate: f64) -> Self {
        let throughput = rate / ((f64::from(span.block_count()) + 1.0) / 2.0);
        Self { start: span.start() as usize, count: span.block_count() as usize, throughput }
    }
}

/// The window of `count` blocks whose throughputs, sorted, are lexicographically smallest; the
/// first among equals.
#[must_use]
pub fn choose(view: &View, count: u32) -> Option<Span> {
    let count = count.min(view.block_count());
    let throughputs = throughputs(view.block_count(), &placed(view));
    let start = u32::try_from(best_start(&throughputs, count as usize)).ok()?;
    Span::new(start, start + count).ok()
}

/// Whether a server should shut down and choose anew.
#[must_use]
pub fn should_move(view: &View, own: ServedSpan, random: &mut Random) -> bool {
    let Some(span) = own.span else {
        return false;
    };
    let mut servers = placed(view);
    servers.push(Placed::new(span, own.rate));
    let local = servers.len() - 1;
    let mut blocks = throughputs(view.block_count(), &servers);
    let before = least(&blocks);
    add(&mut blocks, servers[local], -(1.0 + EPSILON));
    if before > EPSILON && least(&blocks) <= 0.0 {
        return false;
    }
    let start = best_start(&blocks, servers[local].count);
    if start == servers[local].start {
        return false;
    }
    servers[local].start = start;
    add(&mut blocks, servers[local], 1.0);
    react(&mut blocks, &mut servers, random);
    let after = least(&blocks);
    !(after < before || after < EPSILON) && before / after < BALANCE_QUALITY - EPSILON
}

/// Simulates that everybody moves to the best start, again and again, until nobody does.
fn react(blocks: &mut [f64], servers: &mut [Placed], random: &mut Random) {
    let mut order: Vec<usize> = (0..servers.len()).collect();
    for _ in 0..ROUNDS_MAX {
        let mut moved = false;
        for index in (1..order.len()).rev() {
            order.swap(index, random.below(index + 1));
        }
        for &index in &order {
            let server = &mut servers[index];
            add(blocks, *server, -(1.0 + EPSILON));
            let start = best_start(blocks, server.count);
            add(blocks, *server, EPSILON);
            moved |= start != server.start;
            server.start = start;
            add(blocks, *server, 1.0);
        }
        if !moved {
            return;
        }
    }
}

fn placed(view: &View) -> Vec<Placed> {
    let placed =
        |server: &ServedSpan| Some(Placed::new(server.moving_to.or(server.span)?, server.rate));
    view.servers().iter().filter_map(placed).collect()
}

fn throughputs(block_count: u32, servers: &[Placed]) -> Vec<f64> {
    let mut blocks = vec![0.0; block_count as usize];
    for server in servers {
        add(&mut blocks, *server, 1.0);
    }
    blocks
}

fn add(blocks: &mut [f64], server: Placed, times: f64) {
    for block in &mut blocks[server.start..server.start + server.count] {
        *block += server.throughput * times;
    }
}

fn least(blocks: &[f64]) -> f64 {
    blocks.iter().copied().fold(f64::INFINITY, f64::min)
}

fn best_start(blocks: &[f64], count: usize) -> usize {
    let sorted = |window: &[f64]| {
        let mut window = window.to_vec();
        window.sort_by(f64::total_cmp);
        window
    };
    let mut best: Option<(usize, Vec<f64>)> = None;
    for (start, window) in blocks.windows(count.max(1)).enumerate() {
        let window = sorted(window);
        if best.as_ref().is_none_or(|(_, best)| window < *best) {
            best = Some((start, window));
        }
    }
    best.map_or(0, |(start, _)| start)
}
