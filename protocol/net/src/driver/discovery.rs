//! Questions to the hash table, and what this peer provides.

mod providers;
mod settling;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::kad::store::RecordStore as _;
use libp2p::kad::{
    self, GetProvidersOk, InboundRequest, QueryId, QueryRef, QueryResult, RecordKey,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use umbel_protocol::PeerId;

use super::peers::own_name;
use crate::address::{ADDRESSES_MAX, to_keep};
pub(crate) use providers::Providers;
pub(crate) use settling::ASKED_AT_ONCE;
use settling::{Counts, Settling};

type Kad = kad::Behaviour<Providers>;

/// Questions at once; those beyond it are answered with nothing.
const QUERIES_MAX: usize = 64;

/// Providers that one question gives: more than anybody asks for what they know.
const PROVIDERS_MAX: usize = 64;

/// Keys that this peer provides: one for each model.
const PROVIDED_MAX: usize = 64;

/// How long after meeting a new peer this one says again what it provides. Peers come in bursts,
/// and in a small network whoever provided before the others came would not be found for long.
const PROVIDE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How often it is looked whether questions are settled, while there are any.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// And while there are none: the hash table says by itself now and then what this peer provides.
const IDLE_LOOK_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Discovery {
    queries: HashMap<QueryId, Query>,
    provided: BTreeSet<[u8; 32]>,
    provide_at: Option<Instant>,
    settling: Settling<QueryId>,
    look_at: Option<Instant>,
}

enum Query {
    Peer {
        peer: libp2p::PeerId,
        found: Vec<Multiaddr>,
        reply: oneshot::Sender<Vec<Multiaddr>>,
    },
    Providers {
        found: BTreeSet<PeerId>,
        /// Whether they are to be connected to.
        meet: bool,
        reply: oneshot::Sender<Vec<PeerId>>,
    },
}

impl Query {
    fn has_found(&self) -> bool {
        match self {
            Self::Peer { found, .. } => !found.is_empty(),
            Self::Providers { found, .. } => !found.is_empty(),
        }
    }

    fn answer(self) {
        match self {
            Self::Peer { found, reply, .. } => {
                let _unwanted = reply.send(found);
            }
            Self::Providers { found, reply, .. } => {
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
        (key, meet): ([u8; 32], bool),
        reply: oneshot::Sender<Vec<PeerId>>,
    ) {
        let query = Query::Providers { found: BTreeSet::new(), meet, reply };
        self.ask(query, || kad.get_providers(record_key(&key)));
    }

    pub(super) fn provide(&mut self, kad: &mut Kad, key: [u8; 32]) {
        if self.provided.len() < PROVIDED_MAX || self.provided.contains(&key) {
            self.provided.insert(key);
            start_providing(kad, &key);
            self.look_at = Some(Instant::now() + LOOK_INTERVAL);
        } else {
            tracing::warn!("this peer provides {PROVIDED_MAX} keys already");
        }
    }

    pub(super) fn stop_providing(&mut self, kad: &mut Kad, key: [u8; 32]) {
        self.provided.remove(&key);
        kad.stop_providing(&record_key(&key));
    }

    /// When there is something to do next.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.provide_at.into_iter().chain(self.look_at).min()
    }

    /// Says again what this peer provides, and ends questions that are settled, where it is time for that.
    pub(super) fn wake(&mut self, kad: &mut Kad, now: Instant) {
        if self.provide_at.take_if(|at| *at <= now).is_some() {
            self.provided.iter().for_each(|key| start_providing(kad, key));
        }
        if self.look_at.is_none_or(|at| at <= now) {
            let counts = |query: QueryRef<'_>| Counts {
                answers: query.stats().num_successes(),
                pending: query.stats().num_pending(),
                found: self.queries.get(&query.id()).is_some_and(Query::has_found),
            };
            let under_way: Vec<_> =
                kad.iter_queries().map(|query| (query.id(), counts(query))).collect();
            let interval = if under_way.is_empty() { IDLE_LOOK_INTERVAL } else { LOOK_INTERVAL };
            for id in self.settling.look(under_way, now) {
                if let Some(mut query) = kad.query_mut(&id) {
                    query.finish();
                }
            }
            self.look_at = Some(now + interval);
        }
    }

    /// Takes note of what has happened, and says to whom a connection is wanted. Where providers are that
    /// are in nobody's table the hash table knows only while it is asked for them.
    #[allow(clippy::wildcard_enum_match_arm, reason = "what this peer did not ask for")]
    pub(super) fn on_event(&mut self, event: kad::Event) -> Vec<libp2p::PeerId> {
        let mut met = Vec::new();
        match event {
            kad::Event::RoutingUpdated { is_new_peer: true, .. } if !self.provided.is_empty() => {
                self.provide_at.get_or_insert(Instant::now() + PROVIDE_AGAIN_AFTER);
            }
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                if let Some(query) = self.queries.get_mut(&id) {
                    met = query.progress(result);
                }
                if step.last
                    && let Some(query) = self.queries.remove(&id)
                {
                    query.answer();
                }
            }
            _ => {}
        }
        met
    }

    fn ask(&mut self, query: Query, start: impl FnOnce() -> QueryId) {
        if self.queries.len() >= QUERIES_MAX {
            tracing::warn!("refused a question: {QUERIES_MAX} are under way");
            return query.answer();
        }
        self.queries.insert(start(), query);
        self.look_at = Some(Instant::now() + LOOK_INTERVAL);
    }
}

impl Query {
    /// Takes an answer up, and says who is to be connected to.
    #[allow(clippy::wildcard_enum_match_arm, reason = "answers to other questions")]
    fn progress(&mut self, result: QueryResult) -> Vec<libp2p::PeerId> {
        match (self, result) {
            (Self::Peer { peer, found, .. }, QueryResult::GetClosestPeers(result)) => {
                let peers = match result {
                    Ok(found) => found.peers,
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let of_peer = peers.into_iter().filter(|info| info.peer_id == *peer);
                found.extend(of_peer.flat_map(|info| info.addrs).take(ADDRESSES_MAX));
                Vec::new()
            }
            (
                Self::Providers { found, meet, .. },
                QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })),
            ) => {
                let mut met = Vec::new();
                for provider in providers {
                    let Some(peer) = own_name(&provider) else { continue };
                    if found.len() < PROVIDERS_MAX && found.insert(peer) && *meet {
                        met.push(provider);
                    }
                }
                met
            }
            _ => Vec::new(),
        }
    }
}

/// Where a peer is by this side's part of the hash table.
pub(super) fn known_addresses(kad: &mut Kad, peer: libp2p::PeerId) -> Vec<Multiaddr> {
    let Some(bucket) = kad.kbucket(peer) else { return Vec::new() };
    let known = bucket.iter().find(|entry| *entry.node.key.preimage() == peer);
    known.map(|entry| entry.node.value.iter().cloned().collect()).unwrap_or_default()
}

/// Lets the hash table know a peer by what it says now of where it listens, and by where this side has
/// dialled it: with all that it ever said, answers would become too long for those who ask.
pub(super) fn set_addresses(
    kad: &mut Kad,
    peer: libp2p::PeerId,
    (now, dialled): (&[Multiaddr], Vec<Multiaddr>),
    before: Vec<Multiaddr>,
) {
    let named = |address: Multiaddr| address.with_p2p(peer).ok();
    for address in now {
        kad.add_address(&peer, address.clone());
    }
    let kept: Vec<_> = now.iter().cloned().chain(dialled).filter_map(named).collect();
    // What waits for a place in the table is not among what is known.
    let known = before.into_iter().filter_map(named).chain(known_addresses(kad, peer));
    for address in known.collect::<Vec<_>>() {
        if !kept.contains(&address) {
            kad.remove_address(&peer, &address);
        }
    }
}

/// Remembers who provides something for others, with no more addresses than anybody has.
pub(super) fn on_request(kad: &mut Kad, request: InboundRequest) {
    if let InboundRequest::AddProvider { record: Some(mut record) } = request {
        record.addresses = to_keep(record.addresses);
        if let Err(error) = kad.store_mut().add_provider(record) {
            tracing::debug!(%error, "a provider is not remembered");
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
