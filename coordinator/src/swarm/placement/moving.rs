//! Whether a server that serves should go elsewhere, by itself.

use umbel_protocol::Span;

use super::balance::{Balance, count, throughput_bound};
use super::choose::STAY_SECONDS;
use super::{Own, View};
use crate::swarm::flow::Supply;

/// A swarm that carries this part of what any placement of its servers could is left alone: what
/// is missing is less than the error of measured rates.
const ENOUGH: f64 = 0.98;

/// The least that a move must bring, as a part of what the server alone adds to a swarm where it
/// fits perfectly. It ends the exchange of places that are as good as each other; in trials with
/// tight memory 0.1 refused the moves that others had made room for, and ended 3% lower.
const GAIN_MIN: f64 = 0.02;

/// A move that the server thinks worth its cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Move {
    /// The span to serve.
    pub to: Span,
    /// Blocks that have no server now and have one afterwards.
    pub newly_served: usize,
    /// By how much the balance of the swarm rises, in tokens a second, less the cost of the
    /// download.
    pub gain: f64,
}

/// The best move of a server that serves `current`, if one is worth it.
///
/// `view` is of the others. Intentions count as if they were carried out, except that a block is
/// left only where another server keeps it.
#[must_use]
pub fn consider_move(view: &View, own: &Own<'_>, current: Span) -> Option<Move> {
    let mut future = Future::new(view, own.rate, current);
    let now = Balance::of(&future.supply);
    if is_enough(now, view, own) {
        return None;
    }
    let mut best: Option<Move> = None;
    for to in own.spans(view.block_count()).filter(|to| *to != current) {
        let Some(found) = single(&mut future, view, own, now, to) else {
            continue;
        };
        if best.is_none_or(|best| (found.newly_served, found.gain) > (best.newly_served, best.gain))
        {
            best = Some(found);
        }
    }
    best
}

/// Whether a move that was intended is still worth its cost.
pub(super) fn still_pays(view: &View, own: &Own<'_>, current: Span, to: Span) -> bool {
    let mut future = Future::new(view, own.rate, current);
    let now = Balance::of(&future.supply);
    single(&mut future, view, own, now, to).is_some()
}

/// Whether what is missing in a swarm is too little to do anything about.
pub(super) fn is_enough(now: Balance, view: &View, own: &Own<'_>) -> bool {
    now.unserved == 0 && now.least >= ENOUGH * bound(view, own)
}

/// The most that any placement of these servers could carry.
pub(super) fn bound(view: &View, own: &Own<'_>) -> f64 {
    let others = view.will_serve().map(|(span, rate)| (span.block_count(), rate));
    let own = (own.block_limit.min(view.block_count()), own.rate);
    throughput_bound(view.block_count(), others.chain([own]))
}

/// What a move must bring, in tokens a second.
fn cost(own: &Own<'_>, view: &View, current: Span, to: Span) -> f64 {
    let share = own.rate / f64::from(view.block_count());
    (share * GAIN_MIN).max(download_cost(own, view, own.rate, current, to))
}

/// What it costs, in tokens a second, that servers with this rate in all give nothing for as long as
/// this one downloads.
pub(super) fn download_cost(own: &Own<'_>, view: &View, rate: f64, current: Span, to: Span) -> f64 {
    let share = rate / f64::from(view.block_count());
    share * own.download_seconds(to, Some(current)) / STAY_SECONDS
}

/// How much the swarm gains where another server carries out its intention, with us at `current`:
/// the same number as that server would find. It decides who of two gives way.
pub(super) fn gain_of_other(view: &View, rate: f64, current: Span, other: usize) -> (usize, f64) {
    let server = view.servers()[other];
    let (Some(from), Some(to)) = (server.span, server.moving_to) else {
        return (0, 0.0);
    };
    let mut future = Future::new(view, rate, current);
    let after = Balance::of(&future.supply);
    future.supply.remove(to, server.rate);
    future.supply.add(from, server.rate);
    let now = Balance::of(&future.supply);
    let share = server.rate / count(future.supply.block_count());
    (now.unserved.saturating_sub(after.unserved), after.mean - now.mean - share * GAIN_MIN)
}

/// The part of what a server serves that it had best stay with, of those that it may.
pub(super) fn best_part(view: &View, own: &Own<'_>, current: Span) -> Option<Span> {
    let mut future = Future::new(view, own.rate, current);
    let parts = own.spans(view.block_count()).filter(|part| current.covers(*part));
    let allowed = parts.filter(|part| view.keeps_what_is_left(current, *part));
    let valued = allowed.map(|part| (part, future.after(part).mean));
    valued.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(part, _)| part)
}

fn single(future: &mut Future, view: &View, own: &Own<'_>, now: Balance, to: Span) -> Option<Move> {
    let current = future.own;
    if !view.keeps_what_is_left(current, to) {
        return None;
    }
    let after = future.after(to);
    let gain = after.mean - now.mean - cost(own, view, current, to);
    let newly_served = now.unserved.checked_sub(after.unserved)?;
    // While blocks have no server nothing is carried, and only filling them is worth a download.
    let pays = if now.unserved > 0 { newly_served > 0 } else { gain > 0.0 };
    pays.then_some(Move { to, newly_served, gain })
}

/// The swarm as it will be, with this server in it.
#[derive(Debug)]
struct Future {
    supply: Supply,
    own: Span,
    rate: f64,
}

impl Future {
    fn new(view: &View, rate: f64, own: Span) -> Self {
        let mut supply = Supply::new(view.block_count());
        for (span, rate) in view.will_serve().chain([(own, rate)]) {
            supply.add(span, rate);
        }
        Self { supply, own, rate }
    }

    /// The balance once this server is at `to`.
    fn after(&mut self, to: Span) -> Balance {
        self.supply.remove(self.own, self.rate);
        self.supply.add(to, self.rate);
        let balance = Balance::of(&self.supply);
        self.supply.remove(to, self.rate);
        self.supply.add(self.own, self.rate);
        balance
    }
}
