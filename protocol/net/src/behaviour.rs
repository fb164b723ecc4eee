//! Transports and protocols, put together into one `libp2p::Swarm`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    StreamProtocol, SwarmBuilder, Transport as _, connection_limits, dns, identify, kad, mdns,
    noise, ping, quic, relay, tcp, yamux,
};
use libp2p_autonat::v2 as autonat;
use umbel_protocol::version::SOFTWARE;

use crate::address::innermost;
use crate::config::{NetworkConfig, Reach, RelayLimits, Role};
use crate::driver::{ASKED_AT_ONCE, Providers, Shared};
use crate::error::StartNetworkError;
use crate::links;
use crate::passing::Muxer;
use crate::punching;
use crate::rates::Rates;
use crate::swarm_key::SwarmKey;

/// The hash table of Umbel, which no other network joins by accident.
pub(crate) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/umbel/kad/1");

/// What peers of Umbel call what they speak.
pub(crate) const IDENTIFY_PROTOCOL: &str = "/umbel/id/1";

/// Under this key the hash table holds who gives places to those that cannot be reached.
pub(crate) const RELAYS_KEY: [u8; 32] = *b"umbel relays: circuit relay v2\0\0";

/// Connections at once: a server has one to each of its clients (256 sessions at most, each
/// perhaps of another client), to its neighbours on routes, and to those in the hash table.
const CONNECTIONS_MAX: u32 = 1024;

/// Connections with one peer: one each way, and as many while they are replaced; where two meet by relays,
/// one of these each way, and for each of them a direct one from either side.
const CONNECTIONS_PER_PEER_MAX: u32 = 6;

/// Handshakes at once, in each direction; each costs a signature.
const HANDSHAKES_MAX: u32 = 128;

/// A connection without a link is of use for as long as its peer may be asked again.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// A QUIC connection that is silent for so long is dead, which is how the death of a server is
/// noticed: four keep-alives must be lost in a row.
const QUIC_IDLE_TIMEOUT_MS: u32 = 8_000;

/// How often an idle QUIC connection sends something.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How long a QUIC handshake may take: a lost first packet is sent again after 1 and 3 s.
const QUIC_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an attempt to connect may take over TCP, whose first packet is sent again after 1, 3 and 7 s.
/// Who asks to be dialled back waits for 10 s, and hears nothing where the attempt takes as long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// Bytes that a peer may send on one QUIC stream before they are read: 100 ms at 640 Mbit/s.
const QUIC_STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// The same for all streams of a connection.
const QUIC_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Streams that a peer may open at once on one connection: its links and some questions. A
/// client has at most 64 sessions on a server, with a link each.
const STREAMS_MAX: u32 = 256;

/// How long a question to the hash table may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long others remember that this peer provides something.
const PROVIDER_RECORD_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// How often they are reminded.
const PROVIDER_RECORD_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Longest message of the hash table: an answer has 20 peers that are closer and 20 providers, each with 16
/// addresses of 256 bytes and its name, which come to 170 KB, and a few of these peers may have been dialled
/// at other addresses. libp2p's 16 KiB would do for 18 servers with 16 usual addresses each.
const KAD_MESSAGE_BYTES_MAX: usize = 256 << 10;

/// Circuits of a relay that one peer has opened: a session of a route of 16 hops behind relays, twice over
/// while it is mended, and those that announce themselves.
const CIRCUITS_PER_PEER_MAX: usize = 64;

/// Circuits that a peer may open in a burst, and how long each takes to be allowed again; the same for all
/// peers of one address, which may be a house or a provider's translator. A server that announces itself to
/// 16 peers has so many, and asks again every ten seconds for those that have failed.
const CIRCUITS_OF_PEER: (u32, Duration) = (64, Duration::from_secs(10));
const CIRCUITS_OF_ADDRESS: (u32, Duration) = (256, Duration::from_secs(1));

/// How long a relay passes on between two peers before they must ask anew. It bounds what one that has gone
/// mad holds, and not what sessions need, which go on over another circuit.
const CIRCUIT_LIFETIME: Duration = Duration::from_secs(2 * 60 * 60);

/// How long a ping may take before its connection counts as dead.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that runs on the connections of a peer.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(crate) links: links::Behaviour,
    pub(crate) kad: kad::Behaviour<Providers>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    /// Asks others to dial this peer back (AutoNAT, version 2).
    pub(crate) ask_back: Toggle<autonat::client::Behaviour>,
    /// Dials those back who ask for it.
    dial_back: Toggle<autonat::server::Behaviour>,
    /// Passes on what others send to those who cannot be reached.
    pub(crate) relay: Toggle<relay::Behaviour>,
    /// Is reached through others who do so.
    relayed: relay::client::Behaviour,
    /// Looks for a direct way to those who were met by a relay. It counts connections, and must not hear of
    /// one that another behaviour turns away.
    punching: punching::Behaviour,
}

/// The `libp2p::Swarm` of a peer, which neither listens nor dials yet.
pub(crate) fn build(
    config: &NetworkConfig,
    shared: &Shared,
) -> Result<libp2p::Swarm<Behaviour>, StartNetworkError> {
    let keypair = config.identity.keypair();
    let links = links::Behaviour::new(Arc::clone(&shared.acceptors), Arc::clone(&shared.rates));
    let behaviour = behaviour(config, &keypair, links)?;
    let no_relay = |error| set_up("way by relays", &error);
    // Without a name server only names cannot be dialled.
    let (resolver, options) = hickory_resolver::system_conf::read_system_conf()
        .inspect_err(|error| tracing::warn!(%error, "names cannot be resolved"))
        .unwrap_or_else(|_| {
            let nobody = dns::ResolverConfig::from_parts(None, Vec::new(), Vec::new());
            (nobody, dns::ResolverOpts::default())
        });
    let prologue = config.swarm_key.as_ref().map(SwarmKey::prologue).unwrap_or_default();
    let noise = |keypair: &libp2p::identity::Keypair| {
        noise::Config::new(keypair).map(|config| config.with_prologue(prologue))
    };
    // The handshake of QUIC has no place for the secret.
    let quic = config.swarm_key.is_none();
    let passes = config.relays.is_some().then(|| Arc::clone(&shared.rates));
    let encryption = noise.clone()(&keypair).map_err(|error| set_up("encryption", &error))?;
    Ok(SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|keypair| sockets(keypair, encryption, quic, passes))
        .unwrap_or_else(|never| match never {})
        .with_dns_config(resolver, options)
        .with_relay_client(noise, yamux::Config::default)
        .map_err(no_relay)?
        .with_behaviour(|_, relayed| behaviour(relayed))
        .unwrap_or_else(|never| match never {})
        .with_swarm_config(tune_dials)
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build())
}

/// TCP, and QUIC where it is spoken. Where the peer passes on for others, that is counted.
fn sockets(
    keypair: &libp2p::identity::Keypair,
    encryption: noise::Config,
    quic: bool,
    passes: Option<Arc<Rates>>,
) -> Boxed<(libp2p::PeerId, StreamMuxerBox)> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(encryption)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let transport = if quic {
        let quic = quic::tokio::Transport::new(tune_quic(quic::Config::new(keypair)))
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        tcp.or_transport(quic).map(|either, _| either.into_inner()).boxed()
    } else {
        tcp.boxed()
    };
    match passes {
        Some(rates) => {
            let counted = move |muxer| StreamMuxerBox::new(Muxer::new(muxer, Arc::clone(&rates)));
            transport.map(move |(peer, muxer), _| (peer, counted(muxer))).boxed()
        }
        None => transport,
    }
}

/// QUIC first, TCP a moment later, and whichever answers first stays.
fn tune_dials(config: libp2p::swarm::Config) -> libp2p::swarm::Config {
    config.with_smart_dial().with_idle_connection_timeout(IDLE_CONNECTION_TIMEOUT)
}

fn behaviour(
    config: &NetworkConfig,
    keypair: &libp2p::identity::Keypair,
    links: links::Behaviour,
) -> Result<impl FnOnce(relay::client::Behaviour) -> Behaviour + use<>, StartNetworkError> {
    let peer = keypair.public().to_peer_id();
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(HANDSHAKES_MAX))
        .with_max_pending_outgoing(Some(HANDSHAKES_MAX))
        .with_max_established(Some(CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX));
    let identify = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
        .with_agent_version(format!("umbel/{SOFTWARE}"))
        .with_push_listen_addr_updates(true)
        // What is announced instead counts as an external address, and those are always told.
        // So does a place at a relay.
        .with_hide_listen_addrs(!config.announce.is_empty() || config.reach == Reach::Relayed);
    let ping = ping::Config::new().with_interval(config.ping_interval).with_timeout(PING_TIMEOUT);
    let mdns = match config.mdns {
        true => {
            let started = mdns::tokio::Behaviour::new(mdns::Config::default(), peer);
            Some(started.map_err(|error| set_up("search of the local network", &error))?)
        }
        false => None,
    };
    let (role, asks_back) = (config.role, config.asks_reachability || config.reach == Reach::Auto);
    let relay = config.relays.map(|limits| relay::Behaviour::new(peer, relay_config(limits)));
    Ok(move |relayed| Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        links,
        kad: hash_table(peer, role),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(ping),
        mdns: mdns.into(),
        ask_back: asks_back.then(autonat::client::Behaviour::default).into(),
        dial_back: (role == Role::Server).then(autonat::server::Behaviour::default).into(),
        relay: relay.into(),
        relayed,
        punching: punching::Behaviour::new(peer),
    })
}

fn relay_config(limits: RelayLimits) -> relay::Config {
    let few = |count| NonZeroU32::new(count).expect("it is not zero");
    let config = relay::Config {
        max_circuits: limits.circuits,
        max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: CIRCUIT_LIFETIME,
        max_circuit_bytes: limits.circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    let ((of_peer, per_peer), (of_address, per_address)) = (CIRCUITS_OF_PEER, CIRCUITS_OF_ADDRESS);
    config
        .circuit_src_per_peer(few(of_peer), per_peer)
        .circuit_src_per_ip(few(of_address), per_address)
}

/// Kademlia for provider records only.
fn hash_table(peer: libp2p::PeerId, role: Role) -> kad::Behaviour<Providers> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_max_packet_size(KAD_MESSAGE_BYTES_MAX)
        // What a peer says of itself is kept only so far.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_query_timeout(QUERY_TIMEOUT)
        // Volunteers' machines come and go: those that are gone must not keep the others from being asked.
        .set_parallelism(NonZeroUsize::new(ASKED_AT_ONCE).expect("it is not zero"))
        .set_provider_record_ttl(Some(PROVIDER_RECORD_LIFETIME))
        .set_provider_publication_interval(Some(PROVIDER_RECORD_INTERVAL));
    let mut kad = kad::Behaviour::with_config(peer, Providers::new(peer), config);
    kad.set_mode(Some(match role {
        Role::Server => kad::Mode::Server,
        Role::Client => kad::Mode::Client,
    }));
    kad
}

fn tune_quic(mut config: quic::Config) -> quic::Config {
    config.max_idle_timeout = QUIC_IDLE_TIMEOUT_MS;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.handshake_timeout = QUIC_HANDSHAKE_TIMEOUT;
    config.max_stream_data = QUIC_STREAM_WINDOW_BYTES;
    config.max_connection_data = QUIC_CONNECTION_WINDOW_BYTES;
    config.max_concurrent_stream_limit = STREAMS_MAX;
    config
}

fn set_up(part: &'static str, error: &(dyn std::error::Error + 'static)) -> StartNetworkError {
    StartNetworkError::SetUp { part, reason: innermost(error) }
}
