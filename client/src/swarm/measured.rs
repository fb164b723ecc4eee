//! What servers do, as the traces of this client's own steps show it: it counts more than what they say of
//! themselves in announcements.
//!
//! Only steps of one token are taken, which is what an announced speed is of. Such a step may share a pass
//! with prompts and with steps of others, and then takes longer than alone; but never less. So a shorter
//! time is believed at once, and a longer one little by little.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_coordinator::{Hop, Time};
use umbel_protocol::PeerId;
use umbel_protocol::inference::HopTiming;

/// One part in so many of a longer time goes into what is known: a pass or two with a prompt hardly count,
/// and a server that is slower than it was is known as such after some sixteen tokens.
const LONGER: u32 = 16;

/// Steps of a server until they count: the first ones may wake its threads, and read its weights.
const STEPS_MIN: u32 = 8;

/// How long a measurement holds: a server that was slow is given another chance then.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// Most servers that are remembered: as many as are known.
const SERVERS_MAX: usize = 1_024;

/// Most ways between two servers that are remembered: those of some hundreds of routes.
const LINKS_MAX: usize = 1_024;

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    servers: BTreeMap<PeerId, Server>,
    links: BTreeMap<(PeerId, PeerId), (Duration, Time)>,
}

#[derive(Debug, Clone, Copy)]
struct Server {
    /// Of one token through one block.
    time: Duration,
    steps: u32,
    at: Time,
}

impl Measured {
    /// Takes note of a step of one token that took `total` along these hops. What a trace says of others
    /// than them nobody has measured, and a server computes for no longer than the step takes.
    pub(super) fn note(&mut self, hops: &[Hop], trace: &[HopTiming], total: Duration, now: Time) {
        let is_hop = |timing: &HopTiming| {
            hops.iter().any(|hop| (hop.peer, hop.blocks) == (timing.peer, timing.span))
        };
        for timing in trace.iter().filter(|timing| is_hop(timing)) {
            let sample = timing.compute.min(total) / timing.span.block_count();
            self.note_server(timing.peer, sample, now);
        }
        for pair in trace.windows(2) {
            if let (&[from, to], Some(round_trip)) = (pair, pair[0].link_round_trip)
                && is_hop(&from)
                && is_hop(&to)
            {
                self.note_link((from.peer, to.peer), round_trip, now);
            }
        }
    }

    /// Times of one token through one block.
    pub(super) fn block_times(&self, now: Time) -> BTreeMap<PeerId, Duration> {
        let known = self.servers.iter().filter(|(_, server)| server.counts(now));
        known.map(|(peer, server)| (*peer, server.time)).collect()
    }

    /// Round trips between an earlier and a later server.
    pub(super) fn link_round_trips(&self, now: Time) -> BTreeMap<(PeerId, PeerId), Duration> {
        let known = self.links.iter().filter(|(_, (_, at))| now.since(*at) < KEPT_FOR);
        known.map(|(link, (round_trip, _))| (*link, *round_trip)).collect()
    }

    fn note_server(&mut self, peer: PeerId, sample: Duration, now: Time) {
        let known = self.servers.get(&peer).filter(|known| now.since(known.at) < KEPT_FOR);
        let server = match known {
            None => Server { time: sample, steps: 1, at: now },
            Some(&Server { time, steps, .. }) => {
                let longer = sample.saturating_sub(time);
                let time = sample.min(time) + longer / LONGER;
                Server { time, steps: steps.saturating_add(1), at: now }
            }
        };
        if self.servers.len() >= SERVERS_MAX && !self.servers.contains_key(&peer) {
            self.servers.retain(|_, known| now.since(known.at) < KEPT_FOR);
        }
        if self.servers.len() < SERVERS_MAX || self.servers.contains_key(&peer) {
            self.servers.insert(peer, server);
        }
    }

    fn note_link(&mut self, link: (PeerId, PeerId), round_trip: Duration, now: Time) {
        if self.links.len() >= LINKS_MAX && !self.links.contains_key(&link) {
            self.links.retain(|_, (_, at)| now.since(*at) < KEPT_FOR);
        }
        if self.links.len() < LINKS_MAX || self.links.contains_key(&link) {
            self.links.insert(link, (round_trip, now));
        }
    }
}

impl Server {
    fn counts(&self, now: Time) -> bool {
        self.steps >= STEPS_MIN && now.since(self.at) < KEPT_FOR
    }
}

#[cfg(test)]
mod tests {
    use umbel_protocol::Span;

    use super::*;

    const ME: PeerId = PeerId::from_public_key([1; 32]);
    const NEXT: PeerId = PeerId::from_public_key([2; 32]);
    const FAR: Duration = Duration::from_secs(60);

    fn hop(peer: PeerId, start: u32, end: u32) -> Hop {
        Hop { peer, blocks: Span::new(start, end).unwrap() }
    }

    fn timing(of: Hop, compute_ms: u64, link_ms: Option<u64>) -> HopTiming {
        HopTiming {
            peer: of.peer,
            span: of.blocks,
            queue: Duration::ZERO,
            compute: Duration::from_millis(compute_ms),
            hop: Duration::ZERO,
            link_round_trip: link_ms.map(Duration::from_millis),
        }
    }

    fn block_time(measured: &Measured, now: Time) -> Option<Duration> {
        measured.block_times(now).get(&ME).copied()
    }

    #[test]
    fn a_step_that_shares_its_pass_hardly_counts_and_a_server_that_is_slow_throughout_does() {
        let (mut measured, now, hops) = (Measured::default(), Time::START, [hop(ME, 0, 4)]);
        let mut step = |compute_ms: u64| {
            measured.note(&hops, &[timing(hops[0], compute_ms, None)], FAR, now);
            block_time(&measured, now)
        };
        assert!((1..STEPS_MIN).all(|_| step(40).is_none()), "the first ones count for nothing");
        assert_eq!(step(8), Some(Duration::from_millis(2)), "it computes no faster than it can");
        let with_a_prompt = step(40).unwrap();
        assert!(with_a_prompt < Duration::from_millis(3), "{with_a_prompt:?}");
        (0..64).for_each(|_| assert!(step(40).is_some()));
        let slow = step(40).unwrap();
        assert!(slow > Duration::from_millis(9), "{slow:?}");
        assert_eq!(block_time(&measured, now + KEPT_FOR), None, "that is long ago");
    }

    #[test]
    fn what_is_said_of_others_than_the_hops_is_not_measured() {
        let (mut measured, now) = (Measured::default(), Time::START);
        let hops = [hop(ME, 0, 4), hop(NEXT, 4, 8)];
        let trace = [timing(hops[0], 9_000, Some(30)), timing(hops[1], 8, None)];
        for _ in 0..STEPS_MIN {
            measured.note(&hops[1..], &trace, FAR, now);
        }
        assert_eq!((block_time(&measured, now), measured.link_round_trips(now).len()), (None, 0));
        for _ in 0..STEPS_MIN {
            measured.note(&hops, &trace, Duration::from_millis(20), now);
        }
        assert_eq!(
            block_time(&measured, now),
            Some(Duration::from_millis(5)),
            "not above the step"
        );
        assert_eq!(
            measured.link_round_trips(now),
            BTreeMap::from([((ME, NEXT), Duration::from_millis(30))])
        );
    }

    #[test]
    fn what_is_remembered_has_bounds() {
        let mut measured = Measured::default();
        let peer = |name: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&name.to_le_bytes());
            PeerId::from_public_key(key)
        };
        let mut fill = |names: std::ops::Range<usize>, now: Time| {
            for name in names {
                let hops = [hop(peer(name), 0, 4), hop(peer(name + 1), 4, 8)];
                let trace = [timing(hops[0], 8, Some(1)), timing(hops[1], 8, None)];
                measured.note(&hops, &trace, FAR, now);
            }
            (measured.servers.len(), measured.links.len())
        };
        assert_eq!(fill(0..2_000, Time::START), (SERVERS_MAX, LINKS_MAX));
        assert_eq!(fill(5_000..5_001, Time::START + KEPT_FOR), (2, 1), "what is old makes room");
    }
}
