//! Peers that do not keep to the protocol, and the network that lives on.

use std::io::ErrorKind;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::kad::store::MemoryStore;
use libp2p::swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{StreamProtocol, SwarmBuilder, identify, kad};
use umbel_net::{Incoming, Link, LinkProtocol, Multiaddr, Network, ReceiveError, SendError};
use umbel_protocol::frame::FrameError;

use crate::discovery::KEY;
use crate::{Pair, QUIC, client, frame, pair, server};

/// A stream of a protocol, opened by a peer of another make.
pub(crate) async fn raw_stream(server: &Network, protocol: LinkProtocol) -> libp2p::Stream {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .unwrap()
        .build();
    let mut control = swarm.behaviour().new_control();
    let peer = libp2p::PeerId::from_bytes(&server.peer_id().to_multihash()).unwrap();
    swarm.dial(server.listen_addresses()[0].clone()).unwrap();
    while !swarm.is_connected(&peer) {
        swarm.select_next_some().await;
    }
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    control.open_stream(peer, StreamProtocol::new(protocol.name())).await.unwrap()
}

async fn attacked(bytes: &[u8]) -> (Network, Incoming, Link, libp2p::Stream) {
    let server = server(QUIC).await;
    let mut incoming = server.accept(LinkProtocol::Session).unwrap();
    let mut raw = raw_stream(&server, LinkProtocol::Session).await;
    raw.write_all(bytes).await.unwrap();
    let (_, link) = incoming.next().await.unwrap();
    (server, incoming, link, raw)
}

async fn still_serves(server: &Network, incoming: &mut Incoming) {
    let client = client().await;
    let addresses = server.listen_addresses();
    let opened =
        client.open_link(server.peer_id(), &addresses, LinkProtocol::Session).await.unwrap();
    let (_, accepted) = incoming.next().await.unwrap();
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    sender.send(frame(1, 100)).await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), Some(frame(1, 100)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_above_the_limit_closes_its_link_and_nothing_else() {
    let claim = [[0, 0, 1, 0], [1, 0, 0, 4]].concat();
    let (server, mut incoming, link, mut raw) = attacked(&claim).await;
    let (mut sender, mut receiver) = link.split();
    let too_large = FrameError::Payload { bytes: (64 << 20) + 1, max: 64 << 20 };
    for _ in 0..2 {
        let error = receiver.receive().await.unwrap_err();
        assert!(matches!(error, ReceiveError::Frame(found) if found == too_large), "{error}");
    }
    let error = sender.send(frame(0, 1)).await.unwrap_err();
    assert!(matches!(error, SendError::Closed), "{error}");
    let read = raw.read(&mut [0]).await;
    let closed = |kind| matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    assert!(
        read.as_ref().map_or_else(|error| closed(error.kind()), |count| *count == 0),
        "{read:?}"
    );
    still_serves(&server, &mut incoming).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_closes_its_link_and_nothing_else() {
    let garbage: Vec<u8> =
        (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (server, mut incoming, link, _raw) = attacked(&garbage).await;
    let (_sender, mut receiver) = link.split();
    let error = receiver.receive().await.unwrap_err();
    assert!(matches!(error, ReceiveError::Frame(_)), "{error}");
    still_serves(&server, &mut incoming).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_ends_within_a_frame_was_not_closed_in_order() {
    let (server, mut incoming, link, mut raw) = attacked(&[5, 0, 0, 0, 0, 0, 0, 0, 1, 2]).await;
    raw.close().await.unwrap();
    let (_sender, mut receiver) = link.split();
    let error = receiver.receive().await.unwrap_err();
    assert!(matches!(error, ReceiveError::Truncated), "{error}");
    still_serves(&server, &mut incoming).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_is_stopped_before_it_breaks_the_limits() {
    let Pair { server: _server, client: _client, accepted, opened } = pair(QUIC).await;
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    let mut large = frame(0, 0);
    large.header = vec![0; (64 << 10) + 1].into();
    let error = sender.send(large).await.unwrap_err();
    let too_large = FrameError::Header { bytes: (64 << 10) + 1, max: 64 << 10 };
    assert!(matches!(error, SendError::Frame(found) if found == too_large), "{error}");
    sender.send(frame(1, 1)).await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), Some(frame(1, 1)), "the link is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_on_a_push_link_in_the_other_direction() {
    let (server, client) = (server(QUIC).await, client().await);
    let mut incoming = server.accept(LinkProtocol::Push).unwrap();
    let addresses = server.listen_addresses();
    let _opened = client.open_link(server.peer_id(), &addresses, LinkProtocol::Push).await.unwrap();
    let (_, accepted) = incoming.next().await.unwrap();
    let error = accepted.split().0.send(frame(0, 0)).await.unwrap_err();
    assert!(matches!(error, SendError::Frame(FrameError::Header { max: 0, .. })), "{error}");
}

/// A peer of the hash table that says more of itself than it should.
#[derive(NetworkBehaviour)]
struct Boaster {
    identify: identify::Behaviour,
    kad: kad::Behaviour<MemoryStore>,
}

/// How often it says something else, and how many addresses at once.
const BOASTS: u8 = 100;
const ADDRESSES: u8 = 16;

fn boaster() -> Swarm<Boaster> {
    let protocol = StreamProtocol::new("/umbel/kad/1");
    let behaviour = |key: &libp2p::identity::Keypair| {
        let peer = key.public().to_peer_id();
        let identify = identify::Config::new("/umbel/id/1".to_owned(), key.public());
        let mut config = kad::Config::new(protocol);
        config.set_max_packet_size(1 << 20);
        let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), config);
        kad.set_mode(Some(kad::Mode::Server));
        Boaster { identify: identify::Behaviour::new(identify), kad }
    };
    let builder = SwarmBuilder::with_new_identity().with_tokio().with_quic();
    builder.with_behaviour(behaviour).unwrap().build()
}

/// What the server tells `asker` of where `peer` is.
async fn told_of(asker: &mut Swarm<Boaster>, peer: libp2p::PeerId) -> Vec<Multiaddr> {
    asker.behaviour_mut().kad.get_closest_peers(peer);
    loop {
        let event = asker.select_next_some().await;
        if let SwarmEvent::Behaviour(BoasterEvent::Kad(kad::Event::OutboundQueryProgressed {
            result: kad::QueryResult::GetClosestPeers(Ok(found)),
            ..
        })) = event
        {
            let of_peer = found.peers.into_iter().find(|info| info.peer_id == peer);
            return of_peer.map(|info| info.addrs).unwrap_or_default();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_always_says_other_addresses_fills_no_answer() {
    let (server, provider) = (server(QUIC).await, server(QUIC).await);
    let mut boaster = boaster();
    let peer = libp2p::PeerId::from_bytes(&server.peer_id().to_multihash()).unwrap();
    boaster.listen_on(QUIC.parse().unwrap()).unwrap();
    while boaster.listeners().next().is_none() {
        boaster.select_next_some().await;
    }
    boaster.dial(server.listen_addresses()[0].clone()).unwrap();
    while !boaster.is_connected(&peer) {
        boaster.select_next_some().await;
    }
    for boast in 0..BOASTS {
        let addresses = |boast: u8| {
            // On this machine, where nobody listens.
            (0..ADDRESSES)
                .map(move |n| format!("/ip4/127.1.{boast}.{n}/udp/1/quic-v1").parse().unwrap())
        };
        for before in addresses(boast.wrapping_sub(1)) {
            boaster.remove_external_address(&before);
        }
        addresses(boast).for_each(|address| boaster.add_external_address(address));
        boaster.behaviour_mut().identify.push([peer]);
        let is_pushed = |event: &_| {
            matches!(
                event,
                SwarmEvent::Behaviour(BoasterEvent::Identify(identify::Event::Pushed { .. }))
            )
        };
        while !is_pushed(&boaster.select_next_some().await) {}
    }
    let name = *boaster.local_peer_id();
    tokio::spawn(async move {
        loop {
            boaster.select_next_some().await;
        }
    });

    let mut asker = self::boaster();
    let address = server.listen_addresses()[0].clone();
    asker.behaviour_mut().kad.add_address(&peer, address);
    let told = told_of(&mut asker, name).await;
    assert!((1..=usize::from(ADDRESSES)).contains(&told.len()), "{}", told.len());

    provider.join(&server.named_addresses()).await.unwrap();
    provider.provide(KEY).await;
    while server.find_providers(KEY).await != [provider.peer_id()] {}
    let client = client().await;
    client.join(&server.named_addresses()).await.unwrap();
    assert_eq!(client.find_providers(KEY).await, [provider.peer_id()]);
}
