//! The task that owns the `libp2p::Swarm`: commands in, events handled, nothing else waits for it.
//!
//! Frames do not pass through here: once a link is open, its stream is read and written by
//! whoever holds it.

mod circuits;
mod dials;
mod direct;
mod discovery;
mod event;
mod peers;
mod places;
mod probes;
mod round_trips;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use libp2p::core::transport::ListenerId;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, TransportError};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, oneshot, watch};
use umbel_protocol::PeerId;

use crate::address::{NOT_DIALABLE, innermost, is_relayed, tcp_socket};
use crate::behaviour::Behaviour;
use crate::config::{NetworkConfig, Reach, Role};
use crate::error::{AddressFailure, StartNetworkError};
use crate::links::{Acceptors, OpenStream, StreamError};
use crate::rates::{RateLimits, Rates};
use crate::reachability::{Judge, Reachability, Standing};
use circuits::Places;
use dials::Dials;
use direct::Direct;
use discovery::Discovery;
pub(crate) use discovery::{ASKED_AT_ONCE, Providers};
use peers::Peers;
use probes::Probes;
use round_trips::RoundTrips;

/// Commands that wait. Each is handled in microseconds; whoever finds the queue full waits.
pub(crate) const COMMANDS_WAITING_MAX: usize = 256;

/// How long sockets may take to listen: the system answers at once or not at all.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long farewells to peers may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How a connection to a peer is answered.
pub(crate) type ConnectReply = oneshot::Sender<Result<libp2p::PeerId, Vec<AddressFailure>>>;

/// What the task is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Have a connection to a peer, or to whoever answers at the one address.
    Connect { peer: Option<libp2p::PeerId>, addresses: Vec<Multiaddr>, reply: ConnectReply },
    /// Wait until a connected peer has said what it speaks; `false` where it is none of Umbel.
    Identify { peer: libp2p::PeerId, reply: oneshot::Sender<bool> },
    /// Open a stream on a connection that is there.
    OpenStream { peer: libp2p::PeerId, request: OpenStream },
    /// Where is a peer, as far as this one knows?
    KnownAddresses { peer: libp2p::PeerId, reply: oneshot::Sender<Vec<Multiaddr>> },
    /// Ask the hash table where a peer is.
    FindPeer { peer: libp2p::PeerId, reply: oneshot::Sender<Vec<Multiaddr>> },
    /// Ask the hash table who provides a key, and connect to them where that is wanted.
    FindProviders { key: [u8; 32], meet: bool, reply: oneshot::Sender<Vec<PeerId>> },
    /// Tell the hash table that this peer provides a key; answered once this peer itself says so.
    Provide { key: [u8; 32], reply: oneshot::Sender<()> },
    /// Stop telling; answered likewise.
    StopProviding { key: [u8; 32], reply: oneshot::Sender<()> },
    /// Which peers are connected?
    ConnectedPeers { reply: oneshot::Sender<Vec<PeerId>> },
    /// Which of them are servers?
    ConnectedServers { reply: oneshot::Sender<Vec<PeerId>> },
    /// Where does a connected peer say that it listens?
    PeerAddresses { peer: libp2p::PeerId, reply: oneshot::Sender<Vec<Multiaddr>> },
    /// Is a peer connected, and by a relay alone?
    IsRelayed { peer: libp2p::PeerId, reply: oneshot::Sender<Option<bool>> },
    /// See whether the process at the other end of a connection has ended.
    Probe { peer: libp2p::PeerId },
    /// Close every connection and end.
    Shutdown { reply: oneshot::Sender<()> },
}

/// What the task shows without being asked.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) acceptors: Arc<Acceptors>,
    pub(crate) rates: Arc<Rates>,
    /// What others are told instead of where this peer listens.
    pub(crate) announce: Vec<Multiaddr>,
    /// Where it listens, relays included, the best first.
    pub(crate) listen: watch::Sender<Vec<Multiaddr>>,
    round_trips: Mutex<RoundTrips>,
    pub(crate) reachability: watch::Sender<Vec<Reachability>>,
    pub(crate) standing: watch::Sender<Standing>,
    /// Told of whenever a peer has connected.
    pub(crate) connected: watch::Sender<()>,
    /// Circuits that this peer passes on at the moment.
    pub(crate) circuits: AtomicUsize,
}

impl Shared {
    pub(crate) fn new(announce: Vec<Multiaddr>, limits: RateLimits) -> Self {
        Self {
            acceptors: Arc::default(),
            rates: Arc::new(Rates::new(limits)),
            announce,
            listen: watch::Sender::default(),
            round_trips: Mutex::default(),
            reachability: watch::Sender::default(),
            standing: watch::Sender::default(),
            connected: watch::Sender::default(),
            circuits: AtomicUsize::new(0),
        }
    }

    pub(crate) fn round_trips(&self) -> MutexGuard<'_, RoundTrips> {
        self.round_trips.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task's state.
pub(crate) struct Driver {
    swarm: libp2p::Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// Whether the hash table tells others where this peer listens.
    tells: bool,
    /// Whether only this machine can reach the peer.
    loopback_only: bool,
    role: Role,
    reach: Reach,
    /// Whether it passes on for others.
    relays: bool,
    /// Where it listens itself.
    sockets: Vec<Multiaddr>,
    dials: Dials,
    direct: Direct,
    peers: Peers,
    probes: Probes,
    discovery: Discovery,
    places: Places,
    judge: Judge,
    /// Circuits that it passes on, by who is at their ends.
    passed: BTreeMap<(libp2p::PeerId, libp2p::PeerId), usize>,
}

impl Driver {
    pub(crate) fn new(
        swarm: libp2p::Swarm<Behaviour>,
        commands: mpsc::Receiver<Command>,
        shared: Arc<Shared>,
        config: &NetworkConfig,
    ) -> Self {
        // Who wants to find out whether others come in does not say so first.
        let tells = config.role == Role::Server || !config.asks_reachability;
        Self {
            swarm,
            commands,
            shared,
            tells: tells && config.reach != Reach::Relayed,
            loopback_only: false,
            role: config.role,
            reach: config.reach,
            relays: config.relays.is_some(),
            sockets: Vec::new(),
            dials: Dials::default(),
            direct: Direct::default(),
            peers: Peers::default(),
            probes: Probes::new(),
            discovery: Discovery::default(),
            places: Places::new(config.relayed_by.clone()),
            judge: Judge::default(),
            passed: BTreeMap::new(),
        }
    }

    /// Listens, and returns once every socket has an address.
    pub(crate) async fn listen(
        &mut self,
        addresses: &[Multiaddr],
    ) -> Result<(), StartNetworkError> {
        self.loopback_only = addresses.iter().all(crate::address::is_loopback);
        for address in &self.shared.announce {
            self.swarm.add_external_address(address.clone());
        }
        let mut waiting = BTreeMap::new();
        for address in addresses {
            let failed = |reason| StartNetworkError::Listen { address: address.clone(), reason };
            check_free(address).map_err(|error| failed(innermost(&error)))?;
            let listener = self.swarm.listen_on(address.clone()).map_err(|error| {
                failed(match &error {
                    TransportError::MultiaddrNotSupported(_) => NOT_DIALABLE.to_owned(),
                    TransportError::Other(error) => innermost(error),
                })
            })?;
            waiting.insert(listener.to_string(), address.clone());
            if is_relayed(address) {
                self.places.fix(address.clone());
                self.places.asked(listener, address.clone());
            }
        }
        let listening = async {
            while !waiting.is_empty() {
                let event = self.swarm.select_next_some().await;
                note_listener(&event, &mut waiting)?;
                self.on_event(event);
            }
            Ok(())
        };
        match tokio::time::timeout(LISTEN_TIMEOUT, listening).await {
            Ok(result) => result?,
            Err(_) => {
                let (_, address) = waiting.pop_first().expect("a listener that is waited for");
                return Err(StartNetworkError::ListenTimedOut { address, after: LISTEN_TIMEOUT });
            }
        }
        // A socket on every interface has an address for each, of which only the first is known.
        while let Some(Some(event)) = self.swarm.next().now_or_never() {
            self.on_event(event);
        }
        self.begin_places();
        Ok(())
    }

    /// Runs until it is told to shut down, or nobody can tell it anything any more.
    pub(crate) async fn run(mut self) {
        loop {
            let wakes_at = self.discovery.wakes_at();
            let places_wake_at = self.places_wake_at();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown { reply }) => {
                        self.shutdown().await;
                        let _nobody_waits = reply.send(());
                        return;
                    }
                    Some(command) => self.on_command(command),
                    None => return self.shutdown().await,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                connection = self.probes.refused() => {
                    tracing::debug!(%connection, "the process at the other end has ended");
                    self.swarm.close_connection(connection);
                }
                () = sleep_until(places_wake_at) => self.look_for_places(),
                () = sleep_until(self.direct.wakes_at()) => self.wait_for_direct_no_more(),
                () = sleep_until(wakes_at) => {
                    let now = tokio::time::Instant::now();
                    self.discovery.wake(&mut self.swarm.behaviour_mut().kad, now);
                }
            }
        }
    }

    /// A reply whose asker has gone is of no use to anybody, here and below.
    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { peer, addresses, reply } => {
                self.dials.connect(&mut self.swarm, peer, addresses, reply);
            }
            Command::Identify { peer, reply } => self.peers.identify(peer, reply),
            Command::OpenStream { peer, request } => self.open_stream(peer, request),
            Command::KnownAddresses { peer, reply } => {
                let kad = &mut self.swarm.behaviour_mut().kad;
                let _unwanted = reply.send(discovery::known_addresses(kad, peer));
            }
            Command::FindPeer { peer, reply } => {
                self.discovery.find_peer(&mut self.swarm.behaviour_mut().kad, peer, reply);
            }
            Command::FindProviders { key, meet, reply } => {
                let kad = &mut self.swarm.behaviour_mut().kad;
                self.discovery.find_providers(kad, (key, meet), reply);
            }
            Command::Provide { key, reply } => {
                self.discovery.provide(&mut self.swarm.behaviour_mut().kad, key);
                let _unwanted = reply.send(());
            }
            Command::StopProviding { key, reply } => {
                self.discovery.stop_providing(&mut self.swarm.behaviour_mut().kad, key);
                let _unwanted = reply.send(());
            }
            Command::ConnectedPeers { reply } => {
                let peers = self.swarm.connected_peers().filter_map(peers::own_name);
                let _unwanted = reply.send(peers.collect());
            }
            Command::ConnectedServers { reply } => {
                let _unwanted = reply.send(self.peers.servers());
            }
            Command::PeerAddresses { peer, reply } => {
                let _unwanted = reply.send(self.peers.addresses(peer));
            }
            Command::IsRelayed { peer, reply } => {
                let connected = self.peers.best_connection(peer).is_some();
                let _unwanted = reply.send(connected.then(|| self.peers.is_relayed(peer)));
            }
            Command::Probe { peer } => {
                if let Some((connection, socket)) = self.peers.quic_socket(peer) {
                    self.probes.send(connection, socket);
                }
            }
            Command::Shutdown { .. } => unreachable!("the loop ends with it"),
        }
    }

    fn open_stream(&mut self, peer: libp2p::PeerId, request: OpenStream) {
        if let Some(request) = self.direct.wait(peer, request) {
            self.open_stream_now(peer, request);
        }
    }

    fn open_stream_now(&mut self, peer: libp2p::PeerId, request: OpenStream) {
        match self.peers.best_connection(peer) {
            Some(connection) => {
                self.swarm.behaviour_mut().links.open(peer, connection, request);
            }
            None => {
                let error = StreamError::Broken("the connection has closed".to_owned());
                let _unwanted = request.reply.send(Err(error));
            }
        }
    }

    /// Says farewell, so that peers need not find out by themselves.
    async fn shutdown(&mut self) {
        self.shared.acceptors.close();
        self.commands.close();
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // It may have gone by itself since.
            let _gone = self.swarm.disconnect_peer_id(peer);
        }
        let farewells = async {
            while self.swarm.connected_peers().next().is_some() {
                let _event = self.swarm.select_next_some().await;
            }
        };
        let _in_vain = tokio::time::timeout(SHUTDOWN_TIMEOUT, farewells).await;
    }
}

/// Whether nobody listens on a TCP port yet. libp2p shares ports with any process of the same
/// user that does so too, and each of two servers would then be handed half of the connections.
fn check_free(address: &Multiaddr) -> std::io::Result<()> {
    match tcp_socket(address).filter(|_| !is_relayed(address)) {
        Some(socket) if socket.port() != 0 => bind_alone(socket),
        Some(_) | None => Ok(()),
    }
}

/// Listens on a port and leaves it again. A socket of IPv6 is for IPv6 alone, as those of libp2p are: else
/// who listens on one port for both would be in its own way.
fn bind_alone(address: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // On Windows it would let several processes have the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// Takes note of a listener that has begun, or failed.
fn note_listener<T>(
    event: &SwarmEvent<T>,
    waiting: &mut BTreeMap<String, Multiaddr>,
) -> Result<(), StartNetworkError> {
    let name = |listener: &ListenerId| listener.to_string();
    if let SwarmEvent::NewListenAddr { listener_id, .. } = event {
        waiting.remove(&name(listener_id));
    }
    if let SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } = event
        && let Some(address) = waiting.remove(&name(listener_id))
    {
        return Err(StartNetworkError::Listen { address, reason: innermost(error) });
    }
    Ok(())
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
