//! A swarm that has been joined: who is in it, and links to them.

pub(crate) mod enter;
pub mod exchange;
mod measured;
pub(crate) mod route;
mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::task::JoinSet;
use umbel_coordinator::random::Random;
use umbel_coordinator::session::{Contacts, Sharing};
use umbel_coordinator::swarm::Directory;
use umbel_coordinator::swarm::directory::{Inserted, RefusedAnnouncement};
use umbel_coordinator::swarm::health::Health;
use umbel_coordinator::{Hop, Time};
use umbel_net::{
    Identity, JoinError, Link, LinkProtocol, Multiaddr, Network, NetworkConfig, OpenLinkError,
    Role, StartNetworkError, SwarmKey,
};
use umbel_protocol::announcement::{Announcement, UnixTime};
use umbel_protocol::prefix::PageDigest;
use umbel_protocol::{AdapterId, ModelId, PeerId};

use crate::clock::Clock;
use exchange::lookup;
use measured::Measured;
use warm::Warm;

/// Most peers that are asked for what they know in one refresh: enough that some have news that
/// others lack, few enough for a swarm of thousands.
const PEERS_ASKED_MAX: usize = 16;

/// How long the others may still take to say whom they know, once one of them has.
const GRACE: Duration = Duration::from_millis(500);

/// How long a peer that did not answer is used last: by then its announcement has expired if it is
/// gone.
const DOUBT: Duration = Duration::from_secs(60);

/// How long nobody may have answered until the addresses by which the client came in are tried again.
const UNANSWERED: Duration = Duration::from_secs(2);

/// How long a client without an address waits for servers on the local network to show up.
const MDNS_WAIT: Duration = Duration::from_secs(5);

/// How long after nobody was found who has an adapter the hash table is asked once more: peers that have
/// met just now have told each other by then whom else to ask.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

/// How to come into a swarm.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Addresses of peers, any one of which is enough.
    pub join: Vec<Multiaddr>,
    /// The secret of a private swarm, if it is one.
    pub swarm_key: Option<SwarmKey>,
    /// Whether to look for peers on the local network as well.
    pub mdns: bool,
    /// How long a session waits for a server of blocks that nobody serves, before its first token
    /// and after a failure.
    pub patience: Duration,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self { join: Vec::new(), swarm_key: None, mdns: false, patience: route::PATIENCE }
    }
}

/// A swarm, as a client sees it.
pub struct Swarm {
    network: Network,
    view: Mutex<View>,
    /// What the links of all sessions hear, by `clock`.
    contacts: Mutex<Contacts>,
    /// The addresses by which the client came in.
    way: Vec<Multiaddr>,
    /// Those who have answered there.
    joined: Arc<Mutex<Vec<PeerId>>>,
    patience: Duration,
    clock: Clock,
    /// Goes into the names by which servers find what they have kept for this client, so that these
    /// say nothing to anybody else.
    secret: [u8; 32],
}

/// What is known of the others: by what they say, and by what was seen.
#[derive(Debug)]
struct View {
    directory: Directory,
    health: Health,
    /// Peers that did not answer when others did, and when: routes use them last. Two rounds of
    /// [`PEERS_ASKED_MAX`] are asked every two seconds at most, so there are at most 960.
    doubtful: BTreeMap<PeerId, Time>,
    /// Servers that had no room, and when: routes use them last as well.
    full: BTreeMap<PeerId, Time>,
    /// Pairs of servers of which the first could not reach the second, and when.
    unreachable: BTreeMap<(PeerId, PeerId), Time>,
    /// How fast servers were.
    measured: Measured,
    random: Random,
    /// Which servers hold what of this client's sessions.
    warm: Warm,
    /// Since when others have been asked and nobody has answered.
    unanswered: Option<Time>,
    /// The task that comes in again, if there is one.
    returning: JoinSet<()>,
}

impl Swarm {
    /// Comes into the swarm as a client under a new name, without listening.
    ///
    /// # Errors
    /// [`JoinSwarmError`] where none of the addresses can be reached.
    pub async fn join(config: SwarmConfig) -> Result<Self, JoinSwarmError> {
        Self::join_as(Identity::ephemeral(), config).await
    }

    /// Comes into the swarm as a client that others may know from before, without listening.
    ///
    /// # Errors
    /// As [`Swarm::join`].
    pub async fn join_as(identity: Identity, config: SwarmConfig) -> Result<Self, JoinSwarmError> {
        let patience = config.patience;
        let network = Network::start(NetworkConfig {
            mdns: config.mdns,
            swarm_key: config.swarm_key,
            local_links: true,
            ..NetworkConfig::new(identity, Role::Client)
        })
        .await?;
        let joined = if config.join.is_empty() {
            match network.await_peers(MDNS_WAIT).await {
                nobody if nobody.is_empty() => return Err(JoinSwarmError::NoNeighbours),
                peers => peers,
            }
        } else {
            network.join(&config.join).await?
        };
        let view = View {
            directory: Directory::new(),
            health: Health::new(),
            doubtful: BTreeMap::new(),
            full: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            measured: Measured::default(),
            random: Random::new(getrandom::u64().unwrap_or_default()),
            warm: Warm::default(),
            unanswered: None,
            returning: JoinSet::new(),
        };
        let (view, clock) = (Mutex::new(view), Clock::start());
        let (way, joined) = (config.join, Arc::new(Mutex::new(joined)));
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(JoinSwarmError::Random)?;
        let contacts = Mutex::new(Contacts::default());
        Ok(Self { network, view, contacts, way, joined, patience, clock, secret })
    }

    /// What a session that begins with these tokens shares with others of this client that have the
    /// same adapter, or none.
    pub(crate) fn sharing(&self, tokens: &[u32], adapter: Option<AdapterId>) -> Sharing {
        let mut secret = self.secret;
        if let Some(adapter) = adapter {
            // Ids are hashes, so that no two of them make the same secret, nor one that tells this one.
            secret.iter_mut().zip(adapter.as_bytes()).for_each(|(secret, byte)| *secret ^= byte);
        }
        Sharing { secret, tokens: tokens.to_vec() }
    }

    /// Takes note of who holds the pages of a session.
    pub(crate) fn remember(&self, model: ModelId, pages: &[PageDigest], hops: Vec<Hop>) {
        self.view().warm.remember(model, pages, hops);
    }

    /// This client's own name.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.network.peer_id()
    }

    /// The announcements of a model's servers, asked for anew; of all models without one.
    ///
    /// Peers that do not answer are passed over: an empty answer means that nobody who could be
    /// reached knows of a server.
    pub async fn announcements(&self, model: Option<ModelId>) -> Vec<Announcement> {
        let (mut asked, mut answered) = (BTreeSet::new(), false);
        self.come_back();
        // First those that were named, then those that they named.
        for _ in 0..2 {
            let mut known = self.known(model);
            // Who has spoken last is likeliest to be there.
            known.sort_by_key(|server| std::cmp::Reverse(server.issued));
            let addresses = |peer: PeerId| {
                let server = known.iter().find(|server| server.peer == peer);
                server.map(|server| server.addresses.clone()).unwrap_or_default()
            };
            let joined = lock(&self.joined).clone();
            let joined: Vec<_> = joined.into_iter().map(|peer| (peer, addresses(peer))).collect();
            let peers: Vec<_> = joined
                .into_iter()
                .chain(known.into_iter().map(|server| (server.peer, server.addresses)))
                .filter(|(peer, _)| asked.insert(*peer))
                .take(PEERS_ASKED_MAX)
                .collect();
            answered |= self.ask_some(peers, model, answered).await;
        }
        if let Some(model) = model.filter(|model| self.known(Some(*model)).is_empty()) {
            self.ask_providers(model, &mut asked, answered).await;
        }
        self.known(model)
    }

    /// Who provides an adapter, by the hash table.
    pub(crate) async fn adapter_providers(&self, id: AdapterId) -> Vec<PeerId> {
        // Those that are reached by relays are in nobody's part of the table.
        let found = self.network.meet_providers(*id.as_bytes()).await;
        if !found.is_empty() {
            return found;
        }
        // Who has come into the swarm just now may not be told yet whom to ask, nor who provides it be known.
        tokio::time::sleep(ASKED_AGAIN).await;
        self.network.meet_providers(*id.as_bytes()).await
    }

    /// The last round trip to a peer, if there has been one.
    #[must_use]
    pub fn round_trip(&self, peer: PeerId) -> Option<Duration> {
        self.network.round_trip(peer)
    }

    /// Uses a server also once it says that it leaves: one that waits until this client has ended what it
    /// has begun.
    pub fn stay_with(&self, server: PeerId) {
        self.view().directory.stay_with(server);
    }

    /// Leaves the swarm.
    pub async fn leave(self) {
        self.network.shutdown().await;
    }

    pub(crate) async fn open_link(
        &self,
        peer: PeerId,
        addresses: &[String],
        protocol: LinkProtocol,
    ) -> Result<Link, OpenLinkError> {
        self.network.open_link(peer, &exchange::multiaddrs(addresses), protocol).await
    }

    /// The clock of all sessions.
    pub(crate) const fn clock(&self) -> Clock {
        self.clock
    }

    /// What is heard of servers over the links of all sessions.
    pub(crate) fn contacts(&self) -> MutexGuard<'_, Contacts> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out at once, where that is possible, whether a peer that is silent has ended.
    pub(crate) fn probe(&self, peer: PeerId) {
        self.network.probe(peer);
    }

    pub(crate) fn known(&self, model: Option<ModelId>) -> Vec<Announcement> {
        let mut view = self.view();
        view.directory.expire(unix_time());
        view.directory.announcements(model).cloned().collect()
    }

    /// Comes in again by the addresses of the beginning where nobody has answered for a while: who was known
    /// may be gone, or have been away for so long that it is known no more. Whoever asks next finds them.
    fn come_back(&self) {
        let now = self.clock.now();
        let mut view = self.view();
        let since = *view.unanswered.get_or_insert(now);
        while view.returning.try_join_next().is_some() {}
        let is_time = now.since(since) >= UNANSWERED && view.returning.is_empty();
        if !is_time || self.way.is_empty() {
            return;
        }
        let (network, way) = (self.network.clone(), self.way.clone());
        let joined = Arc::clone(&self.joined);
        view.returning.spawn(async move {
            match network.join(&way).await {
                Ok(peers) => *lock(&joined) = peers,
                Err(error) => tracing::debug!(%error, "nobody is where this client came in"),
            }
        });
    }

    /// Asks peers at once, and waits for all of them, but not long once one has answered, or if others
    /// have before: some may be gone, which takes seconds to find out. Says whether one answered.
    async fn ask_some(
        &self,
        peers: Vec<(PeerId, Vec<String>)>,
        model: Option<ModelId>,
        others_have: bool,
    ) -> bool {
        let now = self.clock.now();
        let mut silent: BTreeSet<_> = peers.iter().map(|(peer, _)| *peer).collect();
        let ask = |(peer, addresses)| async move { (peer, self.ask(peer, addresses, model).await) };
        let mut asked: FuturesUnordered<_> = peers.into_iter().map(ask).collect();
        let (mut one_has, mut answered) = (false, others_have.then_some(now));
        loop {
            tokio::select! {
                answer = asked.next() => match answer {
                    None => break,
                    Some((_, false)) => {}
                    Some((peer, true)) => {
                        silent.remove(&peer);
                        one_has = true;
                        answered.get_or_insert_with(|| self.clock.now());
                    }
                },
                () = self.clock.wait_until(answered.map(|at| at + GRACE)) => break,
            }
        }
        let mut view = self.view();
        view.doubtful.retain(|_, since| now.since(*since) < DOUBT);
        // Where nobody answers, that says more of this side.
        if answered.is_some() {
            view.doubtful.extend(silent.into_iter().map(|peer| (peer, now)));
        }
        one_has
    }

    /// Asks a peer whom it knows, and says whether it answered.
    async fn ask(&self, peer: PeerId, addresses: Vec<String>, model: Option<ModelId>) -> bool {
        match lookup(&self.network, peer, &addresses, model).await {
            Ok(found) => {
                self.take_up(peer, found);
                let mut view = self.view();
                view.doubtful.remove(&peer);
                view.unanswered = None;
                true
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(%peer, error, "a peer did not say whom it knows");
                false
            }
        }
    }

    /// Asks the DHT who serves a model of which the peers that were asked know nothing.
    async fn ask_providers(&self, model: ModelId, asked: &mut BTreeSet<PeerId>, answered: bool) {
        let providers = self.network.meet_providers(*model.as_bytes()).await;
        let peers: Vec<_> = providers
            .into_iter()
            .filter(|peer| asked.insert(*peer))
            .take(PEERS_ASKED_MAX)
            .collect();
        let peers = peers.into_iter().map(|peer| (peer, Vec::new())).collect();
        self.ask_some(peers, Some(model), answered).await;
    }

    fn take_up(&self, from: PeerId, found: exchange::Found) {
        let (now, unix_now) = (self.clock.now(), unix_time());
        let mut view = self.view();
        for signed in found {
            let View { directory, health, .. } = &mut *view;
            match directory.insert(signed, unix_now) {
                Ok(Inserted::Returned(peer)) => health.returned(peer, now),
                Ok(Inserted::News | Inserted::Known) => {}
                Err(error @ RefusedAnnouncement::Full { .. }) => {
                    tracing::debug!(%from, %error, "an announcement finds no room");
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(%from, error, "refused an announcement");
                }
            }
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wall clock, for what is signed with a date.
#[must_use]
pub fn unix_time() -> UnixTime {
    UnixTime::after_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// No way into the swarm.
#[derive(Debug, thiserror::Error)]
pub enum JoinSwarmError {
    /// The network could not be started.
    #[error(transparent)]
    Start(#[from] StartNetworkError),
    /// None of the addresses answers.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// mDNS found nobody.
    #[error("no server was found on the local network: give its address with --join")]
    NoNeighbours,
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Random(#[source] getrandom::Error),
}
