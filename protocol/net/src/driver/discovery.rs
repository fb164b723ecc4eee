//! Questions to the hash table, and what this peer provides.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult, RecordKey};
use tokio::sync::oneshot;
use tokio::time::Instant;
use umbel_protocol::PeerId;

use super::peers::own_name;
use crate::address::ADDRESSES_MAX;

type Kad = kad::Behaviour<MemoryStore>;

/// Questions at once; those beyond it are answered with nothing.
const QUERIES_MAX: usize = 64;

/// Providers that one question gives: more than anybody asks for what they know.
const PROVIDERS_MAX: usize = 64;

/// Keys that this peer provides: one for each model.
const PROVIDED_MAX: usize = 64;

/// How long after meeting a new peer this one says again what it provides. Peers come in bursts,
/// and in a small network whoever provided before the others came would not be found for long.
const PROVIDE_AGAIN_AFTER: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Discovery {
    queries: HashMap<QueryId, Query>,
    provided: BTreeSet<[u8; 32]>,
    provide_at: Option<Instant>,
}

enum Query {
    Peer { peer: libp2p::PeerId, found: Vec<Multiaddr>, reply: oneshot::Sender<Vec<Multiaddr>> },
    Providers { found: BTreeSet<PeerId>, reply: oneshot::Sender<Vec<PeerId>> },
}

impl Query {
    fn answer(self) {
        match self {
            Self::Peer { found, reply, .. } => {
                let _unwanted = reply.send(found);
            }
            Self::Providers { found, reply } => {
                let _unwanted = reply.send(found.into_iter().collect());
            }
        }
    }
}

impl Discovery {
    pub(super) fn find_peer(
        &mut self,
        kad: &mut Kad,
        peer: libp2p::PeerId,
        reply: oneshot::Sender<Vec<Multiaddr>>,
    ) {
        let query = Query::Peer { peer, found: Vec::new(), reply };
        self.ask(query, || kad.get_closest_peers(peer));
    }

    pub(super) fn find_providers(
        &mut self,
        kad: &mut Kad,
        key: [u8; 32],
        reply: oneshot::Sender<Vec<PeerId>>,
    ) {
        let query = Query::Providers { found: BTreeSet::new(), reply };
        self.ask(query, || kad.get_providers(record_key(&key)));
    }

    pub(super) fn provide(&mut self, kad: &mut Kad, key: [u8; 32]) {
        if self.provided.len() < PROVIDED_MAX || self.provided.contains(&key) {
            self.provided.insert(key);
            start_providing(kad, &key);
        } else {
            tracing::warn!("this peer provides {PROVIDED_MAX} keys already");
        }
    }

    pub(super) fn stop_providing(&mut self, kad: &mut Kad, key: [u8; 32]) {
        self.provided.remove(&key);
        kad.stop_providing(&record_key(&key));
    }

    /// When to say again what this peer provides.
    pub(super) const fn provide_at(&self) -> Option<Instant> {
        self.provide_at
    }

    pub(super) fn provide_again(&mut self, kad: &mut Kad) {
        self.provide_at = None;
        self.provided.iter().for_each(|key| start_providing(kad, key));
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "what this peer did not ask for")]
    pub(super) fn on_event(&mut self, event: kad::Event) {
        match event {
            kad::Event::RoutingUpdated { is_new_peer: true, .. } if !self.provided.is_empty() => {
                self.provide_at.get_or_insert(Instant::now() + PROVIDE_AGAIN_AFTER);
            }
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                if let Some(query) = self.queries.get_mut(&id) {
                    query.progress(result);
                }
                if step.last
                    && let Some(query) = self.queries.remove(&id)
                {
                    query.answer();
                }
            }
            _ => {}
        }
    }

    fn ask(&mut self, query: Query, start: impl FnOnce() -> QueryId) {
        if self.queries.len() >= QUERIES_MAX {
            tracing::warn!("refused a question: {QUERIES_MAX} are under way");
            return query.answer();
        }
        self.queries.insert(start(), query);
    }
}

impl Query {
    #[allow(clippy::wildcard_enum_match_arm, reason = "answers to other questions")]
    fn progress(&mut self, result: QueryResult) {
        match (self, result) {
            (Self::Peer { peer, found, .. }, QueryResult::GetClosestPeers(result)) => {
                let peers = match result {
                    Ok(found) => found.peers,
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let of_peer = peers.into_iter().filter(|info| info.peer_id == *peer);
                found.extend(of_peer.flat_map(|info| info.addrs).take(ADDRESSES_MAX));
            }
            (
                Self::Providers { found, .. },
                QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })),
            ) => {
                let room = PROVIDERS_MAX.saturating_sub(found.len());
                found.extend(providers.iter().filter_map(own_name).take(room));
            }
            _ => {}
        }
    }
}

fn start_providing(kad: &mut Kad, key: &[u8; 32]) {
    if let Err(error) = kad.start_providing(record_key(key)) {
        tracing::warn!(%error, "the hash table has no room for what this peer provides");
    }
}

fn record_key(key: &[u8; 32]) -> RecordKey {
    RecordKey::new(key)
}
