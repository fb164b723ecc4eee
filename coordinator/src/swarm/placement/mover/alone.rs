//! Moves of one server: intended, announced, and begun or given up for another's.

use umbel_protocol::{PeerId, Span};

use super::super::moving::{self, Move, consider_move, still_pays};
use super::super::{Own, ServedSpan, View};
use super::{Mover, READY_MAX, Sight, State, TRIES_MAX, Way, own};
use crate::time::Time;

/// Most servers whose new intentions are weighed against this server's own: to weigh one takes as
/// long as there are servers, and so many among a thousand take some milliseconds. To those beyond
/// them it gives way.
const RIVALS_MAX: usize = 64;

impl Mover {
    /// It is time to look: joins others, intends a move, or asks others for moves.
    pub(super) fn consider(&mut self, sight: Sight, now: Time) {
        let peers = |known: &[(PeerId, Option<Span>)]| -> Vec<PeerId> {
            known.iter().map(|(peer, _)| *peer).collect()
        };
        let known =
            sight.view.servers().iter().map(|server| (server.peer, server.moving_to)).collect();
        let before = std::mem::replace(&mut self.known, known);
        if peers(&before) != peers(&self.known) {
            self.plans = 0;
        }
        // What was seen first is kept, so that rates which drift make another view in the end.
        let (seen, tries) = match self.settled.take() {
            Some((seen, tries)) if seen.is_like(&sight) => (seen, tries),
            Some(_) | None => (sight.clone(), 0),
        };
        if tries >= TRIES_MAX {
            self.settled = Some((seen, tries));
            return self.rest(now, self.config.look_interval);
        }
        self.end_proposal(now);
        if self.join(&sight, now) {
            return;
        }
        let best = consider_move(&sight.view, &own(&self.config, &sight), self.span);
        // What somebody has proposed counts on everybody else to stay.
        let may_move = self.is_rested(now) && !sight.view.is_being_asked();
        if let Some(intended) = best.filter(|best| may_move || best.newly_served > 0) {
            let Move { to, gain, .. } = intended;
            tracing::debug!(from = %self.span, %to, gain, "intend");
            let settle = self.settle_time();
            let until = now + settle + settle.mul_f64(self.random.unit() / 2.0);
            self.state = State::Settling { intended, until };
        } else if best.is_some() || !self.propose(&sight, now) {
            self.settled = best.is_none().then_some((seen, tries + 1));
            self.rest(now, self.config.look_interval);
        }
    }

    /// The others have heard of the intention, and theirs have come in.
    pub(super) fn settle(&mut self, sight: &Sight, intended: Move, now: Time) {
        let (view, own, to) = (&sight.view, &own(&self.config, sight), intended.to);
        let rest = self.without_weaker(view, own, intended);
        let stands = |view: &View| still_pays(view, own, self.span, to);
        if !stands(view) && !stands(&rest) {
            tracing::debug!(%to, "give way");
            return self.rest(now, self.config.look_interval);
        }
        if self.holds_both(to) {
            self.load(Way { to, then: None, planned: false }, false);
        } else if view.keeps_what_is_left(self.span, to) {
            self.withdraw(to, now);
        } else if now.since(self.intended) < READY_MAX {
            // A rival that should give way has yet to do so, and may think the same of this server:
            // what nobody takes back cannot be left on the strength of a sum.
            self.state = State::Settling { intended, until: self.soon(now) };
        } else {
            self.rest(now, self.config.look_interval);
        }
    }

    /// The view without the intentions that came up since this server's own and bring less: those
    /// servers see ours and give way. Of equals, the lower id goes on. A server that has nothing to
    /// stay with gives way to nobody.
    fn without_weaker(&self, view: &View, own: &Own<'_>, intended: Move) -> View {
        let mine = (intended.newly_served, intended.gain);
        let mut stripped = view.clone();
        let new = |server: &ServedSpan| {
            server.moving_to.is_some()
                && server.span.is_some()
                && server.joined.is_none()
                && view.agreed(server.peer).is_none()
                && !self.known.contains(&(server.peer, server.moving_to))
        };
        for server in stripped.servers.iter_mut().filter(|server| new(server)) {
            server.moving_to = None;
        }
        let mut kept = view.clone();
        let rivals = view.servers().iter().enumerate().filter(|(_, server)| new(server));
        for (index, server) in rivals.take(RIVALS_MAX) {
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
}
