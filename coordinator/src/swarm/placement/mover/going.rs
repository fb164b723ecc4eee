//! From one span to another: loading, waiting for others, going over, and dropping what is left.

use std::time::Duration;

use umbel_protocol::Span;

use super::super::View;
use super::super::moving::best_part;
use super::{
    BACKOFF, BACKOFF_MAX, DRAIN_MAX, MOVE_INTERVAL_MIN, Mover, Output, PLAN_MAX, READY_MAX, Sight,
    State, Way, own,
};
use crate::time::Time;

impl Mover {
    /// A move that was agreed upon.
    pub(super) fn begin(&mut self, way: Way, now: Time) {
        if self.holds_both(way.to) {
            self.load(way, false);
        } else {
            let (until, give_up) = (self.soon(now), now + PLAN_MAX);
            self.state = State::Waiting { to: way.to, until, give_up };
        }
    }

    pub(super) fn load(&mut self, way: Way, alone: bool) {
        self.state = State::Loading { way, alone };
        self.outputs.push_back(Output::Load(way.to));
    }

    pub(super) fn loaded(&mut self, way: Way, now: Time) {
        let patience = if way.planned { PLAN_MAX } else { READY_MAX };
        let give_up = now + self.about(patience);
        self.state = State::Ready { way, until: now, give_up };
    }

    pub(super) fn withdraw(&mut self, to: Span, now: Time) {
        self.state = State::Withdrawing { to, until: now + DRAIN_MAX };
        self.outputs.push_back(Output::Withdraw { to: self.span.intersection(to) });
    }

    /// Leaves for a span for which there is no room yet, if others hold what is left.
    pub(super) fn leave(&mut self, view: &View, to: Span, give_up: Time, now: Time) {
        if self.may_leave(view, Way { to, then: None, planned: true }, now) {
            self.withdraw(to, now);
        } else if now >= give_up {
            self.rest(now, self.config.look_interval);
        } else {
            self.state = State::Waiting { to, until: self.soon(now), give_up };
        }
    }

    /// The new span is loaded: serves it if nobody needs what is left.
    pub(super) fn go_over(&mut self, view: &View, way: Way, give_up: Time, now: Time) {
        if self.may_leave(view, way, now) {
            self.serve(way, false, now);
        } else if now < give_up {
            self.state = State::Ready { way, until: self.soon(now), give_up };
        } else {
            self.outputs.push_back(Output::DropOld(way.to));
            if self.is_extended() {
                self.state = State::Extended { to: way.to, until: self.soon(now), since: now };
            } else {
                self.rest(now, MOVE_INTERVAL_MIN);
            }
        }
    }

    /// Whether others hold what is left, and have known for long enough that it will be.
    fn may_leave(&self, view: &View, way: Way, now: Time) -> bool {
        if way.to.covers(self.span) {
            return true;
        }
        let held = if way.planned {
            view.holds_what_is_left(self.span, way.to)
        } else {
            view.keeps_what_is_left(self.span, way.to)
        };
        held && now.since(self.intended) >= self.settle_time()
    }

    pub(super) fn serve(&mut self, way: Way, alone: bool, now: Time) {
        self.outputs.push_back(Output::Serve(way.to));
        self.told.moving_to = None;
        let old = std::mem::replace(&mut self.span, way.to);
        self.settled = None;
        self.failures = 0;
        self.moved = Some(now);
        if alone {
            self.rest(now, self.config.look_interval);
        } else {
            self.state = State::Draining { old, then: way.then, until: now + DRAIN_MAX };
        }
    }

    /// Serves more than usual: gives up what is too much as soon as others keep it. Who has waited
    /// for a whole plan takes any part that it may.
    pub(super) fn shrink(&mut self, sight: &Sight, to: Span, since: Time, now: Time) {
        let view = &sight.view;
        let any = now.since(since) > PLAN_MAX;
        let other = || best_part(view, &own(&self.config, sight), self.span).filter(|_| any);
        let part = view.keeps_what_is_left(self.span, to).then_some(to).or_else(other);
        match part {
            Some(part) => self.load(Way { to: part, then: None, planned: false }, false),
            None => self.state = State::Extended { to, until: self.soon(now), since },
        }
    }

    pub(super) fn drained_before_load(&mut self, to: Span) {
        self.outputs.push_back(Output::DropOld(self.span));
        self.load(Way { to, then: None, planned: false }, true);
    }

    pub(super) fn drop_old(&mut self, old: Span, then: Option<Span>, now: Time) {
        self.outputs.push_back(Output::DropOld(old));
        match then {
            Some(to) => self.state = State::Extended { to, until: self.soon(now), since: now },
            None => self.rest(now, self.config.look_interval),
        }
    }

    pub(super) fn load_failed(&mut self, way: Way, alone: bool, now: Time) {
        let doubled = BACKOFF.saturating_mul(2u32.saturating_pow(self.failures)).min(BACKOFF_MAX);
        self.failures += 1;
        tracing::warn!(to = %way.to, failures = self.failures, "a span could not be loaded");
        if alone {
            // What was served before is on disk, so going back is the surest way to serve again.
            let wait = if way.to == self.span { self.about(doubled) } else { Duration::ZERO };
            self.state = State::Empty { to: self.span, until: now + wait };
        } else if self.is_extended() {
            let until = now + self.about(doubled);
            self.state = State::Extended { to: way.to, until, since: now };
        } else {
            self.rest(now, doubled);
        }
    }

    fn is_extended(&self) -> bool {
        self.span.block_count() > self.config.block_limit
    }
}
