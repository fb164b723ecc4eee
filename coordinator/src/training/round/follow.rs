//! How a member comes to where the others stand: after it has missed a round, or joined, or gone another
//! way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use umbel_protocol::PeerId;

use super::Stand;
use crate::time::Time;

/// The way to one state.
#[derive(Debug, Default)]
pub(super) struct Follow {
    target: Option<Stand>,
    /// From when on it is gone: before that a proposal that leads there may come by itself.
    from: Time,
    asked: Option<(PeerId, Time)>,
    /// Who was asked and did not answer.
    silent: BTreeSet<PeerId>,
}

impl Follow {
    /// Where to go from `own`: to where most stand, if there are more than here, or else to a later round;
    /// and only where more than a third of all are that have a state, so that few cannot lead the others
    /// astray.
    ///
    /// Never back, since the others are still to come where one is ahead.
    pub(super) fn target(
        &self,
        own: Option<Stand>,
        peers: &BTreeMap<PeerId, Option<Stand>>,
    ) -> Option<Stand> {
        let mut counts: BTreeMap<Stand, usize> = BTreeMap::new();
        for stand in peers.values().copied().chain([own]).flatten() {
            *counts.entry(stand).or_default() += 1;
        }
        let members: usize = counts.values().sum();
        let is_better = |stand: Stand, count: usize| match own {
            None => true,
            Some(own) if stand.round == own.round => {
                let here = counts.get(&own).copied().unwrap_or_default();
                (count, std::cmp::Reverse(stand)) > (here, std::cmp::Reverse(own))
            }
            Some(own) => stand.round > own.round,
        };
        counts
            .iter()
            .filter(|(stand, count)| **count * 3 > members && is_better(**stand, **count))
            .max_by_key(|(stand, count)| (**count, stand.round, std::cmp::Reverse(**stand)))
            .map(|(stand, _)| *stand)
    }

    /// Whether to set out for `target`; the first time that it is asked, in `patience`.
    pub(super) fn is_time(&mut self, target: Stand, now: Time, patience: Duration) -> bool {
        if self.target != Some(target) {
            *self = Self { target: Some(target), from: now + patience, ..Self::default() };
        }
        now >= self.from
    }

    /// Whom to ask for the state now; `None` while another may still answer within `patience`.
    pub(super) fn ask(
        &mut self,
        peers: &BTreeMap<PeerId, Option<Stand>>,
        now: Time,
        patience: Duration,
    ) -> Option<PeerId> {
        if let Some((peer, at)) = self.asked {
            if now < at + patience {
                return None;
            }
            self.silent.insert(peer);
        }
        let there = peers.iter().filter(|(_, stand)| stand.is_some() && **stand == self.target);
        let there: Vec<_> = there.map(|(peer, _)| *peer).collect();
        let next = there.iter().find(|peer| !self.silent.contains(peer)).copied();
        if next.is_none() {
            // All were asked: it begins anew, since some may only have been slow.
            self.silent.clear();
        }
        let next = next.or_else(|| there.first().copied())?;
        self.asked = Some((next, now));
        self.from = now + patience;
        Some(next)
    }

    /// Whether this is what `from` was asked for.
    pub(super) fn answered(&self, from: PeerId, stand: Stand) -> bool {
        self.target == Some(stand) && self.asked.is_some_and(|(peer, _)| peer == from)
    }

    /// A link is gone.
    pub(super) fn left(&mut self, peer: PeerId) {
        if self.asked.is_some_and(|(asked, _)| asked == peer) {
            (self.asked, self.from) = (None, Time::START);
        }
    }

    /// When there is something to do.
    pub(super) fn timer(&self) -> Option<Time> {
        self.target.map(|_| self.from)
    }
}
