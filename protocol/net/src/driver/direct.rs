//! Links that wait a moment for a direct connection to a peer that was met by a relay.
//!
//! Sessions live long, and what goes by a relay takes its way and its bytes. So who opens a link while a
//! direct connection is being tried waits for it, but not long, and not for a peer with which it came to
//! nothing lately. Questions to directories are short and come first: by the time of a session it is known.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::Instant;
use umbel_protocol::LinkProtocol;

use crate::links::OpenStream;

/// How long links wait, from when the peer was met, besides two round trips by the relay in which the two
/// agree and shake hands: whose first packet comes a moment before the other router lets it in sends it again
/// after a second (RFC 9002, section 6.2.2).
const WAIT: Duration = Duration::from_millis(1_100);
const ROUND_TRIPS: u32 = 2;

/// How long at most, however far the peer is. A session gives a server eight round trips to open, and 1.5 s
/// at least, from when the peer was asked for news.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// How long while nobody knows how far it is.
const WAIT_UNKNOWN: Duration = Duration::from_millis(1_300);

/// How long a peer counts as one that cannot be connected to directly.
const FAILED_FOR: Duration = Duration::from_secs(10 * 60);

/// Such peers at most; beyond them the one that has failed first is forgotten.
const FAILED_MAX: usize = 1024;

/// Links that wait for one peer. A client has 64 sessions on a server at most; the rest goes by the relay.
const WAITING_MAX: usize = 64;

/// Who is waited for. The limit on connections bounds them.
#[derive(Default)]
pub(super) struct Direct {
    trying: BTreeMap<PeerId, Trying>,
    failed: BTreeMap<PeerId, Instant>,
}

struct Trying {
    met: Instant,
    until: Instant,
    waiting: Vec<OpenStream>,
}

impl Direct {
    /// A peer is connected by a relay, and by nothing else.
    pub(super) fn met(&mut self, peer: PeerId, now: Instant) {
        self.failed.retain(|_, at| now < *at + FAILED_FOR);
        if !self.failed.contains_key(&peer) {
            let until = now + WAIT_UNKNOWN;
            let trying = || Trying { met: now, until, waiting: Vec::new() };
            self.trying.entry(peer).or_insert_with(trying);
        }
    }

    /// It is so far by the relay.
    pub(super) fn is_away(&mut self, peer: PeerId, round_trip: Duration) {
        if let Some(trying) = self.trying.get_mut(&peer) {
            trying.until = trying.met + (WAIT + round_trip * ROUND_TRIPS).min(WAIT_MAX);
        }
    }

    /// Lets a link wait; gives it back where there is nothing to wait for.
    pub(super) fn wait(&mut self, peer: PeerId, request: OpenStream) -> Option<OpenStream> {
        if request.protocol == LinkProtocol::Directory {
            return Some(request);
        }
        match self.trying.get_mut(&peer) {
            Some(trying) if trying.waiting.len() < WAITING_MAX => {
                trying.waiting.push(request);
                None
            }
            Some(_) | None => Some(request),
        }
    }

    /// There is a direct connection. The links that have waited for it.
    pub(super) fn found(&mut self, peer: PeerId) -> Vec<OpenStream> {
        self.failed.remove(&peer);
        self.left(peer)
    }

    /// There is none, and will be none soon. The links that have waited for it.
    pub(super) fn failed(&mut self, peer: PeerId, now: Instant) -> Vec<OpenStream> {
        if self.failed.len() >= FAILED_MAX {
            let first = self.failed.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer);
            self.failed.remove(&first.expect("there are many"));
        }
        self.failed.insert(peer, now);
        self.left(peer)
    }

    /// The peer has gone. The links that have waited for it.
    pub(super) fn left(&mut self, peer: PeerId) -> Vec<OpenStream> {
        self.trying.remove(&peer).map(|trying| trying.waiting).unwrap_or_default()
    }

    /// When the next peer has been waited for long enough.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.trying.values().map(|trying| trying.until).min()
    }

    /// A peer that has been.
    pub(super) fn overdue(&self, now: Instant) -> Option<PeerId> {
        let mut overdue = self.trying.iter().filter(|(_, trying)| trying.until <= now);
        overdue.next().map(|(peer, _)| *peer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn request() -> OpenStream {
        OpenStream { protocol: LinkProtocol::Session, local: false, reply: oneshot::channel().0 }
    }

    #[test]
    fn links_wait_once_and_not_for_a_peer_that_has_failed_lately() {
        let (mut direct, peer, now) = (Direct::default(), PeerId::random(), Instant::now());
        assert!(direct.wait(peer, request()).is_some(), "nothing is tried");
        direct.met(peer, now);
        let question = OpenStream { protocol: LinkProtocol::Directory, ..request() };
        assert!(direct.wait(peer, question).is_some(), "it is over soon");
        assert!(direct.wait(peer, request()).is_none());
        assert_eq!(direct.overdue(now), None);
        let until = direct.wakes_at().unwrap();
        assert_eq!(direct.overdue(until), Some(peer));
        assert_eq!(direct.failed(peer, until).len(), 1);
        direct.met(peer, until);
        assert!(direct.wait(peer, request()).is_some(), "it has failed just now");
        direct.met(peer, until + FAILED_FOR);
        assert!(direct.wait(peer, request()).is_none());
        assert_eq!(direct.found(peer).len(), 1);
        assert_eq!(direct.wakes_at(), None);
    }

    #[test]
    fn who_is_farther_is_waited_for_longer() {
        let (mut direct, peer, now) = (Direct::default(), PeerId::random(), Instant::now());
        direct.met(peer, now);
        for (milliseconds, wait) in [(1, 1_102), (200, 1_500), (3_000, 2_000)] {
            direct.is_away(peer, Duration::from_millis(milliseconds));
            assert_eq!(direct.wakes_at(), Some(now + Duration::from_millis(wait)));
        }
    }

    #[test]
    fn neither_links_nor_peers_fill_the_memory() {
        let (mut direct, peer, now) = (Direct::default(), PeerId::random(), Instant::now());
        direct.met(peer, now);
        let refused = (0..100).filter(|_| direct.wait(peer, request()).is_some()).count();
        assert_eq!(refused, 100 - WAITING_MAX);
        for _ in 0..2 * FAILED_MAX {
            direct.failed(PeerId::random(), now);
        }
        assert_eq!(direct.failed.len(), FAILED_MAX);
    }
}
