//! Who provides what: the part of the hash table that this peer holds for others, and what it provides
//! itself.
//!
//! libp2p's own store counts keys whoever provides them, itself included, and forgets one only when it is
//! asked for it: a stranger who invents keys would soon fill it for everybody.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{K_VALUE, ProviderRecord, Record, RecordKey};

use super::PROVIDED_MAX;

/// Keys of which it is remembered for others who provides them, each with 20 at most: some MiB.
const KEYS_MAX: usize = 4096;

/// Keys of one other peer: as many as any provides, and once more those that it has given up, which are
/// remembered for half an hour.
const KEYS_OF_PEER_MAX: usize = 2 * PROVIDED_MAX;

/// How often, at most, all is looked through for what has expired: that takes a millisecond, and whoever
/// finds no room may come again at once.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// The store of the hash table, for providers alone: values of others find no room here.
pub(crate) struct Providers {
    own: PeerId,
    /// What this peer provides; [`PROVIDED_MAX`] bounds it.
    provided: HashMap<RecordKey, ProviderRecord>,
    /// What others provide.
    others: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// How many keys each of them has here.
    counts: HashMap<PeerId, usize>,
    looked: Option<Instant>,
}

impl Providers {
    /// The store of a peer.
    pub(crate) fn new(own: PeerId) -> Self {
        Self {
            own,
            provided: HashMap::new(),
            others: HashMap::new(),
            counts: HashMap::new(),
            looked: None,
        }
    }

    /// Whether another peer may be remembered for one more key.
    fn has_room(&self, key: &RecordKey, peer: &PeerId) -> bool {
        let of_peer = self.counts.get(peer).copied().unwrap_or_default();
        of_peer < KEYS_OF_PEER_MAX
            && match self.others.get(key) {
                Some(known) => known.len() < K_VALUE.get(),
                None => self.others.len() < KEYS_MAX,
            }
    }

    fn forget_expired(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now.duration_since(looked) < LOOK_INTERVAL) {
            return;
        }
        self.looked = Some(now);
        let expired = self.others.values().flatten().filter(|record| record.is_expired(now));
        let expired: Vec<_> = expired.map(|record| (record.key.clone(), record.provider)).collect();
        for (key, peer) in expired {
            self.forget(&key, &peer);
        }
    }

    fn forget(&mut self, key: &RecordKey, peer: &PeerId) {
        let Some(known) = self.others.get_mut(key) else {
            return;
        };
        let before = known.len();
        known.retain(|record| record.provider != *peer);
        if known.len() == before {
            return;
        }
        if known.is_empty() {
            self.others.remove(key);
        }
        if let Some(of_peer) = self.counts.get_mut(peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                self.counts.remove(peer);
            }
        }
    }
}

impl RecordStore for Providers {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::vec::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, _key: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _record: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _key: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider == self.own {
            self.provided.insert(record.key.clone(), record);
            return Ok(());
        }
        let known = self.others.get_mut(&record.key);
        let same = |known: &&mut ProviderRecord| known.provider == record.provider;
        if let Some(known) = known.and_then(|known| known.iter_mut().find(same)) {
            *known = record;
            return Ok(());
        }
        if !self.has_room(&record.key, &record.provider) {
            self.forget_expired(Instant::now());
            if !self.has_room(&record.key, &record.provider) {
                return Err(Error::MaxProvidedKeys);
            }
        }
        *self.counts.entry(record.provider).or_default() += 1;
        self.others.entry(record.key.clone()).or_default().push(record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let others = self.others.get(key).into_iter().flatten();
        self.provided.get(key).into_iter().chain(others).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let provided: Vec<_> = self.provided.values().map(Cow::Borrowed).collect();
        provided.into_iter()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        if *peer == self.own {
            self.provided.remove(key);
        } else {
            self.forget(key, peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: usize, provider: PeerId, expires: Option<Instant>) -> ProviderRecord {
        let key = RecordKey::new(&key.to_le_bytes());
        ProviderRecord { key, provider, expires, addresses: Vec::new() }
    }

    fn peers(store: &Providers, key: usize) -> Vec<PeerId> {
        let known = store.providers(&RecordKey::new(&key.to_le_bytes()));
        known.into_iter().map(|record| record.provider).collect()
    }

    /// Says of a new peer that it provides as many keys as it may, from a number on.
    fn fill(store: &mut Providers, from: usize) -> usize {
        let liar = PeerId::random();
        let keys = from..=from + KEYS_MAX;
        keys.take_while(|key| store.add_provider(record(*key, liar, None)).is_ok()).count()
    }

    #[test]
    fn keys_that_one_peer_invents_leave_room_to_the_others() {
        let own = PeerId::random();
        let mut store = Providers::new(own);
        assert_eq!(fill(&mut store, 1), KEYS_OF_PEER_MAX);
        let honest = PeerId::random();
        assert!(store.add_provider(record(0, honest, None)).is_ok());
        assert_eq!(peers(&store, 0), [honest]);
        // What it has said it may say again.
        assert!(store.add_provider(record(0, honest, None)).is_ok());
        assert_eq!(peers(&store, 0), [honest]);
    }

    #[test]
    fn there_is_always_room_for_what_the_peer_provides_itself() {
        let own = PeerId::random();
        let mut store = Providers::new(own);
        for from in (0..KEYS_MAX).step_by(KEYS_OF_PEER_MAX) {
            assert_eq!(fill(&mut store, from), KEYS_OF_PEER_MAX);
        }
        assert_eq!(fill(&mut store, KEYS_MAX), 0, "it is full");
        assert!(store.add_provider(record(KEYS_MAX, own, None)).is_ok());
        assert_eq!(peers(&store, KEYS_MAX), [own]);
        assert_eq!(store.provided().count(), 1);
        store.remove_provider(&RecordKey::new(&KEYS_MAX.to_le_bytes()), &own);
        assert!(peers(&store, KEYS_MAX).is_empty() && store.provided().count() == 0);
    }

    #[test]
    fn what_has_expired_makes_room() {
        let mut store = Providers::new(PeerId::random());
        let (gone, peer) = (Some(Instant::now()), PeerId::random());
        for key in 0..KEYS_OF_PEER_MAX {
            assert!(store.add_provider(record(key, peer, gone)).is_ok());
        }
        assert!(store.add_provider(record(KEYS_OF_PEER_MAX, peer, None)).is_ok());
        assert_eq!((store.others.len(), store.counts[&peer]), (1, 1));
        store.remove_provider(&RecordKey::new(&KEYS_OF_PEER_MAX.to_le_bytes()), &peer);
        assert!(store.others.is_empty() && store.counts.is_empty());
    }

    #[test]
    fn of_those_who_provide_one_key_twenty_are_remembered() {
        let mut store = Providers::new(PeerId::random());
        let added =
            (0..30).filter(|_| store.add_provider(record(0, PeerId::random(), None)).is_ok());
        assert_eq!(added.count(), K_VALUE.get());
        assert_eq!(peers(&store, 0).len(), K_VALUE.get());
    }
}
