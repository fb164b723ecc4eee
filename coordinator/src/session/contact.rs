//! What a process hears of each peer, over the links of all its sessions.
//!
//! Whoever answers one session is there for all of them. A gateway has a hundred sessions on one
//! server: if each asked for itself whether the server is there, the questions would be most of what
//! a busy server reads, and each answer would be late by all the others. So one asks for all, and
//! what any of them hears counts for all. A server that has stopped says nothing to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use umbel_protocol::inference::{ClientMessage, ServerMessage};
use umbel_protocol::{PeerId, SessionId};

use crate::time::Time;

/// Most peers that are remembered: four times the hops of 64 sessions. Of more, the one of which
/// nothing was heard for longest is forgotten, which costs its sessions questions of their own.
const PEERS_MAX: usize = 1_024;

/// Most sessions of a peer that are counted: beyond, one more changes nothing.
const SESSIONS_COUNTED_MAX: usize = 256;

/// What is heard of all peers. Bodies show it every message; times are those of one clock, which all
/// sessions share.
#[derive(Debug, Default)]
pub struct Contacts {
    peers: BTreeMap<PeerId, Peer>,
}

/// What is heard of one peer.
#[derive(Debug, Default)]
struct Peer {
    heard: Option<Time>,
    /// Sessions that have been opened there, or are about to be.
    sessions: BTreeSet<SessionId>,
    /// Who asked last whether it is there, and when, and has had no answer.
    question: Option<(SessionId, Time)>,
    /// The same of who has waited longest.
    oldest: Option<(SessionId, Time)>,
    /// How long it takes to say so.
    round_trip: Option<RoundTrip>,
}

/// What a session learns of that.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Contact {
    /// When the peer last said something to anybody.
    pub(super) heard: Option<Time>,
    /// When it was asked, if it has said nothing since.
    pub(super) asked: Option<Time>,
    /// What nearly all of its answers come within, as far as is known.
    pub(super) bound: Option<Duration>,
    /// How many sessions of the process it serves.
    pub(super) session_count: usize,
}

/// A smoothed round trip and its variation, as TCP keeps them (RFC 6298).
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundTrip {
    pub(super) smoothed: Duration,
    variation: Duration,
}

impl Contacts {
    /// A peer has said this on any link of the process.
    pub fn hears(&mut self, peer: PeerId, message: &ServerMessage, now: Time) {
        let peer = self.peer(peer);
        peer.heard = peer.heard.max(Some(now));
        if let ServerMessage::Pong { session, .. } = message {
            peer.drop_questions(*session);
        }
    }

    /// A session says this to a peer, if it is known to whom. Once it has left, nobody hears the
    /// answer to what it asked.
    pub fn says(&mut self, peer: Option<PeerId>, message: &ClientMessage) {
        if let ClientMessage::Close { session } = message {
            for peer in self.peers.values_mut() {
                peer.drop_questions(*session);
                peer.sessions.remove(session);
            }
        } else if let (Some(peer), ClientMessage::Open(open)) = (peer, message) {
            let sessions = &mut self.peer(peer).sessions;
            if sessions.len() < SESSIONS_COUNTED_MAX {
                sessions.insert(open.session);
            }
        }
    }

    /// A session asks a peer whether it is there; `for_all` where the answer has nothing to wait for.
    pub(super) fn asks(&mut self, peer: PeerId, session: SessionId, for_all: bool, now: Time) {
        let peer = self.peer(peer);
        peer.oldest.get_or_insert((session, now));
        if for_all {
            peer.question = Some((session, now));
        }
    }

    /// So long it took until a session heard the answer.
    pub(super) fn took(&mut self, peer: PeerId, round_trip: Duration) {
        RoundTrip::note(&mut self.peer(peer).round_trip, round_trip);
    }

    pub(super) fn of(&self, peer: PeerId) -> Contact {
        self.peers.get(&peer).map(Peer::contact).unwrap_or_default()
    }

    fn peer(&mut self, peer: PeerId) -> &mut Peer {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&peer) {
            let longest = self.peers.iter().min_by_key(|(_, peer)| peer.heard);
            if let Some(longest) = longest.map(|(peer, _)| *peer) {
                self.peers.remove(&longest);
            }
        }
        self.peers.entry(peer).or_default()
    }
}

impl Peer {
    fn contact(&self) -> Contact {
        let asked = self.question.map(|(_, at)| at);
        // An answer that is missing was no less late than this when the peer was last heard.
        let late = self.oldest.zip(self.heard).map(|((_, asked), heard)| heard.since(asked));
        Contact {
            heard: self.heard,
            asked: asked.filter(|asked| self.heard.is_none_or(|heard| heard <= *asked)),
            bound: late.max(self.round_trip.as_ref().map(RoundTrip::bound)),
            session_count: self.sessions.len(),
        }
    }

    fn drop_questions(&mut self, of: SessionId) {
        self.question.take_if(|(asking, _)| *asking == of);
        self.oldest.take_if(|(asking, _)| *asking == of);
    }
}

impl RoundTrip {
    pub(super) fn first(sample: Duration) -> Self {
        Self { smoothed: sample, variation: sample / 2 }
    }

    /// Adds a sample to what is known, if anything is.
    pub(super) fn note(known: &mut Option<Self>, sample: Duration) {
        let trip = known.get_or_insert(Self::first(sample));
        let deviation = sample.abs_diff(trip.smoothed);
        trip.variation = trip.variation * 3 / 4 + deviation / 4;
        trip.smoothed = trip.smoothed * 7 / 8 + sample / 8;
    }

    /// What nearly all round trips are within.
    pub(super) fn bound(&self) -> Duration {
        self.smoothed + self.variation * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::after_start(Duration::from_millis(milliseconds))
    }

    fn peer(name: u64) -> PeerId {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&name.to_le_bytes());
        PeerId::from_public_key(key)
    }

    fn pong(session: u128) -> ServerMessage {
        let session = SessionId::new(session);
        ServerMessage::Pong { session, received: 0, computed: 0 }
    }

    #[test]
    fn one_question_counts_for_all_until_anything_is_heard() {
        let mut contacts = Contacts::default();
        contacts.asks(peer(1), SessionId::new(1), true, at(10));
        assert_eq!(contacts.of(peer(1)).asked, Some(at(10)));
        contacts.hears(peer(1), &pong(2), at(12));
        assert_eq!(contacts.of(peer(1)).asked, None, "it is there, whoever asked");
        contacts.asks(peer(1), SessionId::new(3), false, at(15));
        assert_eq!(contacts.of(peer(1)).asked, None, "this one is known to take long");
    }

    #[test]
    fn an_answer_that_is_missing_while_others_come_says_how_late_all_may_be() {
        let mut contacts = Contacts::default();
        contacts.asks(peer(1), SessionId::new(1), true, at(10));
        contacts.asks(peer(1), SessionId::new(2), true, at(200));
        let bound = |contacts: &Contacts| contacts.of(peer(1)).bound;
        assert_eq!(bound(&contacts), None);
        contacts.hears(peer(1), &pong(2), at(310));
        assert_eq!(bound(&contacts), Some(Duration::from_millis(300)));
        contacts.hears(peer(1), &pong(1), at(400));
        assert_eq!(bound(&contacts), None, "none is missing");
        contacts.took(peer(1), Duration::from_millis(20));
        // 20 ms, and four times a variation of 7.5.
        assert_eq!(bound(&contacts), Some(Duration::from_millis(50)));
    }

    #[test]
    fn the_question_of_who_has_left_counts_for_nobody() {
        let mut contacts = Contacts::default();
        contacts.asks(peer(1), SessionId::new(1), true, at(10));
        contacts.says(None, &ClientMessage::Close { session: SessionId::new(2) });
        assert_eq!(contacts.of(peer(1)).asked, Some(at(10)));
        contacts.says(None, &ClientMessage::Close { session: SessionId::new(1) });
        assert_eq!(contacts.of(peer(1)).asked, None);
    }

    #[test]
    fn of_too_many_peers_those_are_forgotten_of_which_nothing_is_heard() {
        let mut contacts = Contacts::default();
        for name in 0..2_000 {
            contacts.hears(peer(name), &pong(1), at(name));
            contacts.hears(peer(0), &pong(1), at(name));
        }
        assert_eq!(contacts.peers.len(), PEERS_MAX);
        assert!(contacts.of(peer(1)).heard.is_none());
        assert_eq!(contacts.of(peer(0)).heard, Some(at(1_999)));
    }
}
