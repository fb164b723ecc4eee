//! Moves of several servers that raise the throughput only together.
//!
//! Where memory is scarce, a swarm in which no server gains by a move of its own may still be far
//! from the best: two that should change places cannot. So a server that finds no move for itself
//! looks for a better placement of everybody, by simulated annealing (Kirkpatrick, Gelatt and
//! Vecchi, Science 1983) from the one that there is, and proposes the moves that lead there. What
//! is found is small, because each move must bring something, and can be carried out without
//! leaving a block (see [`super::transit`]).

mod search;

use umbel_protocol::announcement::{Proposal, ProposedMove};
use umbel_protocol::{PeerId, Span};

use super::balance::Balance;
use super::moving::{download_cost, is_enough};
use super::{Own, ServedSpan, View, transit};
use crate::random::Random;
use crate::swarm::flow::Supply;
use search::Search;

/// By how much a plan must raise the throughput. Several servers load blocks for it, so it must
/// bring more than one move does.
const GAIN_MIN: f64 = 0.02;

/// The part of that which must still be there for a server that is asked: its view is another.
const GAIN_KEPT: f64 = 0.5;

/// A server in a search: this one first, then the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) peer: PeerId,
    pub(super) rate: f64,
    /// Where it is now.
    pub(super) home: Span,
    /// Where it would be.
    pub(super) at: Span,
    /// The blocks that it serves and will not leave.
    pub(super) kept: Option<Span>,
    /// Most blocks that it can hold while it moves; 0 where it is not asked to.
    pub(super) held_max: u32,
}

/// Moves that together are worth their costs, if chance finds any.
///
/// `me` is this server as it would announce itself; one that is not to move may propose as well.
/// `view` is of the others and holds no proposals.
#[must_use]
pub fn propose(
    view: &View,
    own: &Own<'_>,
    me: ServedSpan,
    random: &mut Random,
) -> Option<Proposal> {
    let room: u32 = view.will_serve().map(|(span, _)| span.block_count()).sum();
    if room + own.block_limit < view.block_count() {
        return None;
    }
    let mut search = Search::new(view, own, me)?;
    if is_enough(Balance::of(&search.supply), view, own) {
        return None;
    }
    let placed = search.run(random)?;
    let parts = transit::arrange(view.block_count(), &placed)?;
    let asked = |part: &transit::Part| ProposedMove {
        peer: placed[part.server].peer,
        via: part.via,
        to: placed[part.server].at,
    };
    Some(Proposal { moves: parts.iter().map(asked).collect(), agreed: false })
}

/// Whether a proposal that asks this server to move is worth it: the swarm gains enough, and more
/// than the downloads cost, if those of the others take them as long as this server's takes it.
///
/// Where each of them finds so, the downloads of all cost less than the gain. To hold against each
/// no more than an equal part of the gain made fast servers, whose time is worth most, refuse nearly
/// everything.
pub(super) fn pays_for_me(view: &View, own: &Own<'_>, me: ServedSpan, proposal: &Proposal) -> bool {
    let (Some(current), Some(part)) = (me.span, proposal.of(me.peer)) else {
        return false;
    };
    let servers = view.servers().iter().chain([&me]);
    let asked = servers.filter(|server| proposal.of(server.peer).is_some());
    let rate = asked.map(|server| server.rate).sum();
    let loaded = part.via.unwrap_or(part.to);
    let costs = download_cost(own, view, rate, current, loaded);
    gain(view, me, proposal).is_some_and(|gain| costs <= gain)
}

/// Whether the swarm gains enough by a proposal.
pub(super) fn pays(view: &View, me: ServedSpan, proposal: &Proposal) -> bool {
    gain(view, me, proposal).is_some()
}

/// By how much a proposal raises the throughput, if that is enough; without bound where it gives
/// servers to blocks that have none.
fn gain(view: &View, me: ServedSpan, proposal: &Proposal) -> Option<f64> {
    let (mut before, mut after) =
        (Supply::new(view.block_count()), Supply::new(view.block_count()));
    let mut asked = 0;
    for server in view.servers().iter().chain([&me]) {
        let part = proposal.of(server.peer);
        asked += usize::from(part.is_some());
        let (now, then) = match part {
            Some(part) => (server.span, Some(part.to)),
            None => (server.will_serve(), server.will_serve()),
        };
        for (supply, span) in [(&mut before, now), (&mut after, then)] {
            if let Some(span) = span {
                supply.add(span, server.rate);
            }
        }
    }
    let (now, then) = (Balance::of(&before), Balance::of(&after));
    let gain = if then.unserved < now.unserved { f64::INFINITY } else { then.least - now.least };
    let enough = then.unserved <= now.unserved && gain > 0.0;
    (asked == proposal.moves.len() && enough && gain >= GAIN_MIN * GAIN_KEPT * now.least)
        .then_some(gain)
}

impl Placed {
    /// `None` of a server that has yet to choose its first span.
    pub(super) fn new(server: &ServedSpan) -> Option<Self> {
        let at = server.will_serve()?;
        let free = server.moving_to.is_none();
        let stays = server.moving_to.or(server.span)?;
        let kept = server.span.and_then(|span| span.intersection(stays));
        let held_max = if free { server.held_max } else { 0 };
        Some(Self { peer: server.peer, rate: server.rate, home: at, at, kept, held_max })
    }

    /// Whether it is to go elsewhere.
    pub(super) fn moves(&self) -> bool {
        self.at != self.home
    }
}

#[cfg(test)]
mod tests;
