//! The handle of a peer's network, which others hold.

mod join;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument as _;
use umbel_protocol::version::Side;
use umbel_protocol::{LinkProtocol, PeerId};

use crate::address::{fitting, is_quic, is_relayed, of_peer, to_announce};
use crate::behaviour::{self, RELAYS_KEY};
use crate::config::{NetworkConfig, Reach};
use crate::driver::{COMMANDS_WAITING_MAX, Command, Driver, Shared};
use crate::error::{AcceptError, AddressFailure, OpenLinkError, StartNetworkError};
use crate::identity::Identity;
use crate::link::{Link, Stream};
use crate::links::{Incoming, OpenStream, Opened, StreamError};
use crate::local;
use crate::probe::all_refused;
use crate::rates::Traffic;
use crate::reachability::{Reachability, Standing};

/// How long opening a link may take, dialling and a question to the hash table included: two QUIC
/// handshakes of 5 s, or one and the detour over TCP.
const OPEN_LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// One peer of the network. Clones are the same peer; it leaves when the last one is dropped, or
/// in good order by [`Network::shutdown`].
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    identity: Identity,
    peer: PeerId,
    reach: Reach,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    local_links: bool,
    /// Whether the swarm is private, so that TCP alone leads to others.
    is_private: bool,
}

impl Network {
    /// Starts a peer, and returns once every requested socket listens.
    ///
    /// # Errors
    /// [`StartNetworkError`] where an address cannot be listened on.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(config: NetworkConfig) -> Result<Self, StartNetworkError> {
        let peer = config.identity.peer_id();
        let told = config.listen.iter().chain(&config.announce);
        if config.swarm_key.is_some()
            && let Some(address) = told.into_iter().find(|address| is_quic(address))
        {
            return Err(StartNetworkError::QuicInPrivate { address: address.clone() });
        }
        let announce = to_announce(foreign_name(peer), &config.announce)?;
        let shared = Arc::new(Shared::new(announce, config.rate_limits));
        let (commands, receiver) = mpsc::channel(COMMANDS_WAITING_MAX);
        let swarm = behaviour::build(&config, &shared)?;
        let mut driver = Driver::new(swarm, receiver, Arc::clone(&shared), &config);
        driver.listen(&config.listen).await?;
        if config.local_links {
            let (acceptors, rates) = (Arc::clone(&shared.acceptors), Arc::clone(&shared.rates));
            let incoming = acceptors.accept(LinkProtocol::Local).expect("nobody accepts them yet");
            tokio::spawn(local::answer(incoming, acceptors, rates));
        }
        let span = tracing::info_span!(parent: None, "network", %peer);
        tokio::spawn(driver.run().instrument(span));
        let NetworkConfig { identity, reach, local_links, swarm_key, .. } = config;
        let is_private = swarm_key.is_some();
        let inner = Inner { identity, peer, reach, commands, shared, local_links, is_private };
        Ok(Self(Arc::new(inner)))
    }

    /// The name of this peer.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.0.peer
    }

    /// The key of this peer.
    #[must_use]
    pub fn signing_key(&self) -> &SigningKey {
        self.0.identity.signing_key()
    }

    /// Where this peer listens, without its name: QUIC before TCP, loopback after what others reach, and
    /// relays last; a socket on every interface appears with the address of each.
    #[must_use]
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.0.shared.listen.borrow().clone()
    }

    /// The same, as it changes: relays come and go.
    #[must_use]
    pub fn address_changes(&self) -> watch::Receiver<Vec<Multiaddr>> {
        self.0.shared.listen.subscribe()
    }

    /// Where others reach this peer: what it was told to announce, or else where it listens, 16 addresses
    /// at most; relays alone where it is to be reached by nothing else ([`Reach::Relayed`]).
    #[must_use]
    pub fn announced_addresses(&self) -> Vec<Multiaddr> {
        match self.0.shared.announce.as_slice() {
            [] => {
                let told =
                    |address: &Multiaddr| self.0.reach != Reach::Relayed || is_relayed(address);
                fitting(self.listen_addresses().into_iter().filter(told).collect())
            }
            announce => announce.to_vec(),
        }
    }

    /// The same, each with `/p2p/` and this peer's name, as [`Network::join`] takes them.
    #[must_use]
    pub fn named_addresses(&self) -> Vec<Multiaddr> {
        self.announced_addresses().into_iter().map(|address| self.named(address)).collect()
    }

    /// The best of [`Network::named_addresses`]; the bare name where this peer does not listen.
    #[must_use]
    pub fn preferred_address(&self) -> Multiaddr {
        let first = self.announced_addresses().into_iter().next();
        self.named(first.unwrap_or_else(Multiaddr::empty))
    }

    /// Opens a link to `peer`. Without a connection to it, all of `addresses` are dialled, QUIC
    /// before TCP; without addresses, those that are known or that the hash table knows.
    ///
    /// # Errors
    /// [`OpenLinkError`] where the peer cannot be reached, or does not accept such links. It takes
    /// 10 s at most.
    pub async fn open_link(
        &self,
        peer: PeerId,
        addresses: &[Multiaddr],
        protocol: LinkProtocol,
    ) -> Result<Link, OpenLinkError> {
        let open = async {
            let local = self.0.local_links && local::is_worth_it(protocol);
            let link = self.open(peer, addresses, (protocol, local)).await?;
            if link.protocol() == protocol {
                return Ok(link);
            }
            match local::ask(link, protocol, &self.0.shared.rates).await {
                Ok(link) => Ok(link),
                Err(error) => {
                    tracing::debug!(%peer, %error, "the link takes the way of the network");
                    self.open(peer, addresses, (protocol, false)).await
                }
            }
        };
        let timed_out = OpenLinkError::TimedOut { peer, after: OPEN_LINK_TIMEOUT };
        tokio::time::timeout(OPEN_LINK_TIMEOUT, open).await.unwrap_or(Err(timed_out))
    }

    /// Opens a link over the connection, of the protocol or to ask by it for one within the machine.
    async fn open(
        &self,
        peer: PeerId,
        addresses: &[Multiaddr],
        wanted: (LinkProtocol, bool),
    ) -> Result<Link, OpenLinkError> {
        let name = foreign_name(peer);
        self.connect_to(peer, name, addresses).await?;
        let opened = match self.open_stream(peer, name, wanted).await {
            // The connection was there but dead, which nobody had noticed: make another.
            Err(OpenLinkError::Broken { .. }) => {
                self.connect_to(peer, name, addresses).await?;
                self.open_stream(peer, name, wanted).await?
            }
            result => result?,
        };
        let Opened { stream, protocol, listened_port } = opened;
        let stream = Stream::Network(stream);
        let link = Link::new(peer, protocol, Side::Opener, stream, &self.0.shared.rates);
        Ok(link.beside(listened_port))
    }

    /// Has a connection to `peer`, so that a link can be opened without dialling for a minute.
    ///
    /// # Errors
    /// As [`Network::open_link`], for want of a way.
    pub async fn reach(&self, peer: PeerId, addresses: &[Multiaddr]) -> Result<(), OpenLinkError> {
        let reached = self.connect_to(peer, foreign_name(peer), addresses);
        let timed_out = OpenLinkError::TimedOut { peer, after: OPEN_LINK_TIMEOUT };
        tokio::time::timeout(OPEN_LINK_TIMEOUT, reached).await.unwrap_or(Err(timed_out))
    }

    /// Accepts the links that peers open for `protocol`, until the result is dropped.
    ///
    /// # Errors
    /// [`AcceptError`] where somebody does so already.
    pub fn accept(&self, protocol: LinkProtocol) -> Result<Incoming, AcceptError> {
        self.0.shared.acceptors.accept(protocol)
    }

    /// Tells the hash table that this peer provides `key`, now and again until it stops.
    pub async fn provide(&self, key: [u8; 32]) {
        self.ask(|reply| Command::Provide { key, reply }).await;
    }

    /// Stops telling. Others may remember it for half an hour.
    pub async fn stop_providing(&self, key: [u8; 32]) {
        self.ask(|reply| Command::StopProviding { key, reply }).await;
    }

    /// Who provides `key`, by the hash table; it takes 10 s at most. This peer is not among them.
    pub async fn find_providers(&self, key: [u8; 32]) -> Vec<PeerId> {
        self.providers(key, false).await
    }

    /// The same, with a connection begun to each of them: those that are no servers are in nobody's part of
    /// the hash table, and [`Network::open_link`] would not find them later.
    pub async fn meet_providers(&self, key: [u8; 32]) -> Vec<PeerId> {
        self.providers(key, true).await
    }

    async fn providers(&self, key: [u8; 32], meet: bool) -> Vec<PeerId> {
        let found = self.ask(|reply| Command::FindProviders { key, meet, reply }).await;
        let others = found.unwrap_or_default().into_iter();
        others.filter(|peer| *peer != self.0.peer).collect()
    }

    /// What has come of dials back, as it comes, where this peer asks for them
    /// ([`NetworkConfig::asks_reachability`]): some ten seconds after a peer is connected.
    #[must_use]
    pub fn reachability(&self) -> watch::Receiver<Vec<Reachability>> {
        self.0.shared.reachability.subscribe()
    }

    /// How others reach this peer, as it changes.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.0.shared.standing.subscribe()
    }

    /// Whether `peer` is connected by a relay alone; `None` where it is not connected.
    pub async fn is_relayed(&self, peer: PeerId) -> Option<bool> {
        let peer = foreign_name(peer);
        self.ask(|reply| Command::IsRelayed { peer, reply }).await.flatten()
    }

    /// Who gives places to peers that cannot be reached, by the hash table; it takes 10 s at most.
    pub async fn find_relays(&self) -> Vec<PeerId> {
        self.find_providers(RELAYS_KEY).await
    }

    /// Circuits that this peer passes on at the moment.
    #[must_use]
    pub fn circuits(&self) -> usize {
        self.0.shared.circuits.load(Ordering::Relaxed)
    }

    /// The shortest of the last round trips of pings to `peer`, while it is connected.
    #[must_use]
    pub fn round_trip(&self, peer: PeerId) -> Option<Duration> {
        self.0.shared.round_trips().shortest(peer)
    }

    /// Bytes that all links have carried so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.0.shared.rates.traffic()
    }

    /// Asks the machine of `peer` whether the process is still there that held the connection: where
    /// its system says that it is not, the connection closes at once, and every link on it. A peer
    /// that is there hears nothing of it. Over TCP its system says so without being asked.
    pub fn probe(&self, peer: PeerId) {
        let peer = foreign_name(peer);
        // It is asked again soon; a queue that is full says that there is more to do.
        let _busy = self.0.commands.try_send(Command::Probe { peer });
    }

    /// The peers that are connected.
    pub async fn connected_peers(&self) -> Vec<PeerId> {
        self.ask(|reply| Command::ConnectedPeers { reply }).await.unwrap_or_default()
    }

    /// The same, once there is one; none where nobody has connected within so long.
    pub async fn await_peers(&self, within: Duration) -> Vec<PeerId> {
        let mut connected = self.0.shared.connected.subscribe();
        let met = async {
            loop {
                let peers = self.connected_peers().await;
                // The sender lives as long as this.
                if !peers.is_empty() || connected.changed().await.is_err() {
                    return peers;
                }
            }
        };
        tokio::time::timeout(within, met).await.unwrap_or_default()
    }

    /// Those of them that have said that they are servers.
    pub async fn connected_servers(&self) -> Vec<PeerId> {
        self.ask(|reply| Command::ConnectedServers { reply }).await.unwrap_or_default()
    }

    /// Where a connected peer says that it listens.
    pub async fn peer_addresses(&self, peer: PeerId) -> Vec<Multiaddr> {
        let peer = foreign_name(peer);
        self.ask(|reply| Command::PeerAddresses { peer, reply }).await.unwrap_or_default()
    }

    /// Closes all connections with a farewell, and ends. Calls that come later fail.
    pub async fn shutdown(&self) {
        self.ask(|reply| Command::Shutdown { reply }).await;
    }

    fn named(&self, address: Multiaddr) -> Multiaddr {
        address.with(Protocol::P2p(foreign_name(self.0.peer)))
    }

    /// Has a connection to `peer`, asking the hash table where it is as a last resort.
    async fn connect_to(
        &self,
        peer: PeerId,
        name: libp2p::PeerId,
        addresses: &[Multiaddr],
    ) -> Result<(), OpenLinkError> {
        let mut addresses = of_peer(name, addresses);
        let nowhere = addresses.is_empty();
        if nowhere {
            let known = self.ask(|reply| Command::KnownAddresses { peer: name, reply }).await;
            addresses = of_peer(name, &known.ok_or(OpenLinkError::ShutDown)?);
        }
        let Err(mut failures) = self.connect_at(Some(name), addresses).await? else {
            return Ok(());
        };
        if nowhere {
            let found = self.ask(|reply| Command::FindPeer { peer: name, reply }).await;
            let found = of_peer(name, &found.ok_or(OpenLinkError::ShutDown)?);
            if found.is_empty() {
                return Err(OpenLinkError::NoAddress { peer });
            }
            match self.connect_at(Some(name), found).await? {
                Ok(_) => return Ok(()),
                Err(later) => failures = later,
            }
        }
        Err(OpenLinkError::Unreachable { peer, failures })
    }

    /// Connects to a peer at some addresses, or to whoever answers at the one, or not where their systems
    /// say that nobody is there.
    async fn connect_at(
        &self,
        name: Option<libp2p::PeerId>,
        addresses: Vec<Multiaddr>,
    ) -> Result<Result<libp2p::PeerId, Vec<AddressFailure>>, OpenLinkError> {
        tokio::select! {
            connected = self.connect(name, addresses.clone()) => connected,
            () = all_refused(&addresses) => {
                let failure = |address| AddressFailure {
                    address: Some(address),
                    reason: "Connection refused".to_owned(),
                    lasts: false,
                    is_own: false,
                };
                Ok(Err(addresses.into_iter().map(failure).collect()))
            }
        }
    }

    async fn connect(
        &self,
        peer: Option<libp2p::PeerId>,
        addresses: Vec<Multiaddr>,
    ) -> Result<Result<libp2p::PeerId, Vec<AddressFailure>>, OpenLinkError> {
        let connected = self.ask(|reply| Command::Connect { peer, addresses, reply }).await;
        connected.ok_or(OpenLinkError::ShutDown)
    }

    async fn open_stream(
        &self,
        peer: PeerId,
        name: libp2p::PeerId,
        (protocol, local): (LinkProtocol, bool),
    ) -> Result<Opened, OpenLinkError> {
        let request = |reply| Command::OpenStream {
            peer: name,
            request: OpenStream { protocol, local, reply },
        };
        let broken = |reason| OpenLinkError::Broken { peer, reason };
        match self.ask(request).await {
            Some(Ok(opened)) => Ok(opened),
            Some(Err(StreamError::Unsupported)) => {
                Err(OpenLinkError::Unsupported { peer, protocol })
            }
            Some(Err(StreamError::Broken(reason))) => Err(broken(reason)),
            None => Err(broken("it has closed".to_owned())),
        }
    }

    /// The task's answer; `None` where it has ended.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({})", self.0.peer)
    }
}

/// The name by which libp2p knows a peer.
fn foreign_name(peer: PeerId) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).expect("the multihash of a key is a name")
}
