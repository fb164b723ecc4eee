//! Moves of several: who proposes them, who joins, and when they begin.

use std::time::Duration;

use umbel_protocol::PeerId;
use umbel_protocol::announcement::{Proposal, ProposedMove};

use super::super::{ServedSpan, View, plan};
use super::{HEED_MAX, Mover, PLAN_MAX, PLANS_MAX, Sight, State, Way, own, until_all_know};
use crate::time::Time;

/// How many looks a server that proposes waits for those whom it asks, on average: each looks at
/// least once within one and a half of them.
const LOOKS_WAITED: u32 = 2;

impl Mover {
    /// Leaves out what others have been asking for all too long, and remembers the rest.
    pub(super) fn heed(&mut self, view: &mut View, now: Time) {
        self.heeded.retain(|peer, _| view.proposals.iter().any(|(by, _)| by == peer));
        let heeded = &mut self.heeded;
        view.proposals.retain(|(by, _)| now.since(*heeded.entry(*by).or_insert(now)) < HEED_MAX);
    }

    /// Looks for moves of several, unless somebody else has found some, and proposes them.
    pub(super) fn propose(&mut self, sight: &Sight, now: Time) -> bool {
        if self.plans >= PLANS_MAX || self.proposal.is_some() || !sight.view.proposals.is_empty() {
            return false;
        }
        let (own, me) = (own(&self.config, sight), self.as_seen(sight, now));
        let Some(proposal) = plan::propose(&sight.view, &own, me, &mut self.random) else {
            return false;
        };
        tracing::debug!(moves = proposal.moves.len(), "propose");
        self.plans += 1;
        self.proposal = Some(proposal);
        let give_up = now + self.config.look_interval * LOOKS_WAITED + self.news_time();
        self.state = State::Proposing { until: self.soon(now), give_up };
        true
    }

    /// Does what somebody asks for, if this server's own view says that it is worth it. Of two who
    /// ask, the one with the lower id counts.
    pub(super) fn join(&mut self, sight: &Sight, now: Time) -> bool {
        let asked = |(by, proposal): &(PeerId, Proposal)| {
            Some((*by, self.part_of(proposal)?, proposal.clone()))
        };
        let Some((by, way, proposal)) = sight.view.proposals.iter().find_map(asked) else {
            return false;
        };
        let (own, me) = (own(&self.config, sight), self.as_seen(sight, now));
        // Who goes to a part of its span waits by another rule, on which others rely.
        let fits = way.to.block_count() <= self.config.held_max
            && way.goal().block_count() == self.span.block_count();
        if proposal.agreed
            || !self.is_rested(now)
            || !fits
            || !plan::pays_for_me(&sight.view, &own, me, &proposal)
        {
            return false;
        }
        tracing::debug!(%by, to = %way.goal(), "join");
        let give_up = now + (self.config.look_interval * LOOKS_WAITED + self.news_time()) * 2;
        self.state = State::Joined { by, way, until: self.soon(now), give_up };
        true
    }

    /// Waits for those who were asked.
    pub(super) fn gather(&mut self, sight: &Sight, give_up: Time, now: Time) {
        let (Some(proposal), view) = (&self.proposal, &sight.view) else {
            return self.rest(now, self.config.look_interval);
        };
        let me = self.config.peer;
        let outdone = |(by, other): &(PeerId, Proposal)| other.agreed || *by < me;
        let seen = |of: &ProposedMove| view.servers().iter().find(|server| server.peer == of.peer);
        let mut others = proposal.moves.iter().filter(|of| of.peer != me);
        let is_over = if proposal.agreed {
            others.all(|of| seen(of).is_none_or(|server| server.moving_to.is_none()))
        } else if view.proposals.iter().any(outdone) || others.clone().any(|of| seen(of).is_none())
        {
            true
        } else if others.all(|of| seen(of).is_some_and(|server| server.joined == Some(me))) {
            // Others may have come, gone or moved meanwhile.
            if plan::pays(view, self.as_seen(sight, now), proposal) {
                return self.agree(now);
            }
            true
        } else {
            false
        };
        if is_over || now >= give_up {
            self.rest(now, self.config.look_interval);
        } else {
            self.state = State::Proposing { until: self.soon(now), give_up };
        }
    }

    /// All have said that they will: goes too, or waits until they have gone.
    fn agree(&mut self, now: Time) {
        tracing::debug!("agreed");
        if let Some(proposal) = &mut self.proposal {
            proposal.agreed = true;
        }
        self.agreed_until = now + self.news_time() * 2;
        match self.own_part() {
            Some(way) => self.begin(way, now),
            None => {
                self.state = State::Proposing { until: self.soon(now), give_up: now + PLAN_MAX };
            }
        }
    }

    /// Has joined; begins when all have, and stays when the plan is off.
    pub(super) fn go_along(
        &mut self,
        view: &View,
        (by, way): (PeerId, Way),
        give_up: Time,
        now: Time,
    ) {
        let proposal = view.proposals.iter().find(|(of, _)| *of == by).map(|(_, of)| of);
        match proposal.filter(|proposal| self.part_of(proposal) == Some(way)) {
            Some(proposal) if proposal.agreed => self.begin(way, now),
            Some(_) if now < give_up => {
                self.state = State::Joined { by, way, until: self.soon(now), give_up };
            }
            Some(_) | None => self.rest(now, self.config.look_interval),
        }
    }

    /// Ceases to propose, unless somebody may have yet to hear that all have agreed.
    pub(super) fn end_proposal(&mut self, now: Time) {
        if now >= self.agreed_until || self.proposal.as_ref().is_some_and(|of| !of.agreed) {
            self.proposal = None;
        }
    }

    /// What this server's own proposal asks of it.
    pub(super) fn own_part(&self) -> Option<Way> {
        self.proposal.as_ref().and_then(|proposal| self.part_of(proposal))
    }

    /// What a proposal asks of this server, if that makes sense.
    fn part_of(&self, proposal: &Proposal) -> Option<Way> {
        let &ProposedMove { via, to, .. } = proposal.of(self.config.peer)?;
        match via {
            Some(via) if via.covers(self.span) => {
                Some(Way { to: via, then: Some(to), planned: true })
            }
            Some(_) => None,
            None => Some(Way { to, then: None, planned: true }),
        }
    }

    /// Time for what is announced to get there and back.
    fn news_time(&self) -> Duration {
        until_all_know(self.server_count) * 3 / 2
    }

    fn as_seen(&self, sight: &Sight, now: Time) -> ServedSpan {
        let held_max = if self.is_rested(now) { self.config.held_max } else { 0 };
        let (peer, span) = (self.config.peer, Some(self.span));
        ServedSpan { peer, span, moving_to: None, rate: sight.rate, held_max, joined: None }
    }
}
