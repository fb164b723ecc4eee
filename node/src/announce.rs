//! Telling the swarm who serves what: one's own announcement, and those of others handed on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use umbel_client::swarm::exchange::{announce, lookup};
use umbel_client::swarm::unix_time;
use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::Directory;
use umbel_coordinator::swarm::directory::RefusedAnnouncement;
use umbel_coordinator::swarm::placement::Intention;
use umbel_net::{AcceptError, JoinError, Link, LinkProtocol, Multiaddr, Network, named_peer};
use umbel_protocol::announcement::{Announcement, NextHopLatency, SignedAnnouncement, Throughput};
use umbel_protocol::directory::{DirectoryAnswer, DirectoryRequest};
use umbel_protocol::{ModelId, PeerId, Span};

use crate::driver::Load;
use crate::links::Room;
use crate::measure;

/// How often a server announces itself anew and asks another peer for news.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long an announcement holds: six times the interval, so that some may be lost.
const LIFETIME: Duration = Duration::from_secs(60);

/// Peers that are told of an announcement; the others hear of it when they ask.
const PEERS_TOLD_MAX: usize = 16;

/// How long an announcement waits until others have taken it up.
const TELLING: Duration = Duration::from_secs(2);

/// How long a server without an address to come in by waits for others on the local network: those that
/// are there answer mDNS within a second, and the first server of all pays it once.
const NEIGHBOURS_WAIT: Duration = Duration::from_secs(2);

/// Directory links that are served at once.
const LINKS_MAX: usize = 256;

/// Those of one peer, which asks once in a while, and for a few models at a time.
const LINKS_OF_PEER_MAX: usize = LINKS_MAX / 16;

/// Questions on one directory link, after which it closes: a client asks once.
const QUESTIONS_MAX: usize = 16;

/// How long a directory link may stay silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Round trips that an announcement tells of.
const NEXT_HOPS_MAX: usize = 16;

/// What a server says of itself, besides its load.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The model.
    pub model: ModelId,
    /// Its name, for people.
    pub model_name: String,
    /// The blocks served.
    pub span: Span,
    /// Blocks of the whole model.
    pub block_count: u32,
    /// Measured.
    pub throughput: Throughput,
    /// Where it goes, and what it asks others to do.
    pub intention: Intention,
    /// Whether it is about to leave.
    pub draining: bool,
    /// Whether it holds the ends of the model that its blocks touch.
    pub holds_ends: bool,
}

/// The server's view of the swarm, and its voice in it.
#[derive(Clone)]
pub struct Announcer {
    network: Network,
    directory: Arc<Mutex<Directory>>,
    /// Where it comes in.
    doors: Arc<Mutex<Vec<Door>>>,
    /// Somebody has come back who was away.
    returned: Arc<Notify>,
}

/// An address by which the server comes into the swarm.
#[derive(Debug, Clone)]
struct Door {
    address: Multiaddr,
    /// Who is there: who is named in it, or has answered last.
    peer: Option<PeerId>,
}

impl Announcer {
    /// An announcer that knows nobody yet, and comes into the swarm by these addresses. Those of this peer
    /// are passed over, so that all servers of a swarm may be given the same.
    #[must_use]
    pub fn new(network: Network, join: &[Multiaddr]) -> Self {
        let own = network.peer_id();
        let here = [network.listen_addresses(), network.announced_addresses()].concat();
        let mut doors: Vec<Door> = Vec::new();
        for address in join {
            let door = Door { address: address.clone(), peer: named_peer(address) };
            let is_known = doors.iter().any(|known| known.address == door.address);
            if !is_known && door.peer != Some(own) && !here.contains(address) {
                doors.push(door);
            }
        }
        let doors = Arc::new(Mutex::new(doors));
        let directory = Arc::new(Mutex::new(Directory::of_server(own)));
        Self { network, directory, doors, returned: Arc::default() }
    }

    /// The network in which it announces.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// Comes into the swarm, and asks there who else is in it.
    ///
    /// # Errors
    /// [`JoinError`] where there are addresses of others to come in by, and nobody answers.
    pub async fn join(&self) -> Result<(), JoinError> {
        let addresses: Vec<_> = self.doors().iter().map(|door| door.address.clone()).collect();
        if addresses.is_empty() {
            return Ok(());
        }
        match self.come_in(&addresses).await {
            Ok(peers) => {
                join_all(peers.into_iter().map(|peer| self.ask(peer, &[]))).await;
                Ok(())
            }
            Err(_) if self.doors().is_empty() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits a moment for peers on the local network, and asks them who is there, unless there is an address to
    /// come in by.
    pub async fn meet_neighbours(&self) {
        if !self.doors().is_empty() {
            return;
        }
        if !self.network.await_peers(NEIGHBOURS_WAIT).await.is_empty() {
            self.catch_up().await;
        }
    }

    /// Asks some of those who are there whom they know, all at once.
    pub async fn catch_up(&self) {
        let others = self.others().await;
        let asked = others.iter().map(|(peer, addresses)| self.ask(*peer, addresses));
        // Who is gone takes longer to find out.
        let _not_by_all = tokio::time::timeout(TELLING, join_all(asked)).await;
    }

    /// Comes in by these doors, and takes note of who is there. Those behind which is this peer itself, by a
    /// name or by the way round a router, lead nowhere and are forgotten.
    async fn come_in(&self, addresses: &[Multiaddr]) -> Result<BTreeSet<PeerId>, JoinError> {
        let joined = self.network.join_each(addresses).await;
        let mut doors = self.doors();
        match &joined {
            Ok(joined) => {
                for (address, peer) in joined {
                    let doors = doors.iter_mut().filter(|door| door.address == *address);
                    doors.for_each(|door| door.peer = Some(*peer));
                }
            }
            Err(JoinError::Unreachable { failures }) => {
                let own: Vec<_> = failures.iter().filter(|failure| failure.is_own).collect();
                doors.retain(|door| {
                    !own.iter().any(|failure| failure.address.as_ref() == Some(&door.address))
                });
            }
            Err(JoinError::NoAddress | JoinError::ShutDown) => {}
        }
        drop(doors);
        Ok(joined?.into_iter().map(|(_, peer)| peer).collect())
    }

    /// The announcements of a model's servers that are known.
    #[must_use]
    pub fn servers(&self, model: ModelId) -> Vec<Announcement> {
        let mut directory = self.directory();
        directory.expire(unix_time());
        directory.announcements(Some(model)).cloned().collect()
    }

    /// Answers those who ask whom this peer knows, until the future is dropped.
    ///
    /// # Errors
    /// Where directory links are accepted elsewhere already.
    pub async fn answer(self) -> Result<(), AcceptError> {
        let incoming = self.network.accept(LinkProtocol::Directory)?;
        let room = Room::new(LINKS_MAX, LINKS_OF_PEER_MAX);
        room.serve_each(incoming, |peer, link| self.clone().answer_link(peer, link)).await;
        Ok(())
    }

    /// Announces `offer` again and again, and at once when it changes, until the future is dropped. Those by
    /// whom the server has come in are sought again when they are gone.
    pub async fn run(self, offer: watch::Receiver<Offer>, load: watch::Receiver<Load>) {
        tokio::join!(self.stay(), self.keep_announcing(offer, load));
    }

    async fn keep_announcing(
        &self,
        mut offer: watch::Receiver<Offer>,
        load: watch::Receiver<Load>,
    ) {
        let model = *offer.borrow().model.as_bytes();
        self.network.provide(model).await;
        // A relay that is gone leads nobody here for up to the lifetime of what was announced.
        let mut addresses = self.network.address_changes();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = offer.changed() => {}
                Ok(()) = addresses.changed() => {}
                () = self.returned.notified() => {}
            }
            let current = offer.borrow_and_update().clone();
            let load = *load.borrow();
            self.announce(&current, load).await;
            self.ask_one().await;
        }
    }

    /// Comes in again, now and then, by the addresses of those who are neither known nor connected: they
    /// were away for longer than this server was told of them, or this server was, and nobody else might
    /// tell them of each other.
    pub(crate) async fn stay(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut there: BTreeSet<_> = self.network.connected_peers().await.into_iter().collect();
            there.extend(self.directory().announcements(None).map(|known| known.peer));
            let is_there = |door: &Door| door.peer.is_some_and(|peer| there.contains(&peer));
            let gone: Vec<_> =
                self.doors().iter().filter(|door| !is_there(door)).cloned().collect();
            join_all(gone.into_iter().map(|door| self.come_back(door.address))).await;
        }
    }

    async fn come_back(&self, address: Multiaddr) {
        match self.come_in(std::slice::from_ref(&address)).await {
            Ok(_) => {
                tracing::info!(%address, "in touch with a peer by which this server comes in");
                self.returned.notify_one();
            }
            Err(error) => tracing::debug!(%error, "nobody answers yet"),
        }
    }

    /// Says once what `offer` says.
    pub async fn announce(&self, offer: &Offer, load: Load) {
        let signed = self.sign(offer, load);
        {
            let mut directory = self.directory();
            let now = unix_time();
            directory.expire(now);
            if let Err(error) = directory.insert(signed.clone(), now) {
                tracing::error!(%error, "the announcement of this server is not valid");
            }
        }
        let others = self.others().await;
        let telling = tokio::spawn(self.clone().tell(others, signed, offer.model));
        // Who is gone takes longer to find out, and nobody is to wait for that.
        let _not_by_all = tokio::time::timeout(TELLING, telling).await;
    }

    /// Tells peers of a server of a model, and forgets what it had heard of those that do not answer.
    async fn tell(
        self,
        peers: Vec<(PeerId, Vec<String>)>,
        signed: SignedAnnouncement,
        model: ModelId,
    ) {
        let (network, signed) = (&self.network, &signed);
        let tell = |(peer, addresses): (PeerId, Vec<String>)| async move {
            (peer, announce(network, peer, &addresses, signed.clone()).await)
        };
        let mut tellings: FuturesUnordered<_> = peers.into_iter().map(tell).collect();
        let (mut one_has_answered, mut silent) = (false, Vec::new());
        while let Some((peer, told)) = tellings.next().await {
            match told {
                Ok(()) => one_has_answered = true,
                Err(error) => {
                    tracing::debug!(%peer, %error, "a peer was not told");
                    silent.push(peer);
                }
            }
            // Where nobody answers, that says more of this side. Else whoever is there says so again
            // within ten seconds, and the others should not hear of one that is not.
            if one_has_answered {
                let mut directory = self.directory();
                silent.drain(..).for_each(|peer| directory.remove(peer, model));
            }
        }
    }

    fn sign(&self, offer: &Offer, load: Load) -> SignedAnnouncement {
        let issued = unix_time();

        let announcement = Announcement {
            peer: self.network.peer_id(),
            model: offer.model,
            model_name: offer.model_name.clone(),
            span: offer.span,
            block_count: offer.block_count,
            addresses: self.network.announced_addresses().iter().map(ToString::to_string).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            throughput: measure::refine(offer.throughput, load.decode_per_block),
            kv_tokens_free: load.kv_tokens_free,
            queue_depth: load.queue_depth,
            draining: offer.draining,
            issued,
            expires: issued + LIFETIME,
            next_hops: self.next_hops(offer),
            adapters: Vec::new(),
            moving_to: offer.intention.moving_to,
            held_blocks_max: offer.intention.held_max,
            proposal: offer.intention.proposal.clone(),
            joined: offer.intention.joined,
            holds_ends: offer.holds_ends,
        };
        announcement.sign(self.network.signing_key())
    }

    /// Round trips to the servers that may follow on a route, those first that begin where this one
    /// ends.
    fn next_hops(&self, offer: &Offer) -> Vec<NextHopLatency> {
        let end = offer.span.end();
        let own = self.network.peer_id();
        let directory = self.directory();
        let follows = |other: &&Announcement| other.peer != own && other.span.end() > end;
        let mut others: Vec<_> =
            directory.announcements(Some(offer.model)).filter(follows).collect();
        others.sort_by_key(|other| (other.span.start().abs_diff(end), other.peer));
        let measured = |other: &Announcement| {
            let round_trip = self.network.round_trip(other.peer)?;
            Some(NextHopLatency { peer: other.peer, round_trip })
        };
        others.into_iter().filter_map(measured).take(NEXT_HOPS_MAX).collect()
    }

    async fn ask_one(&self) {
        // Where there are many, they are as good as any.
        let mut others = self.others().await;
        if let Some((peer, addresses)) = others.pop() {
            self.ask(peer, &addresses).await;
        }
    }

    /// Peers to be told or asked, [`PEERS_TOLD_MAX`] at most, in the order of chance.
    async fn others(&self) -> Vec<(PeerId, Vec<String>)> {
        let own = self.network.peer_id();
        let mut known = BTreeMap::new();
        for other in self.directory().announcements(None).filter(|other| other.peer != own) {
            known.insert(other.peer, other.addresses.clone());
        }
        let mut connected = self.network.connected_servers().await;
        if known.is_empty() && connected.is_empty() {
            // They may not have said yet what they are.
            connected = self.network.connected_peers().await;
        }
        choose(known, connected, &mut Random::new(getrandom::u64().unwrap_or_default()))
    }

    async fn ask(&self, peer: PeerId, addresses: &[String]) {
        match lookup(&self.network, peer, addresses, None).await {
            Ok(found) => {
                let (mut directory, now) = (self.directory(), unix_time());
                for signed in found {
                    if let Err(error) = directory.insert(signed, now) {
                        note_refused(peer, &error);
                    }
                }
            }
            Err(error) => tracing::debug!(%peer, %error, "a peer did not say whom it knows"),
        }
    }

    async fn answer_link(self, peer: PeerId, link: Link) {
        let (mut sender, mut receiver) = link.split();
        for _ in 0..QUESTIONS_MAX {
            let Ok(Ok(Some(frame))) = tokio::time::timeout(SILENCE_MAX, receiver.receive()).await
            else {
                return;
            };
            let answer = match DirectoryRequest::decode(frame) {
                Ok(request) => self.answer_request(peer, request),
                Err(violation) => {
                    tracing::warn!(%peer, %violation, "closing a directory link");
                    return;
                }
            };
            let Some(answer) = answer else { return };
            if !sender.send_within(answer.encode(), SILENCE_MAX).await {
                return;
            }
        }
    }

    fn answer_request(&self, peer: PeerId, request: DirectoryRequest) -> Option<DirectoryAnswer> {
        let mut directory = self.directory();
        let now = unix_time();
        match request {
            DirectoryRequest::Lookup { model } => {
                directory.expire(now);
                Some(DirectoryAnswer::Found(directory.signed(model).cloned().collect()))
            }
            DirectoryRequest::Announce(signed) => match directory.insert(signed, now) {
                Ok(_) => Some(DirectoryAnswer::Announced),
                Err(error) => {
                    note_refused(peer, &error);
                    // Who hears nothing takes this peer for gone.
                    let is_full = matches!(error, RefusedAnnouncement::Full { .. });
                    is_full.then_some(DirectoryAnswer::Announced)
                }
            },
        }
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doors(&self) -> MutexGuard<'_, Vec<Door>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A full directory refuses as many as there are, again and again.
fn note_refused(from: PeerId, error: &RefusedAnnouncement) {
    if matches!(error, RefusedAnnouncement::Full { .. }) {
        tracing::debug!(%from, %error, "an announcement finds no room");
    } else {
        tracing::warn!(%from, %error, "refused an announcement");
    }
}

/// Some of those who take announcements up: servers that are known, each as likely as any other, and where
/// these are few, peers of which no more is known than that there is a connection.
fn choose(
    known: BTreeMap<PeerId, Vec<String>>,
    mut connected: Vec<PeerId>,
    random: &mut Random,
) -> Vec<(PeerId, Vec<String>)> {
    connected.retain(|peer| !known.contains_key(peer));
    let mut chosen = draw(known.into_iter().collect(), PEERS_TOLD_MAX, random);
    let room = PEERS_TOLD_MAX - chosen.len();
    chosen.extend(draw(connected, room, random).into_iter().map(|peer| (peer, Vec::new())));
    // Who is asked is the last of them.
    let count = chosen.len();
    draw(chosen, count, random)
}

/// So many of all, in the order of chance.
fn draw<T>(mut all: Vec<T>, count: usize, random: &mut Random) -> Vec<T> {
    let count = count.min(all.len());
    for drawn in 0..count {
        let other = drawn + random.below(all.len() - drawn);
        all.swap(drawn, other);
    }
    all.truncate(count);
    all
}

#[cfg(test)]
mod tests;
