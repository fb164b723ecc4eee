//! Whether others can come in, as they have found out.

use std::time::Duration;

use libp2p::Multiaddr;
use tokio::time::Instant;
use umbel_protocol::PeerId;

use crate::address::is_private;

/// What came of a peer's try to dial this one where it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reachability {
    /// The address that it tried: this peer's own, or that of a router before it.
    pub address: Multiaddr,
    /// Who tried.
    pub by: PeerId,
    /// Why it did not come in; `None` where it did.
    pub failure: Option<String>,
}

/// How others reach this peer, as far as it knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// What those say who have dialled it back.
    pub verdict: Verdict,
    /// The relays at which it has a place.
    pub relays: Vec<PeerId>,
}

/// Whether a peer can be reached where it listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Nobody has said, or it has not been asked.
    #[default]
    Unknown,
    /// Somebody came in.
    Open,
    /// Some tried, and none came in.
    Shut,
}

/// How long after the first failure another address, or the other transport, may still turn out to be open:
/// peers are asked every five seconds, and a dial that is dropped on the way takes ten.
const SETTLING: Duration = Duration::from_secs(15);

/// Weighs what comes of dials back. Where peers see this one at a public address, those that see it at a
/// private one are on its side of the router, and say nothing of the others.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    public: Seen,
    private: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    came_in: bool,
    failed_first: Option<Instant>,
}

impl Seen {
    const fn is_some(&self) -> bool {
        self.came_in || self.failed_first.is_some()
    }
}

impl Judge {
    /// Somebody has tried.
    pub(crate) fn heard(&mut self, address: &Multiaddr, came_in: bool, now: Instant) {
        let seen = if is_private(address) { &mut self.private } else { &mut self.public };
        if came_in {
            seen.came_in = true;
        } else {
            seen.failed_first.get_or_insert(now);
        }
    }

    /// What all of them together say.
    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        let seen = self.weighty();
        match seen.failed_first {
            _ if seen.came_in => Verdict::Open,
            Some(at) if now >= at + SETTLING => Verdict::Shut,
            Some(_) | None => Verdict::Unknown,
        }
    }

    /// When the verdict may be another one though nobody has tried again.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        let seen = self.weighty();
        seen.failed_first.filter(|_| !seen.came_in).map(|at| at + SETTLING)
    }

    const fn weighty(&self) -> &Seen {
        if self.public.is_some() { &self.public } else { &self.private }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str) -> Multiaddr {
        format!("/ip4/{host}/tcp/4001").parse().unwrap()
    }

    #[test]
    fn one_who_comes_in_is_enough_and_failures_count_once_they_have_settled() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        let public = address("203.0.113.7");
        assert_eq!((judge.verdict(start), judge.settles_at()), (Verdict::Unknown, None));
        judge.heard(&public, false, start);
        assert_eq!(judge.verdict(start), Verdict::Unknown, "TCP may be open");
        let settled = judge.settles_at().unwrap();
        assert_eq!(judge.verdict(settled), Verdict::Shut);
        judge.heard(&public, true, settled);
        assert_eq!((judge.verdict(settled), judge.settles_at()), (Verdict::Open, None));
    }

    #[test]
    fn neighbours_who_come_in_say_nothing_of_those_outside() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        judge.heard(&address("192.168.1.5"), true, start);
        assert_eq!(judge.verdict(start), Verdict::Open, "nobody else is known");
        judge.heard(&address("203.0.113.7"), false, start);
        assert_eq!(judge.verdict(start + SETTLING), Verdict::Shut);
    }
}
