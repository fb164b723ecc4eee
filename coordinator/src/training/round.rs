//! Trainers who share a run: each learns by itself for a while, and in rounds they put together what they
//! have learned, without anybody in the middle.
//!
//! A round begins with the same [`RunState`] everywhere. When the time to learn is over, each member tells
//! all others by how much its values have changed ([`Delta`]). One of them then says which deltas count,
//! everybody combines these in one order ([`combine`]) and takes the same [`OuterStep`], and so comes to
//! the same bits; the digest of a state is its name. The outer optimizer is that of DiLoCo (Douillard et
//! al. 2023, <https://arxiv.org/abs/2311.08105>).
//!
//! Nobody is waited for. Who proposes first follows from the state and the members' names; where it is
//! silent, the next one's turn comes. Who has nothing to tell when it is time is left out of one round. Who
//! has missed a round, or joins, gets the state from others, once more than a third of those that have one stand there. Members
//! that were told of different sets, since one that proposed has died or lied, come together in the same
//! way: at the state at which most stand.
//!
//! A member that lies can send what it likes as what it has learned, against which there is
//! [`Rule::TrimmedMean`]; and it can, in its turn, leave out or make up as many deltas as that rule
//! bears ([`outliers`](combine::outliers)), since the others refuse a proposal that differs by more
//! from what they hold.

pub mod combine;
pub mod delta;
mod follow;
mod gathered;
pub mod state;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use umbel_protocol::PeerId;

use crate::time::Time;
pub use combine::Rule;
pub use delta::{Delta, Feedback};
use follow::Follow;
use gathered::{Contribution, Gathered};
pub use state::{OuterStep, RunState};
pub use umbel_protocol::averaging::Stand;
pub use words::{Input, Message, Output, RunSettings};

/// Members of a run: each holds a delta of each other for two rounds, so that an adapter of a million
/// values takes 128 MB of each at most.
pub const MEMBERS_MAX: usize = 64;

/// A trainer's part in a run.
#[derive(Debug)]
pub struct Member {
    own: PeerId,
    settings: RunSettings,
    /// `None` until another has sent it.
    state: Option<(Stand, Arc<RunState>)>,
    /// When the round began here.
    begun: Time,
    /// It was asked what it has learned.
    asked: bool,
    /// It has said which deltas are to count.
    proposed: bool,
    /// The others, and where they stand.
    peers: BTreeMap<PeerId, Option<Stand>>,
    gathered: Gathered,
    /// What the deltas so far have left out, and what will be left out if the last one counts.
    feedback: Feedback,
    feedback_next: Option<Feedback>,
    follow: Follow,
    outputs: VecDeque<Output>,
}

impl Member {
    /// One that begins a run with `state`, as others may do at once; or, without one, joins those that it
    /// meets.
    #[must_use]
    pub fn new(own: PeerId, settings: RunSettings, state: Option<RunState>, now: Time) -> Self {
        let mut member = Self {
            own,
            settings,
            state: None,
            begun: now,
            asked: false,
            proposed: false,
            peers: BTreeMap::new(),
            gathered: Gathered::default(),
            feedback: Feedback::default(),
            feedback_next: None,
            follow: Follow::default(),
            outputs: VecDeque::new(),
        };
        if let Some(state) = state {
            member.advance(Arc::new(state), now);
        }
        member
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, input: Input, now: Time) {
        match input {
            Input::Met { peer } => self.met(peer),
            Input::Left { peer } => {
                self.peers.remove(&peer);
                self.gathered.left(peer);
                self.follow.left(peer);
            }
            Input::Received { from, message } if self.peers.contains_key(&from) => {
                self.received(from, message, now);
            }
            Input::Received { from, .. } => tracing::debug!(%from, "no member speaks"),
            Input::Learned { round, values } => self.learned(round, &values),
        }
        self.settle(now);
    }

    /// When [`Member::handle_timeout`] is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let follow = self.follow.timer();
        let Some((start, _)) = self.state else { return follow };
        let learn = (!self.asked).then_some(self.begun + self.settings.learn);
        let rank = self.gathered.rank(start, self.own);
        let propose = rank.filter(|_| !self.proposed).map(|rank| self.turn(rank));
        let accept = self
            .gathered
            .proposers(start)
            .map(|rank| acceptable(self.settings, self.begun, rank))
            .min();
        [follow, learn, propose, accept].into_iter().flatten().min()
    }

    /// Does what it is time for.
    pub fn handle_timeout(&mut self, now: Time) {
        self.settle(now);
    }

    /// What to do next; drain it before waiting.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The state of the last round, if there is one.
    #[must_use]
    pub fn state(&self) -> Option<&RunState> {
        self.state.as_ref().map(|(_, state)| &**state)
    }

    /// Members that are met at the moment, and this one.
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.peers.len() + 1
    }

    fn stand(&self) -> Option<Stand> {
        self.state.as_ref().map(|(stand, _)| *stand)
    }

    fn met(&mut self, peer: PeerId) {
        if peer == self.own || self.peers.len() + 1 >= MEMBERS_MAX {
            tracing::warn!(%peer, "a run has {MEMBERS_MAX} members, each once");
            return;
        }
        self.peers.entry(peer).or_default();
        self.send(peer, Message::Stand(self.stand()));
        if let (Some(start), Some(own)) = (self.stand(), self.gathered.get(self.own)) {
            let delta = Arc::clone(&own.delta);
            self.send(peer, Message::Contribution { start, delta });
        }
    }

    fn received(&mut self, from: PeerId, message: Message, now: Time) {
        match message {
            Message::Stand(stand) => {
                self.peers.insert(from, stand);
            }
            Message::Contribution { start, delta } => {
                if self.gathered.has_room_beside(self.own) {
                    let contribution = Contribution::new(delta);
                    self.gathered.contributed(self.stand(), (start, from), contribution);
                }
            }
            Message::Proposal { start, deltas } => {
                if deltas.len() <= MEMBERS_MAX {
                    self.gathered.proposed(self.stand(), (start, from), deltas);
                }
            }
            Message::WantDelta { start, author } => {
                if let Some(delta) = self.gathered.find(self.stand(), start, author) {
                    self.send(from, Message::Relayed { start, author, delta });
                }
            }
            Message::Relayed { start, author, delta } => {
                if self.stand() == Some(start) {
                    self.gathered.relayed(author, Contribution::new(delta));
                }
            }
            Message::WantState(stand) => {
                if let Some((_, state)) = self.state.as_ref().filter(|(own, _)| *own == stand) {
                    let state = Arc::clone(state);
                    self.send(from, Message::State(state));
                }
            }
            Message::State(state) => {
                let fits =
                    self.state().is_none_or(|own| own.values().len() == state.values().len());
                if fits && self.follow.answered(from, state.stand()) {
                    self.advance(state, now);
                }
            }
        }
    }

    /// Tells the others what was learned.
    fn learned(&mut self, round: u64, values: &[f32]) {
        let Some((start, state)) = self.state.as_ref().filter(|(stand, _)| stand.round == round)
        else {
            return;
        };
        let (start, is_first) = (*start, self.gathered.get(self.own).is_none());
        if !is_first || values.len() != state.values().len() {
            return;
        }
        let change: Vec<f32> =
            state.values().iter().zip(values).map(|(start, end)| start - end).collect();
        let Some((delta, left_out)) = self.feedback.narrow(&change) else {
            tracing::warn!(round, "what was learned is no number, and is not told");
            return;
        };
        let delta = Arc::new(delta);
        self.feedback_next = Some(left_out);
        let contribution = Contribution::new(Arc::clone(&delta));
        self.gathered.contributed(Some(start), (start, self.own), contribution);
        self.send_all(&Message::Contribution { start, delta });
    }

    /// Does everything for which it is time, and for which everything is there.
    fn settle(&mut self, now: Time) {
        while self.accept(now) || self.follow(now) {}
        let Some((start, state)) = &self.state else { return };
        let (start, round) = (*start, state.round());
        if !self.asked && now >= self.begun + self.settings.learn {
            self.asked = true;
            self.outputs.push_back(Output::Learned { round });
        }
        let Some(rank) = self.gathered.rank(start, self.own).filter(|_| !self.proposed) else {
            return;
        };
        if now >= self.turn(rank) || (rank == 0 && self.is_complete(start)) {
            self.proposed = true;
            let deltas = self.gathered.digests();
            self.send_all(&Message::Proposal { start, deltas: deltas.clone() });
            self.gathered.proposed(Some(start), (start, self.own), deltas);
            while self.accept(now) || self.follow(now) {}
        }
    }

    /// Whether all who stand where this member does have told what they have learned.
    fn is_complete(&self, start: Stand) -> bool {
        let here = self.peers.iter().filter(|(_, stand)| **stand == Some(start));
        here.map(|(peer, _)| *peer).chain([self.own]).all(|peer| self.gathered.get(peer).is_some())
    }

    /// From when on the member of this rank may propose where others are silent.
    fn turn(&self, rank: usize) -> Time {
        let turns = u32::try_from(rank + 1).unwrap_or(u32::MAX);
        self.begun + self.settings.learn + self.settings.gather.saturating_mul(turns)
    }

    /// Ends the round by a proposal for which it is time; whether there was one.
    fn accept(&mut self, now: Time) -> bool {
        let Some((start, state)) = self.state.clone() else { return false };
        let complete = self.is_complete(start);
        let (settings, begun) = (self.settings, self.begun);
        let due =
            |rank: usize, all: bool| (complete && all) || now >= acceptable(settings, begun, rank);
        let Some(proposer) = self.gathered.next_proposal(start, due) else { return false };
        let missing = self.gathered.missing(proposer);
        if !missing.is_empty() {
            self.gathered.asked(proposer);
            for author in missing {
                self.send(proposer, Message::WantDelta { start, author });
            }
            return true;
        }
        let next = self.outcome(&state, proposer);
        match next {
            Some(next) => self.advance_with(proposer, Arc::new(next), now),
            None => self.gathered.refuse(proposer),
        }
        true
    }

    /// The state to which a proposal leads of which every delta is here.
    fn outcome(&self, state: &RunState, proposer: PeerId) -> Option<RunState> {
        let count = state.values().len();
        let deltas = self.gathered.chosen(proposer)?;
        let fits = !deltas.is_empty() && deltas.iter().all(|delta| delta.value_count() == count);
        let deltas = fits.then_some(deltas)?;
        state.step(&combine::combine(self.settings.rule, &deltas, count), self.settings.outer)
    }

    /// Goes to the state to which a proposal has led.
    fn advance_with(&mut self, proposer: PeerId, state: Arc<RunState>, now: Time) {
        let counted = self.gathered.counts(proposer, self.own);
        // What did not count is not made up for: it was learned from a state that is gone.
        if let Some(left_out) = self.feedback_next.take().filter(|_| counted) {
            self.feedback = left_out;
        }
        self.advance(state, now);
    }

    fn advance(&mut self, state: Arc<RunState>, now: Time) {
        let stand = state.stand();
        self.gathered.advance(self.stand(), stand, state.values().len());
        self.feedback_next = None;
        self.follow = Follow::default();
        self.state = Some((stand, Arc::clone(&state)));
        (self.begun, self.asked, self.proposed) = (now, false, false);
        self.send_all(&Message::Stand(Some(stand)));
        self.outputs.push_back(Output::Begin { state });
    }

    /// Goes where most of the others stand, if that is not here; whether it got there at once.
    fn follow(&mut self, now: Time) -> bool {
        let Some(target) = self.follow.target(self.stand(), &self.peers) else {
            self.follow = Follow::default();
            return false;
        };
        if !self.follow.is_time(target, now, self.settings.gather / 2) {
            return false;
        }
        // A proposal that leads there may be here already, and its deltas too.
        if let Some((_, state)) = self.state.clone() {
            let proposers: Vec<_> = self.gathered.all_proposers().collect();
            for proposer in proposers {
                let next = self.outcome(&state, proposer).filter(|next| next.stand() == target);
                if let Some(next) = next {
                    self.advance_with(proposer, Arc::new(next), now);
                    return true;
                }
            }
        }
        if let Some(peer) = self.follow.ask(&self.peers, now, self.settings.gather) {
            self.send(peer, Message::WantState(target));
        }
        false
    }

    fn send(&mut self, to: PeerId, message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    fn send_all(&mut self, message: &Message) {
        for &to in self.peers.keys() {
            self.outputs.push_back(Output::Send { to, message: message.clone() });
        }
    }
}

/// From when on the proposal of a member of this rank is taken: others' rounds may have begun a little
/// earlier than the one that has `begun` here.
fn acceptable(settings: RunSettings, begun: Time, rank: usize) -> Time {
    let turns = u32::try_from(rank).unwrap_or(u32::MAX);
    let before = settings.gather.saturating_mul(turns) + settings.gather / 2;
    begun + settings.learn + before
}

#[cfg(test)]
mod tests;
