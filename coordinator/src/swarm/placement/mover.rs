//! When a server goes to another span, and in which order.
//!
//! Nobody coordinates, and every view is some seconds old. So a server looks at moments of its
//! own, announces what it intends, waits until the others must have heard it, and looks again: of
//! two that intend the same, one gives way. It then loads the new span beside the old one, serves
//! it, and drops the old one only when its sessions have ended (make before break). A server
//! without room for both first withdraws to the blocks that both spans have.

use std::collections::VecDeque;
use std::time::Duration;

use umbel_protocol::{PeerId, Span};

use super::moving::{self, Move, consider_move, still_pays};
use super::{Own, View};
use crate::random::Random;
use crate::time::Time;

/// Mean time between two looks. Looking is cheap (some milliseconds), and servers come and go
/// within minutes; each wait is drawn from half to one and a half of it, so that not all look at
/// once.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How long an intention is announced before it is acted upon, at least: announcements reach
/// everybody within some ten seconds. Up to half as much is added by chance.
pub const SETTLE: Duration = Duration::from_secs(20);

/// Least time between two moves of one server, except to serve a block that has no server: sessions
/// that were just routed here should not have to move again at once.
pub const MOVE_INTERVAL_MIN: Duration = Duration::from_secs(600);

/// How long old sessions may go on after a move: as long as a step may take, twice.
pub const DRAIN_MAX: Duration = Duration::from_secs(600);

/// How long a loaded span may wait until what the server leaves is kept by another.
pub const READY_MAX: Duration = Duration::from_secs(300);

/// Time between two looks while a loaded span waits.
const READY_INTERVAL: Duration = Duration::from_secs(15);

/// Wait after a load that failed; it doubles with each failure in a row, up to the maximum.
const BACKOFF: Duration = Duration::from_secs(60);

/// An hour: a full disk or a dead hub is mended by people.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// Moves that need others to follow which a server makes until the servers of the swarm change.
/// Moves that pay by themselves end by themselves, because each raises the balance; these need not.
const PLANS_MAX: usize = 4;

/// How often the same view is looked into for a sequence of moves, each time along other ways.
const TRIES_MAX: usize = 5;

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
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Output {
    /// Hand in the newest view of the swarm as [`Input::Seen`].
    Look,
    /// Announce this intention beside what is served; `None` takes it back.
    Announce {
        /// The span that will be served.
        moving_to: Option<Span>,
    },
    /// Announce only these blocks, or, where there are none, that no new sessions are taken; keep
    /// the intention announced; say [`Input::Drained`] when the sessions on other blocks ended.
    Withdraw {
        /// The blocks that the span served and the one to be loaded have in common.
        to: Option<Span>,
    },
    /// Fetch this span and load it into memory, beside what is there.
    Load(Span),
    /// Announce this span, without an intention, and take new sessions on it; say
    /// [`Input::Drained`] when those on the span before have ended.
    Serve(Span),
    /// Free this span, except the blocks that are also of the span now announced.
    DropOld(Span),
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Serves, until it is time to look.
    Resting { until: Time },
    /// Has announced an intention.
    Settling { intended: Move, until: Time },
    /// Drains what it leaves before it loads, because there is no room for both.
    Withdrawing { to: Span, until: Time },
    /// Loads beside what it serves; where `alone`, that is no longer its whole span.
    Loading { to: Span, alone: bool },
    /// A load failed and there is nothing to serve until the next one.
    Empty { to: Span, until: Time },
    /// Has loaded; goes over when nobody needs what it leaves.
    Ready { to: Span, until: Time, give_up: Time },
    /// Serves the new span, and the sessions on the old one.
    Draining { old: Span, until: Time },
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
    /// The others when the last view came, and what they intended.
    known: Vec<(PeerId, Option<Span>)>,
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
            known: Vec::new(),
            settled: None,
            outputs: VecDeque::new(),
            config,
        };
        mover.rest(now, mover.config.look_interval);
        mover
    }

    /// Takes note of what happened. What comes too late is ignored.
    pub fn handle(&mut self, input: Input, now: Time) {
        match (input, self.state) {
            (Input::Seen(sight), _) => self.seen(sight, now),
            (Input::Loaded, State::Loading { to, alone: true }) => self.serve(to, true, now),
            (Input::Loaded, State::Loading { to, alone: false }) => {
                self.state = State::Ready { to, until: now, give_up: now + self.about(READY_MAX) };
            }
            (Input::LoadFailed, State::Loading { to, alone }) => self.load_failed(to, alone, now),
            (Input::Drained, State::Withdrawing { to, .. }) => self.drained_before_load(to),
            (Input::Drained, State::Draining { old, .. }) => self.drop_old(old, now),
            (Input::Loaded | Input::LoadFailed | Input::Drained, _) => {}
        }
    }

    /// When [`Mover::handle_timeout`] is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            _ if self.looking => None,
            State::Resting { until }
            | State::Settling { until, .. }
            | State::Withdrawing { until, .. }
            | State::Empty { until, .. }
            | State::Ready { until, .. }
            | State::Draining { until, .. } => Some(until),
            State::Loading { .. } => None,
        }
    }

    /// Does what was to be done at this time.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.poll_timeout().is_none_or(|until| now < until) {
            return;
        }
        match self.state {
            State::Resting { .. } | State::Settling { .. } | State::Ready { .. } => {
                self.looking = true;
                self.outputs.push_back(Output::Look);
            }
            State::Withdrawing { to, .. } => self.drained_before_load(to),
            State::Empty { to, .. } => {
                self.state = State::Loading { to, alone: true };
                self.outputs.push_back(Output::Load(to));
            }
            State::Draining { old, .. } => self.drop_old(old, now),
            State::Loading { .. } => {}
        }
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

    /// Whether it serves one span and has no intention to change that.
    #[must_use]
    pub const fn is_resting(&self) -> bool {
        matches!(self.state, State::Resting { .. })
    }

    fn seen(&mut self, sight: Sight, now: Time) {
        if !std::mem::take(&mut self.looking) {
            return;
        }
        let sight = Sight { view: sight.view.without(self.config.peer), ..sight };
        match self.state {
            State::Resting { .. } => self.consider(sight, now),
            State::Settling { intended, .. } => self.settle(&sight, intended, now),
            State::Ready { to, give_up, .. } => self.go_over(&sight.view, to, give_up, now),
            State::Withdrawing { .. }
            | State::Loading { .. }
            | State::Empty { .. }
            | State::Draining { .. } => {}
        }
    }

    fn consider(&mut self, sight: Sight, now: Time) {
        let tries = match self.settled.take() {
            Some((seen, tries)) if seen == sight => tries,
            Some(_) | None => 0,
        };
        if tries >= TRIES_MAX {
            self.settled = Some((sight, tries));
            return self.rest(now, self.config.look_interval);
        }
        let view = &sight.view;
        let peers = |known: &[(PeerId, Option<Span>)]| -> Vec<PeerId> {
            known.iter().map(|(peer, _)| *peer).collect()
        };
        let known = view.servers().iter().map(|server| (server.peer, server.moving_to)).collect();
        let before = std::mem::replace(&mut self.known, known);
        if peers(&before) != peers(&self.known) {
            self.plans = 0;
        }
        let rested = self.moved.is_none_or(|moved| now.since(moved) >= MOVE_INTERVAL_MIN);
        let best = {
            let own = own(&self.config, &sight);
            consider_move(view, &own, self.span, &mut self.random)
        };
        let found = best
            .filter(|found| rested || found.newly_served > 0)
            .filter(|found| found.steps == 1 || self.plans < PLANS_MAX);
        let Some(intended) = found else {
            self.settled = best.is_none().then_some((sight, tries + 1));
            return self.rest(now, self.config.look_interval);
        };
        tracing::debug!(from = %self.span, to = %intended.to, gain = intended.gain, "intend");
        self.plans += usize::from(intended.steps > 1);
        self.outputs.push_back(Output::Announce { moving_to: Some(intended.to) });
        let settle = self.settle_time();
        let until = now + settle + settle.mul_f64(self.random.unit() / 2.0);
        self.state = State::Settling { intended, until };
    }

    /// The others have heard of the intention, and theirs have come in.
    fn settle(&mut self, sight: &Sight, intended: Move, now: Time) {
        let (view, own, to) = (&sight.view, &own(&self.config, sight), intended.to);
        let rest = self.without_weaker(view, own, intended);
        let mut stands = |view: &View| still_pays(view, own, self.span, intended, &mut self.random);
        if !stands(view) && !stands(&rest) {
            tracing::debug!(to = %to, "give way");
            self.outputs.push_back(Output::Announce { moving_to: None });
            return self.rest(now, self.config.look_interval);
        }
        if self.holds_both(to) {
            self.state = State::Loading { to, alone: false };
            self.outputs.push_back(Output::Load(to));
        } else {
            self.state = State::Withdrawing { to, until: now + DRAIN_MAX };
            self.outputs.push_back(Output::Withdraw { to: self.span.intersection(to) });
        }
    }

    /// The view without the intentions that came up since this server's own and bring less: those
    /// servers see ours and give way. Of equals, the lower id goes on.
    fn without_weaker(&self, view: &View, own: &Own<'_>, intended: Move) -> View {
        let mine = (intended.newly_served, intended.gain);
        let mut stripped = view.clone();
        let new = |server: &super::ServedSpan| {
            server.moving_to.is_some() && !self.known.contains(&(server.peer, server.moving_to))
        };
        for server in stripped.servers.iter_mut().filter(|server| new(server)) {
            server.moving_to = None;
        }
        let mut kept = view.clone();
        for (index, server) in view.servers().iter().enumerate().filter(|(_, server)| new(server)) {
            // As that server saw it: nobody else's new intention.
            let mut alone = stripped.clone();
            alone.servers[index].moving_to = server.moving_to;
            let theirs = moving::gain_of_other(&alone, own.rate, self.span, index);
            if theirs < mine || (theirs == mine && self.config.peer < server.peer) {
                kept.servers[index].moving_to = None;
            }
        }
        kept
    }

    /// The new span is loaded: serves it if nobody needs what is left.
    fn go_over(&mut self, view: &View, to: Span, give_up: Time, now: Time) {
        if view.keeps_what_is_left(self.span, to) {
            self.serve(to, false, now);
        } else if now >= give_up {
            self.outputs.push_back(Output::Announce { moving_to: None });
            self.outputs.push_back(Output::DropOld(to));
            self.rest(now, MOVE_INTERVAL_MIN);
        } else {
            let until = now + self.about(READY_INTERVAL);
            self.state = State::Ready { to, until, give_up };
        }
    }

    fn serve(&mut self, to: Span, alone: bool, now: Time) {
        self.outputs.push_back(Output::Serve(to));
        let old = std::mem::replace(&mut self.span, to);
        self.settled = None;
        self.failures = 0;
        self.moved = Some(now);
        if alone {
            self.rest(now, self.config.look_interval);
        } else {
            self.state = State::Draining { old, until: now + DRAIN_MAX };
        }
    }

    fn drained_before_load(&mut self, to: Span) {
        self.outputs.push_back(Output::DropOld(self.span));
        self.outputs.push_back(Output::Load(to));
        self.state = State::Loading { to, alone: true };
    }

    fn drop_old(&mut self, old: Span, now: Time) {
        self.outputs.push_back(Output::DropOld(old));
        self.rest(now, self.config.look_interval);
    }

    fn load_failed(&mut self, to: Span, alone: bool, now: Time) {
        let doubled = BACKOFF.saturating_mul(2u32.saturating_pow(self.failures)).min(BACKOFF_MAX);
        self.failures += 1;
        tracing::warn!(%to, failures = self.failures, "a span could not be loaded");
        if alone {
            // What was served before is on disk, so going back is the surest way to serve again.
            let wait = if to == self.span { self.about(doubled) } else { Duration::ZERO };
            self.state = State::Empty { to: self.span, until: now + wait };
        } else {
            self.outputs.push_back(Output::Announce { moving_to: None });
            self.rest(now, doubled);
        }
    }

    fn rest(&mut self, now: Time, about: Duration) {
        self.state = State::Resting { until: now + self.about(about) };
    }

    /// How long an intention is announced; less where servers look more often than usual.
    fn settle_time(&self) -> Duration {
        SETTLE.min(self.config.look_interval / 3)
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
