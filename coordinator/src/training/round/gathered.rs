//! The deltas of a round, and proposals which of them are to count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use umbel_protocol::PeerId;

use super::combine::outliers;
use super::{Delta, MEMBERS_MAX, Stand};

/// What a member has learned in a round.
#[derive(Debug, Clone)]
pub(super) struct Contribution {
    pub(super) delta: Arc<Delta>,
    digest: [u8; 32],
}

impl Contribution {
    pub(super) fn new(delta: Arc<Delta>) -> Self {
        let digest = delta.digest();
        Self { delta, digest }
    }
}

/// A proposal of one member.
#[derive(Debug)]
struct Proposal {
    deltas: BTreeMap<PeerId, [u8; 32]>,
    /// What others than their authors have sent of them.
    relayed: BTreeMap<PeerId, Contribution>,
    /// The deltas that are missing were asked for.
    asked: bool,
}

/// What is there of the round in which a member is, of the one before it, and of those to come. Of each
/// member there is one delta in each of the three, and one proposal in the latter two.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Of the state, once there is one: a delta of another length makes useless each proposal that
    /// names it, and so it is as if it had not come.
    value_count: Option<usize>,
    here: BTreeMap<PeerId, Contribution>,
    early: BTreeMap<PeerId, (Stand, Contribution)>,
    former: Option<(Stand, BTreeMap<PeerId, Contribution>)>,
    proposals: BTreeMap<PeerId, Proposal>,
    early_proposals: BTreeMap<PeerId, (Stand, BTreeMap<PeerId, [u8; 32]>)>,
}

impl Gathered {
    /// The delta of a member, if it is here.
    pub(super) fn get(&self, author: PeerId) -> Option<&Contribution> {
        self.here.get(&author)
    }

    /// Whether there is room for what another member has learned, beside what this one has: members
    /// that come and go could tell without end.
    pub(super) fn has_room_beside(&self, own: PeerId) -> bool {
        self.here.keys().filter(|author| **author != own).count() + 1 < MEMBERS_MAX
    }

    /// A member has told what it has learned; the first time counts.
    pub(super) fn contributed(
        &mut self,
        own: Option<Stand>,
        (start, author): (Stand, PeerId),
        contribution: Contribution,
    ) {
        if self.value_count.is_some_and(|count| contribution.delta.value_count() != count) {
            tracing::warn!(%author, "what a member has learned is not of this run's length");
        } else if own == Some(start) {
            self.here.entry(author).or_insert(contribution);
        } else if own.is_none_or(|own| start.round > own.round) {
            self.early.insert(author, (start, contribution));
        }
    }

    /// A member that has told what it has learned has said which deltas are to count; its first word
    /// counts.
    pub(super) fn proposed(
        &mut self,
        own: Option<Stand>,
        (start, from): (Stand, PeerId),
        deltas: BTreeMap<PeerId, [u8; 32]>,
    ) {
        if own == Some(start) {
            if self.here.contains_key(&from) {
                let proposal = Proposal { deltas, relayed: BTreeMap::new(), asked: false };
                self.proposals.entry(from).or_insert(proposal);
            }
        } else if own.is_none_or(|own| start.round > own.round) {
            self.early_proposals.insert(from, (start, deltas));
        }
    }

    /// A delta has come by way of another member: it is used where a proposal names it.
    pub(super) fn relayed(&mut self, author: PeerId, contribution: Contribution) {
        for proposal in self.proposals.values_mut() {
            if proposal.deltas.get(&author) == Some(&contribution.digest) {
                proposal.relayed.insert(author, contribution.clone());
            }
        }
    }

    /// The delta of a member for another one that lacks it, in this round or the one before.
    pub(super) fn find(
        &self,
        own: Option<Stand>,
        start: Stand,
        author: PeerId,
    ) -> Option<Arc<Delta>> {
        let former = self.former.as_ref().filter(|(stand, _)| *stand == start);
        let of = if own == Some(start) { &self.here } else { &former?.1 };
        of.get(&author).map(|contribution| Arc::clone(&contribution.delta))
    }

    /// The digests of all deltas that are here.
    pub(super) fn digests(&self) -> BTreeMap<PeerId, [u8; 32]> {
        self.here.iter().map(|(author, contribution)| (*author, contribution.digest)).collect()
    }

    /// The how-manieth a member is to propose among those whose deltas are here, in an order that is
    /// another in each round; `None` where it has told nothing.
    pub(super) fn rank(&self, start: Stand, member: PeerId) -> Option<usize> {
        self.here.contains_key(&member).then(|| {
            let own = ticket(start, member);
            self.here.keys().filter(|other| ticket(start, **other) < own).count()
        })
    }

    /// The ranks of those whose proposals wait for their time.
    pub(super) fn proposers(&self, start: Stand) -> impl Iterator<Item = usize> {
        let waiting = self.proposals.iter().filter(|(_, proposal)| !proposal.asked);
        waiting.filter_map(move |(peer, _)| self.rank(start, *peer))
    }

    /// All who have proposed something for this round.
    pub(super) fn all_proposers(&self) -> impl Iterator<Item = PeerId> {
        self.proposals.keys().copied()
    }

    /// The member with the first turn whose proposal is `due`, by its rank and whether it names every delta
    /// that is here. Proposals that differ too much from what is here are dropped, and those whose deltas
    /// are still to come wait.
    pub(super) fn next_proposal(
        &mut self,
        start: Stand,
        due: impl Fn(usize, bool) -> bool,
    ) -> Option<PeerId> {
        let mut best: Option<(usize, PeerId)> = None;
        let mut refused = Vec::new();
        for (&peer, proposal) in &self.proposals {
            let Some(rank) = self.rank(start, peer) else { continue };
            let (lacking, foreign) = self.differences(proposal);
            if !due(rank, lacking == 0) || (proposal.asked && !self.missing(peer).is_empty()) {
                continue;
            }
            let allowed = (outliers(self.here.len()), outliers(proposal.deltas.len()));
            if lacking > allowed.0 || foreign > allowed.1 {
                refused.push(peer);
            } else if best.is_none_or(|best| rank < best.0) {
                best = Some((rank, peer));
            }
        }
        for peer in refused {
            tracing::warn!(proposer = %peer, "refused which deltas are to count");
            self.refuse(peer);
        }
        best.map(|(_, peer)| peer)
    }

    /// How many deltas that are here a proposal has not, and how many it has that are not here.
    fn differences(&self, proposal: &Proposal) -> (usize, usize) {
        let is_named = |(author, contribution): &(&PeerId, &Contribution)| {
            proposal.deltas.get(author) == Some(&contribution.digest)
        };
        let both = self.here.iter().filter(is_named).count();
        (self.here.len() - both, proposal.deltas.len() - both)
    }

    /// Whose deltas a proposal names that are not here.
    pub(super) fn missing(&self, proposer: PeerId) -> BTreeSet<PeerId> {
        let named = self.proposals.get(&proposer).into_iter().flat_map(|proposal| {
            proposal.deltas.iter().map(move |(author, digest)| (proposal, author, digest))
        });
        let is_missing = |(proposal, author, digest): &(&Proposal, &PeerId, &[u8; 32])| {
            let held = self.here.get(author).is_some_and(|held| held.digest == **digest);
            !held && !proposal.relayed.contains_key(author)
        };
        named.filter(is_missing).map(|(_, author, _)| *author).collect()
    }

    /// What is missing of a proposal was asked for.
    pub(super) fn asked(&mut self, proposer: PeerId) {
        if let Some(proposal) = self.proposals.get_mut(&proposer) {
            proposal.asked = true;
        }
    }

    /// The deltas of a proposal, in the order of their authors, if all are here.
    pub(super) fn chosen(&self, proposer: PeerId) -> Option<Vec<&Delta>> {
        let proposal = self.proposals.get(&proposer)?;
        let held = |(author, digest): (&PeerId, &[u8; 32])| {
            let here = self.here.get(author).filter(|held| held.digest == *digest);
            here.or_else(|| proposal.relayed.get(author)).map(|held| &*held.delta)
        };
        proposal.deltas.iter().map(held).collect()
    }

    /// Whether the delta of `author` counts by a proposal.
    pub(super) fn counts(&self, proposer: PeerId, author: PeerId) -> bool {
        let proposal = self.proposals.get(&proposer);
        proposal.is_some_and(|proposal| proposal.deltas.contains_key(&author))
    }

    /// Drops a proposal that leads nowhere.
    pub(super) fn refuse(&mut self, proposer: PeerId) {
        self.proposals.remove(&proposer);
    }

    /// A link is gone: what its peer has told in this round still counts, as it does for the others, but
    /// what was asked of it does not come.
    pub(super) fn left(&mut self, peer: PeerId) {
        if self.proposals.get(&peer).is_some_and(|proposal| proposal.asked) {
            self.refuse(peer);
        }
        self.early.remove(&peer);
        self.early_proposals.remove(&peer);
    }

    /// A member goes from one state to another, which has so many values.
    pub(super) fn advance(&mut self, own: Option<Stand>, next: Stand, value_count: usize) {
        self.value_count = Some(value_count);
        let ended = std::mem::take(&mut self.here);
        self.former = own.map(|own| (own, ended));
        self.proposals.clear();
        for (author, (start, contribution)) in std::mem::take(&mut self.early) {
            self.contributed(Some(next), (start, author), contribution);
        }
        for (from, (start, deltas)) in std::mem::take(&mut self.early_proposals) {
            self.proposed(Some(next), (start, from), deltas);
        }
    }
}

/// What decides whose turn is first in the round that began at `start`.
pub(super) fn ticket(start: Stand, member: PeerId) -> [u8; 32] {
    let hash = Sha256::new().chain_update(start.digest).chain_update(member.public_key());
    hash.finalize().into()
}
