//! When a server goes to another span, and in which order.
//!
//! Nobody coordinates, and every view is some seconds old. So a server looks at moments of its
//! own, announces what it intends, waits until the others must have heard it, and looks again: of
//! two that intend the same, one gives way. It then loads the new span beside the old one, serves
//! it, and drops the old one only when its sessions have ended (make before break). A server
//! without room for both first withdraws to the blocks that both spans have.
//!
//! Moves that help only together are proposed by whoever finds them: each server that is asked
//! judges by its own view and announces its move, and when all have done so they begin. Nobody
//! needs anybody's word on the way: each still leaves its blocks only when another holds them.

mod agree;
mod alone;
mod going;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use umbel_protocol::announcement::Proposal;
use umbel_protocol::{PeerId, Span};

use super::moving::Move;
use super::{Own, ServedSpan, View};
use crate::random::Random;
use crate::time::Time;

/// Mean time between two looks. Looking is cheap (some milliseconds), and servers come and go
/// within minutes; each wait is drawn from half to one and a half of it, so that not all look at
/// once.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How long an intention is announced before it is acted upon, at least, where there are so few
/// servers that all are told at once: what is lost is said again ten seconds later. Up to half as
/// much is added by chance.
pub const SETTLE: Duration = Duration::from_secs(20);

/// How much longer each time that there are twice as many servers. A change is told to sixteen of
/// them at once and every ten seconds, and each of the others asks one for news as often, so that
/// twice as many know after each ten seconds. In 40 trials each, all had heard of a change after
/// 41 s among 100 servers, 52 s among 300 and 66 s among 1,000, where this waits 50, 70 and 80 s.
const SETTLE_LONGER: Duration = Duration::from_secs(10);

/// Servers that are told of a change at once.
const TOLD_AT_ONCE: usize = 16;

/// Least time between two moves of one server, except to serve a block that has no server: sessions
/// that were just routed here should not have to move again at once.
pub const MOVE_INTERVAL_MIN: Duration = Duration::from_secs(600);

/// How long old sessions may go on after a move: as long as a step may take, twice.
pub const DRAIN_MAX: Duration = Duration::from_secs(600);

/// How long a loaded span may wait until what the server leaves is kept by another.
pub const READY_MAX: Duration = Duration::from_secs(300);

/// The same where others move too: one of them may have to fetch ten gigabytes at 100 Mbit/s, and
/// another waits for it.
pub const PLAN_MAX: Duration = Duration::from_secs(1800);

/// Longest time for which what a peer proposes is heeded: two plans. Whoever goes on for longer
/// keeps the others from making their own.
const HEED_MAX: Duration = Duration::from_secs(3600);

/// Time between two looks while something is under way.
const READY_INTERVAL: Duration = Duration::from_secs(15);

/// Wait after a load that failed; it doubles with each failure in a row, up to the maximum.
const BACKOFF: Duration = Duration::from_secs(60);

/// An hour: a full disk or a dead hub is mended by people.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// Proposals that a server makes until the servers of the swarm change. Moves that pay by
/// themselves end by themselves, because each raises the balance; what others do not agree to, or
/// do not carry out, need not.
const PLANS_MAX: usize = 6;

/// How often the same view is looked into for moves of several, each time along other ways.
const TRIES_MAX: usize = 5;

/// By how much rates may differ in the same view, as a part of the larger: what live traffic makes
/// of them from minute to minute.
const RATE_ERROR: f64 = 0.2;

/// What a mover needs to know to begin.
#[derive(Debug, Clone)]
pub struct MoverConfig {
    /// This server.
    pub peer: PeerId,
    /// The blocks that it serves.
    pub span: Span,
    /// Most blocks that it can serve.
    pub block_limit: u32,
    /// Most blocks that it can hold in memory at once, while it moves.
    pub held_max: u32,
    /// Mean time between two looks; [`LOOK_INTERVAL`] is usual.
    pub look_interval: Duration,
    /// For the moments at which it looks.
    pub seed: u64,
}

/// What a server sees when it looks.
#[derive(Debug, Clone)]
pub struct Sight {
    /// The others; this server is left out of it, if it is in there.
    pub view: View,
    /// This server's own rate: tokens a second through one block.
    pub rate: f64,
    /// For each block, the bytes that are not on disk.
    pub missing_bytes: Vec<u64>,
    /// How fast it downloads; 0 where that is not known.
    pub bytes_per_second: f64,
}

impl Sight {
    /// Whether what was found by the one would be found by the other: the same servers are at the
    /// same places, and about as fast. Rates follow live traffic and are never twice the same.
    fn is_like(&self, other: &Self) -> bool {
        let alike = |a: f64, b: f64| (a - b).abs() <= RATE_ERROR * a.max(b);
        let (servers, others) = (self.view.servers(), other.view.servers());
        let mut pairs = servers.iter().zip(others);
        servers.len() == others.len()
            && self.view.proposals == other.view.proposals
            && self.missing_bytes == other.missing_bytes
            && alike(self.bytes_per_second, other.bytes_per_second)
            && alike(self.rate, other.rate)
            && pairs.all(|(a, b)| {
                alike(a.rate, b.rate)
                    && ServedSpan { rate: 0.0, ..*a } == ServedSpan { rate: 0.0, ..*b }
            })
    }
}

/// What a server announces beside what it serves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Intention {
    /// The span that it will serve instead.
    pub moving_to: Option<Span>,
    /// Most blocks that it can hold while it moves; 0 where it is not to be asked to.
    pub held_max: u32,
    /// What it asks others to do with it.
    pub proposal: Option<Proposal>,
    /// Whose proposal makes it move, once everybody asked will do so.
    pub joined: Option<PeerId>,
}

/// What happens to a mover.
#[derive(Debug)]
pub enum Input {
    /// The answer to [`Output::Look`].
    Seen(Sight),
    /// The span that was to be loaded is in memory.
    Loaded,
    /// It could not be loaded.
    LoadFailed,
    /// The sessions on the span that is no longer announced have ended.
    Drained,
}

/// What a mover wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Hand in the newest view of the swarm as [`Input::Seen`].
    Look,
    /// Announce this beside what is served, in place of what was said before.
    Announce(Intention),
    /// Announce only these blocks, or, where there are none, that no new sessions are taken; keep
    /// the intention announced; say [`Input::Drained`] when the sessions on other blocks ended.
    Withdraw {
        /// The blocks that the span served and the one to be loaded have in common.
        to: Option<Span>,
    },
    /// Fetch this span and load it into memory, beside what is there.
    Load(Span),
    /// Announce this span, without a span to move to, and take new sessions on it; say
    /// [`Input::Drained`] when those on the span before have ended. It may have more blocks than
    /// the server usually serves.
    Serve(Span),
    /// Free this span, except the blocks that are also of the span now announced.
    DropOld(Span),
}

/// Where a server goes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Way {
    /// The blocks to load and serve next.
    to: Span,
    /// Those of them to stay with, where these are more than usual.
    then: Option<Span>,
    /// Whether others go too, who may be in each other's way for a while.
    planned: bool,
}

impl Way {
    fn goal(self) -> Span {
        self.then.unwrap_or(self.to)
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Serves, until it is time to look.
    Resting { until: Time },
    /// Has announced an intention.
    Settling { intended: Move, until: Time },
    /// Asks others to move, and waits until all of them say that they will; or, where it does not
    /// move itself, until they have.
    Proposing { until: Time, give_up: Time },
    /// Has said that it moves as this peer asks, and waits until all others have too.
    Joined { by: PeerId, way: Way, until: Time, give_up: Time },
    /// Has no room for both spans, and waits until others hold what it leaves.
    Waiting { to: Span, until: Time, give_up: Time },
    /// Drains what it leaves before it loads, because there is no room for both.
    Withdrawing { to: Span, until: Time },
    /// Loads beside what it serves; where `alone`, that is no longer its whole span.
    Loading { way: Way, alone: bool },
    /// A load failed and there is nothing to serve until the next one.
    Empty { to: Span, until: Time },
    /// Has loaded; goes over when nobody needs what it leaves.
    Ready { way: Way, until: Time, give_up: Time },
    /// Serves the new span, and the sessions on the old one.
    Draining { old: Span, then: Option<Span>, until: Time },
    /// Serves more than usual, until others have come for what is too much.
    Extended { to: Span, until: Time, since: Time },
}

/// Decides when one server moves.
#[derive(Debug)]
pub struct Mover {
    config: MoverConfig,
    span: Span,
    state: State,
    /// A view was asked for and is not here yet.
    looking: bool,
    random: Random,
    moved: Option<Time>,
    failures: u32,
    plans: usize,
    /// What it asks others to do, and how long it says so at least once they have agreed.
    proposal: Option<Proposal>,
    agreed_until: Time,
    /// What is announced, and since when it says where the server goes.
    told: Intention,
    intended: Time,
    /// The others when it looked last while it had no intention, and what they intended.
    known: Vec<(PeerId, Option<Span>)>,
    /// Servers of the last view, this one among them.
    server_count: usize,
    /// Since when others have been asking for moves.
    heeded: BTreeMap<PeerId, Time>,
    /// What was seen when no move was found, and how often.
    settled: Option<(Sight, usize)>,
    outputs: VecDeque<Output>,
}

impl Mover {
    /// A mover of a server that serves.
    #[must_use]
    pub fn new(config: MoverConfig, now: Time) -> Self {
        let mut mover = Self {
            span: config.span,
            state: State::Resting { until: now },
            looking: false,
            random: Random::new(config.seed),
            moved: None,
            failures: 0,
            plans: 0,
            proposal: None,
            agreed_until: now,
            told: Intention::default(),
            intended: now,
            known: Vec::new(),
            server_count: 1,
            heeded: BTreeMap::new(),
            settled: None,
            outputs: VecDeque::new(),
            config,
        };
        mover.rest(now, mover.config.look_interval);
        mover.tell(now);
        mover
    }

    /// Takes note of what happened. What comes too late is ignored.
    pub fn handle(&mut self, input: Input, now: Time) {
        match (input, self.state) {
            (Input::Seen(sight), _) => self.seen(sight, now),
            (Input::Loaded, State::Loading { way, alone: true }) => self.serve(way, true, now),
            (Input::Loaded, State::Loading { way, alone: false }) => self.loaded(way, now),
            (Input::LoadFailed, State::Loading { way, alone }) => self.load_failed(way, alone, now),
            (Input::Drained, State::Withdrawing { to, .. }) => self.drained_before_load(to),
            (Input::Drained, State::Draining { old, then, .. }) => self.drop_old(old, then, now),
            (Input::Loaded | Input::LoadFailed | Input::Drained, _) => {}
        }
        self.tell(now);
    }

    /// When [`Mover::handle_timeout`] is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            _ if self.looking => None,
            State::Resting { until }
            | State::Settling { until, .. }
            | State::Proposing { until, .. }
            | State::Joined { until, .. }
            | State::Waiting { until, .. }
            | State::Withdrawing { until, .. }
            | State::Empty { until, .. }
            | State::Ready { until, .. }
            | State::Draining { until, .. }
            | State::Extended { until, .. } => Some(until),
            State::Loading { .. } => None,
        }
    }

    /// Does what was to be done at this time.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.poll_timeout().is_none_or(|until| now < until) {
            return;
        }
        match self.state {
            State::Resting { .. }
            | State::Settling { .. }
            | State::Proposing { .. }
            | State::Joined { .. }
            | State::Waiting { .. }
            | State::Ready { .. }
            | State::Extended { .. } => {
                self.looking = true;
                self.outputs.push_back(Output::Look);
            }
            State::Withdrawing { to, .. } => self.drained_before_load(to),
            State::Empty { to, .. } => self.load(Way { to, then: None, planned: false }, true),
            State::Draining { old, then, .. } => self.drop_old(old, then, now),
            State::Loading { .. } => {}
        }
        self.tell(now);
    }

    /// What to do next; drain it before waiting.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The span that is served, or was last.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Whether it moves only if others do something first: it has no intention, or serves more than
    /// usual for want of anybody to take it over.
    #[must_use]
    pub fn is_resting(&self, now: Time) -> bool {
        match self.state {
            State::Resting { .. } => true,
            State::Extended { since, .. } => now.since(since) > PLAN_MAX,
            State::Settling { .. }
            | State::Proposing { .. }
            | State::Joined { .. }
            | State::Waiting { .. }
            | State::Withdrawing { .. }
            | State::Loading { .. }
            | State::Empty { .. }
            | State::Ready { .. }
            | State::Draining { .. } => false,
        }
    }

    fn seen(&mut self, sight: Sight, now: Time) {
        if !std::mem::take(&mut self.looking) {
            return;
        }
        let mut sight = Sight { view: sight.view.without(self.config.peer), ..sight };
        self.heed(&mut sight.view, now);
        self.server_count = sight.view.servers().len() + 1;
        match self.state {
            State::Resting { .. } => self.consider(sight, now),
            State::Settling { intended, .. } => self.settle(&sight, intended, now),
            State::Proposing { give_up, .. } => self.gather(&sight, give_up, now),
            State::Joined { by, way, give_up, .. } => {
                self.go_along(&sight.view, (by, way), give_up, now);
            }
            State::Waiting { to, give_up, .. } => self.leave(&sight.view, to, give_up, now),
            State::Ready { way, give_up, .. } => self.go_over(&sight.view, way, give_up, now),
            State::Extended { to, since, .. } => self.shrink(&sight, to, since, now),
            State::Withdrawing { .. }
            | State::Loading { .. }
            | State::Empty { .. }
            | State::Draining { .. } => {}
        }
    }

    /// Announces what has changed.
    fn tell(&mut self, now: Time) {
        let moving_to = match self.state {
            State::Resting { .. } => None,
            State::Settling { intended, .. } => Some(intended.to),
            State::Proposing { .. } => self.own_part().map(Way::goal),
            State::Joined { way, .. } | State::Loading { way, .. } | State::Ready { way, .. } => {
                Some(way.goal())
            }
            State::Waiting { to, .. }
            | State::Withdrawing { to, .. }
            | State::Extended { to, .. } => Some(to),
            // While it waits to try once more, others are to serve the blocks if they can.
            State::Empty { to, until } => (until <= now).then_some(to),
            State::Draining { then, .. } => then,
        };
        let may_be_asked = matches!(self.state, State::Resting { .. })
            && self.is_rested(now)
            && self.failures == 0
            && self.span.block_count() <= self.config.block_limit;
        let held_max = if may_be_asked { self.config.held_max } else { 0 };
        let joined = match self.state {
            State::Joined { by, .. } => Some(by),
            State::Proposing { .. } => moving_to.map(|_| self.config.peer),
            State::Resting { .. }
            | State::Settling { .. }
            | State::Waiting { .. }
            | State::Withdrawing { .. }
            | State::Loading { .. }
            | State::Empty { .. }
            | State::Ready { .. }
            | State::Draining { .. }
            | State::Extended { .. } => None,
        };
        let intention = Intention { moving_to, held_max, proposal: self.proposal.clone(), joined };
        if intention.moving_to.is_some() && intention.moving_to != self.told.moving_to {
            self.intended = now;
        }
        if intention != self.told {
            self.told = intention.clone();
            self.outputs.push_back(Output::Announce(intention));
        }
    }

    fn rest(&mut self, now: Time, about: Duration) {
        self.end_proposal(now);
        self.state = State::Resting { until: now + self.about(about) };
    }

    fn is_rested(&self, now: Time) -> bool {
        self.moved.is_none_or(|moved| now.since(moved) >= MOVE_INTERVAL_MIN)
    }

    /// How long an intention is announced; less where servers look more often than usual.
    fn settle_time(&self) -> Duration {
        let usual = LOOK_INTERVAL.as_secs_f64();
        let part = (self.config.look_interval.as_secs_f64() / usual).min(1.0);
        until_all_know(self.server_count).mul_f64(part)
    }

    /// When to look again while something is under way.
    fn soon(&mut self, now: Time) -> Time {
        now + self.about(READY_INTERVAL.min(self.config.look_interval / 3))
    }

    /// Half to one and a half of a duration.
    fn about(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(0.5 + self.random.unit())
    }

    fn holds_both(&self, to: Span) -> bool {
        let shared = self.span.intersection(to).map_or(0, Span::block_count);
        self.span.block_count() + to.block_count() - shared <= self.config.held_max
    }
}

/// How long it takes until a change is known to so many servers.
fn until_all_know(server_count: usize) -> Duration {
    let doublings = server_count.div_ceil(TOLD_AT_ONCE).next_power_of_two().ilog2();
    SETTLE + SETTLE_LONGER * doublings
}

fn own<'a>(config: &MoverConfig, sight: &'a Sight) -> Own<'a> {
    Own {
        rate: sight.rate,
        block_limit: config.block_limit,
        missing_bytes: &sight.missing_bytes,
        bytes_per_second: sight.bytes_per_second,
    }
}

#[cfg(test)]
mod tests;
