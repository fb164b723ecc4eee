//! How far away peers are.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use umbel_protocol::PeerId;

/// Of so many pings the shortest counts: a peer that is busy for a moment, or computes a short pass where
/// it answers pings, is no farther away for it.
const PINGS: usize = 4;

/// The last round trips to each peer, on the connection on which links are opened.
#[derive(Debug, Default)]
pub(crate) struct RoundTrips(BTreeMap<PeerId, Recent>);

#[derive(Debug)]
struct Recent {
    connection: ConnectionId,
    last: VecDeque<Duration>,
}

impl RoundTrips {
    /// Adds one that was measured. Those of another connection say nothing of this one.
    pub(super) fn add(&mut self, peer: PeerId, connection: ConnectionId, round_trip: Duration) {
        let recent = self.0.entry(peer).or_insert(Recent { connection, last: VecDeque::new() });
        if recent.connection != connection {
            *recent = Recent { connection, last: VecDeque::new() };
        }
        if recent.last.len() == PINGS {
            recent.last.pop_front();
        }
        recent.last.push_back(round_trip);
    }

    pub(super) fn remove(&mut self, peer: PeerId) {
        self.0.remove(&peer);
    }

    /// The shortest of the last ones.
    pub(crate) fn shortest(&self, peer: PeerId) -> Option<Duration> {
        self.0.get(&peer)?.last.iter().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_of_the_last_pings_on_a_connection_counts() {
        let peer = PeerId::from_public_key([3; 32]);
        let [one, other] = [1, 2].map(ConnectionId::new_unchecked);
        let mut trips = RoundTrips::default();
        assert_eq!(trips.shortest(peer), None);
        let mut after = |connection, ms| {
            trips.add(peer, connection, Duration::from_millis(ms));
            trips.shortest(peer).unwrap().as_millis()
        };
        assert_eq!([30, 12, 90, 41].map(|ms| after(one, ms)), [30, 12, 12, 12]);
        // The peer has moved away, which shows once those from before are forgotten.
        assert_eq!([60, 60, 60].map(|ms| after(one, ms)), [12, 41, 41]);
        assert_eq!(after(one, 60), 60);
        // The other connection leads through a relay.
        assert_eq!([200, 210].map(|ms| after(other, ms)), [200, 200]);
        assert_eq!(after(one, 70), 70);
        trips.remove(peer);
        assert_eq!(trips.shortest(peer), None);
    }
}
