//! Places at relays by which others come in: whom to ask, and when to ask again.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::core::transport::ListenerId;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use crate::address::{relay_of, split_peer};

/// Relays at which a peer has a place: with two it is reached while one of them starts anew.
const PLACES: usize = 2;

/// Addresses of one relay that are told: over QUIC and TCP, in both families, and the one that it was
/// reached by itself.
const ADDRESSES_PER_PLACE_MAX: usize = 4;

/// How long after a place was lost, or refused, its relay is asked again: one that starts anew is there by
/// then.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The same for a relay that has refused again and again. It counts what it is asked.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(2 * 60);

/// Relays that are left alone for a while; beyond them the one that was so the longest is forgotten.
const RESTING_MAX: usize = 64;

/// How often it is looked for further relays while places are wanted.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How often the hash table is asked for some.
const SEARCH_INTERVAL: Duration = Duration::from_secs(15);

/// The places that this peer has or wants.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Where it always wants one.
    fixed: Vec<Multiaddr>,
    /// Whom it asks first where it seeks some.
    preferred: Vec<Multiaddr>,
    seeks: bool,
    held: Vec<Place>,
    resting: BTreeMap<PeerId, Rest>,
    look_at: Option<Instant>,
    search_at: Option<Instant>,
}

#[derive(Debug)]
struct Place {
    listener: ListenerId,
    relay: PeerId,
    /// How it was asked for, and what the relay calls it, both without this peer's name.
    addresses: Vec<Multiaddr>,
    /// Whether others come in by it.
    granted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    failures: u32,
}

impl Places {
    pub(super) fn new(preferred: Vec<Multiaddr>) -> Self {
        Self { preferred, ..Self::default() }
    }

    /// A place is wanted for good.
    pub(super) fn fix(&mut self, address: Multiaddr) {
        self.fixed.push(address);
    }

    /// From now on some are sought.
    pub(super) fn seek(&mut self, now: Instant) {
        self.seeks = true;
        self.look_at = Some(now);
        self.search_at.get_or_insert(now);
    }

    /// None are any more; those that are held stay.
    pub(super) fn seek_no_more(&mut self) {
        self.seeks = false;
    }

    /// Whom to ask now, of those that are named and of others that are there.
    pub(super) fn wanting(
        &self,
        others: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) -> Vec<Multiaddr> {
        let mut asked: Vec<Multiaddr> = Vec::new();
        let is_free = |address: &Multiaddr, asked: &[Multiaddr]| {
            let relay = relay_of(address);
            let rests = |relay| self.resting.get(&relay).is_some_and(|rest| now < rest.until);
            !self.held.iter().any(|place| Some(place.relay) == relay)
                && !asked.iter().any(|address| relay_of(address) == relay)
                && relay.is_some_and(|relay| !rests(relay))
        };
        for address in &self.fixed {
            if is_free(address, &asked) {
                asked.push(address.clone());
            }
        }
        if self.seeks {
            for address in self.preferred.iter().cloned().chain(others) {
                if self.held.len() + asked.len() < PLACES && is_free(&address, &asked) {
                    asked.push(address);
                }
            }
        }
        asked
    }

    /// A place is asked for.
    pub(super) fn asked(&mut self, listener: ListenerId, address: Multiaddr) {
        let Some(relay) = relay_of(&address) else { return };
        let addresses = vec![split_peer(address).0];
        self.held.push(Place { listener, relay, addresses, granted: false });
    }

    /// A relay has given a place, and says how others come to it. Whether that is new, and taken up.
    pub(super) fn granted(&mut self, listener: ListenerId, address: &Multiaddr) -> bool {
        let place = self.held.iter_mut().find(|place| place.listener == listener);
        let Some(place) = place else { return false };
        place.granted = true;
        self.resting.remove(&place.relay);
        let (address, _) = split_peer(address.clone());
        // A relay speaks of its own addresses alone.
        let own = relay_of(&address) == Some(place.relay);
        let room = place.addresses.len() < ADDRESSES_PER_PLACE_MAX;
        let taken = own && room && !place.addresses.contains(&address);
        if taken {
            place.addresses.push(address);
        }
        taken
    }

    /// A listener has closed. If it was that of a place, the addresses that lead nowhere now.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) -> Option<Vec<Multiaddr>> {
        let index = self.held.iter().position(|place| place.listener == listener)?;
        let place = self.held.swap_remove(index);
        self.rest(place.relay, now);
        Some(place.addresses)
    }

    /// A place cannot be asked for just now.
    pub(super) fn failed(&mut self, address: &Multiaddr, now: Instant) {
        if let Some(relay) = relay_of(address) {
            self.rest(relay, now);
        }
    }

    fn rest(&mut self, relay: PeerId, now: Instant) {
        let failures = self.resting.get(&relay).map_or(0, |rest| rest.failures);
        if self.resting.len() >= RESTING_MAX {
            let longest = self.resting.iter().min_by_key(|(_, rest)| rest.until);
            if let Some(longest) = longest.map(|(relay, _)| *relay) {
                self.resting.remove(&longest);
            }
        }
        let delay = AGAIN_AFTER.saturating_mul(1 << failures.min(10)).min(AGAIN_AFTER_MAX);
        self.resting.insert(relay, Rest { until: now + delay, failures: failures + 1 });
        self.look_at = Some(now + LOOK_INTERVAL);
    }

    /// Whether more are wanted than there are.
    pub(super) fn lacks(&self) -> bool {
        let held = |address: &Multiaddr| {
            let relay = relay_of(address);
            self.held.iter().any(|place| Some(place.relay) == relay)
        };
        (self.seeks && self.held.len() < PLACES) || !self.fixed.iter().all(held)
    }

    /// When it is to be looked for further relays.
    pub(super) const fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Takes note that it was looked for them, and says whether the hash table is to be asked, too.
    pub(super) fn looked(&mut self, now: Instant) -> bool {
        self.look_at = self.lacks().then_some(now + LOOK_INTERVAL);
        let searches = self.seeks
            && self.held.len() < PLACES
            && self.search_at.is_none_or(|search_at| search_at <= now);
        if searches {
            self.search_at = Some(now + SEARCH_INTERVAL);
        }
        searches
    }

    /// The relays by which others come in.
    pub(super) fn relays(&self) -> impl Iterator<Item = PeerId> {
        self.held.iter().filter(|place| place.granted).map(|place| place.relay)
    }

    /// Where they do so.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Multiaddr> {
        self.held.iter().filter(|place| place.granted).flat_map(|place| &place.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(port: u16) -> Multiaddr {
        let relay = PeerId::random();
        format!("/ip4/10.0.0.7/tcp/{port}/p2p/{relay}/p2p-circuit").parse().unwrap()
    }

    #[test]
    fn two_are_sought_and_those_that_were_named_are_asked_first() {
        let (named, others) = (relay(1), [relay(2), relay(3)]);
        let mut places = Places::new(vec![named.clone()]);
        let now = Instant::now();
        assert!(places.wanting(others.clone(), now).is_empty() && !places.lacks());
        places.seek(now);
        assert!(places.lacks() && places.looked(now) && !places.looked(now));
        assert_eq!(places.wanting(others.clone(), now), [named.clone(), others[0].clone()]);
        let (first, second) = (ListenerId::next(), ListenerId::next());
        places.asked(first, named.clone());
        places.asked(second, others[0].clone());
        assert!(places.wanting(others.clone(), now).is_empty() && !places.lacks());
        assert_eq!(places.addresses().count(), 0, "nobody has granted any");
        places.granted(first, &named);
        assert_eq!(places.addresses().collect::<Vec<_>>(), [&named]);
        assert_eq!(places.relays().collect::<Vec<_>>(), [relay_of(&named).unwrap()]);
        places.closed(second, now);
        assert!(places.lacks());
        places.seek_no_more();
        assert!(!places.lacks() && places.wanting(others, now).is_empty());
        assert_eq!(places.relays().count(), 1, "it is of use to who knows it");
    }

    #[test]
    fn a_place_that_is_lost_is_sought_elsewhere_at_once_and_there_after_a_while() {
        let (fixed, other) = (relay(1), relay(2));
        let mut places = Places::default();
        places.fix(fixed.clone());
        let now = Instant::now();
        for failures in 0..8 {
            let wanted = places.wanting([], now + AGAIN_AFTER_MAX * failures);
            assert_eq!(wanted, std::slice::from_ref(&fixed));
            let listener = ListenerId::next();
            places.asked(listener, fixed.clone());
            let lost_at = now + AGAIN_AFTER_MAX * failures;
            assert_eq!(places.closed(listener, lost_at), Some(vec![fixed.clone()]));
            assert!(places.wanting([], lost_at + AGAIN_AFTER / 2).is_empty());
            let later = lost_at + AGAIN_AFTER;
            assert_eq!(places.wanting([], later).is_empty(), failures > 0, "{failures}");
            assert!(places.look_at().is_some() && places.lacks());
        }
        let later = now + AGAIN_AFTER_MAX * 7;
        places.seek(later);
        assert_eq!(places.wanting([other.clone()], later), [other]);
        let unknown = ListenerId::next();
        assert_eq!(places.closed(unknown, later), None);
    }

    #[test]
    fn a_relay_tells_a_few_addresses_of_its_own_and_none_of_others() {
        let mut places = Places::default();
        let (address, listener) = (relay(1), ListenerId::next());
        places.fix(address.clone());
        places.asked(listener, address.clone());
        assert!(!places.granted(listener, &address), "it is known");
        assert!(!places.granted(listener, &relay(2)), "it is another's");
        let of_relay = |port: u16| -> Multiaddr {
            let relay = relay_of(&address).unwrap();
            format!("/ip4/10.0.0.8/tcp/{port}/p2p/{relay}/p2p-circuit").parse().unwrap()
        };
        let taken = (1..100).filter(|port| places.granted(listener, &of_relay(*port))).count();
        assert_eq!(taken, ADDRESSES_PER_PLACE_MAX - 1);
        assert_eq!(places.addresses().count(), ADDRESSES_PER_PLACE_MAX);
    }

    #[test]
    fn relays_that_refuse_do_not_fill_the_memory() {
        let (mut places, now) = (Places::default(), Instant::now());
        for _ in 0..3 * RESTING_MAX {
            places.failed(&relay(1), now);
        }
        assert_eq!(places.resting.len(), RESTING_MAX);
    }
}
