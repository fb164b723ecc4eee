//! Looking a few moves ahead: a step that brings nothing by itself, but lets another follow.
//!
//! A beam search over sequences of moves of which this server makes the first. The last move of a
//! sequence must bring rate to the bottleneck from a server that gives it none, by enough to reach
//! the goal; that rules out nearly all of them before anything is computed.

use umbel_protocol::Span;

use super::balance::Balance;
use super::moving::{Move, cost};
use super::{Own, View, slides};
use crate::random::Random;
use crate::swarm::flow::Supply;

/// By how much a sequence must raise the throughput. Several servers load blocks for it, so it
/// must bring more than one move does.
const GAIN_MIN: f64 = 0.02;

/// Least part of the throughput that is left between the moves of a sequence.
const LEFT_MIN: f64 = 0.5;

/// Longest sequence: two moves exchange places, three also make room first.
const STEPS_MAX: usize = 3;

/// How many beginnings, the most balanced, are followed at each step. With 8, one in six of the
/// trials with tight memory ended lower.
const BEAM: usize = 16;

/// How far chance may lift a beginning in the order, as a part of its balance.
const CURIOSITY: f64 = 0.3;

/// Most placements that are computed for one decision: at some 20 µs each (80 blocks), 60 ms.
const EVALUATIONS_MAX: usize = 3000;

/// The spans of a swarm as they would be after some moves.
#[derive(Debug)]
pub(super) struct Future {
    pub(super) supply: Supply,
    /// This server first, then the others.
    spans: Vec<(Span, f64)>,
    /// How many servers each block has.
    servers: Vec<usize>,
    evaluations_left: usize,
}

/// What a sequence is to reach.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// Fewer blocks without a server than this.
    Unserved(usize),
    /// This throughput, with no less than that on the way.
    Throughput { reached: f64, least: f64 },
}

impl Future {
    pub(super) fn new(view: &View, rate: f64, current: Span) -> Self {
        let mut supply = Supply::new(view.block_count());
        let mut servers = vec![0; view.block_count() as usize];
        let spans: Vec<_> = std::iter::once((current, rate)).chain(view.will_serve()).collect();
        for (span, rate) in &spans {
            supply.add(*span, *rate);
            for servers in &mut servers[span.start() as usize..span.end() as usize] {
                *servers += 1;
            }
        }
        Self { supply, spans, servers, evaluations_left: EVALUATIONS_MAX }
    }

    /// The span of this server.
    pub(super) fn own(&self) -> Span {
        self.spans[0].0
    }

    /// What is so once this server is at `to`.
    pub(super) fn after<T>(&mut self, to: Span, look: impl Fn(&Supply) -> T) -> T {
        self.try_out(0, to, look)
    }

    /// The beginning, among these, of the shortest sequence that is worth it.
    pub(super) fn plan(
        &mut self,
        view: &View,
        own: &Own<'_>,
        firsts: impl Iterator<Item = Span>,
        random: &mut Random,
    ) -> Option<Move> {
        let unserved = Balance::of(&self.supply).unserved;
        let throughput = self.supply.throughput();
        let goal = if unserved > 0 {
            Goal::Unserved(unserved)
        } else {
            let reached = throughput * (1.0 + GAIN_MIN);
            Goal::Throughput { reached, least: throughput * LEFT_MIN }
        };
        let current = self.own();
        let firsts: Vec<Span> = firsts
            .filter(|to| *to != current && view.keeps_what_is_left(current, *to))
            .filter(|to| unserved > 0 || cost(own, view, current, *to) <= throughput * GAIN_MIN)
            .collect();
        (2..=STEPS_MAX).find_map(|steps| {
            let candidates = firsts.iter().map(|to| (0, *to)).collect();
            let to = self.follow(candidates, goal, steps, random)?;
            let gain = throughput * GAIN_MIN;
            Some(Move { to, newly_served: usize::from(unserved > 0), gain, steps })
        })
    }

    /// The first of the candidates from which `steps` moves in all reach the goal.
    fn follow(
        &mut self,
        candidates: Vec<(usize, Span)>,
        goal: Goal,
        steps: usize,
        random: &mut Random,
    ) -> Option<Span> {
        let mut ranked = Vec::new();
        for (server, to) in candidates {
            if self.evaluations_left == 0 {
                break;
            }
            self.evaluations_left -= 1;
            let (balance, throughput) =
                self.try_out(server, to, |supply| (Balance::of(supply), supply.throughput()));
            let allowed = match goal {
                Goal::Unserved(now) => balance.unserved <= now,
                Goal::Throughput { least, .. } => throughput >= least,
            };
            if allowed {
                let mean = balance.mean * (1.0 + CURIOSITY * random.unit());
                ranked.push((Balance { mean, ..balance }, server, to));
            }
        }
        ranked.sort_by(|(a, ..), (b, ..)| {
            a.unserved.cmp(&b.unserved).then(b.mean.total_cmp(&a.mean))
        });
        ranked.truncate(BEAM);
        ranked.into_iter().find_map(|(_, server, to)| {
            let from = self.spans[server].0;
            self.place(server, to);
            let reached = if steps == 2 {
                self.finishes(goal)
            } else {
                let next = self.next_moves();
                self.follow(next, goal, steps - 1, random).is_some()
            };
            self.place(server, from);
            reached.then_some(to)
        })
    }

    /// Whether one more move reaches the goal.
    fn finishes(&mut self, goal: Goal) -> bool {
        let bottleneck = self.supply.bottleneck();
        let blocks = f64::from(u32::try_from(bottleneck.blocks.len()).unwrap_or(u32::MAX));
        let gives = |span: Span| bottleneck.blocks.iter().any(|block| span.contains(*block));
        let missing = match goal {
            Goal::Unserved(_) => 0.0,
            Goal::Throughput { reached, .. } => (reached - bottleneck.tokens_per_second) * blocks,
        };
        let useful = |(_, (span, rate)): &(usize, &(Span, f64))| *rate >= missing && !gives(*span);
        let movers: Vec<usize> =
            self.spans.iter().enumerate().filter(useful).map(|(server, _)| server).collect();
        for server in movers {
            for to in self.spans_of(server) {
                if !gives(to) || !self.keeps_what_is_left(server, to) {
                    continue;
                }
                if self.evaluations_left == 0 {
                    return false;
                }
                self.evaluations_left -= 1;
                let reached = match goal {
                    Goal::Unserved(now) => {
                        self.try_out(server, to, |supply| Balance::of(supply).unserved) < now
                    }
                    Goal::Throughput { reached, .. } => {
                        self.try_out(server, to, Supply::throughput) >= reached
                    }
                };
                if reached {
                    return true;
                }
            }
        }
        false
    }

    fn next_moves(&self) -> Vec<(usize, Span)> {
        let mut moves = Vec::new();
        for server in 0..self.spans.len() {
            for to in self.spans_of(server) {
                if to != self.spans[server].0 && self.keeps_what_is_left(server, to) {
                    moves.push((server, to));
                }
            }
        }
        moves
    }

    fn spans_of(&self, server: usize) -> impl Iterator<Item = Span> + use<> {
        let block_count = u32::try_from(self.supply.block_count()).unwrap_or(u32::MAX);
        slides(self.spans[server].0.block_count(), block_count)
    }

    fn keeps_what_is_left(&self, server: usize, to: Span) -> bool {
        let mut left = self.spans[server].0.blocks().filter(|block| !to.contains(*block));
        left.all(|block| self.servers[block as usize] > 1)
    }

    fn try_out<T>(&mut self, server: usize, to: Span, look: impl Fn(&Supply) -> T) -> T {
        let (from, rate) = self.spans[server];
        self.supply.remove(from, rate);
        self.supply.add(to, rate);
        let seen = look(&self.supply);
        self.supply.remove(to, rate);
        self.supply.add(from, rate);
        seen
    }

    fn place(&mut self, server: usize, to: Span) {
        let (from, rate) = self.spans[server];
        self.supply.remove(from, rate);
        self.supply.add(to, rate);
        for block in from.blocks() {
            self.servers[block as usize] -= 1;
        }
        for block in to.blocks() {
            self.servers[block as usize] += 1;
        }
        self.spans[server].0 = to;
    }
}
