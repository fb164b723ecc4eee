//! Peers that can be reached, and those that cannot.

use std::time::Duration;

use umbel_net::{
    Identity, JoinError, LinkProtocol, Network, NetworkConfig, OpenLinkError, Role,
    StartNetworkError,
};

use crate::{Pair, QUIC, TCP, address, client, frame, pair, server};

#[tokio::test(flavor = "multi_thread")]
async fn any_form_of_address_leads_into_the_swarm() {
    for listen in [QUIC, TCP] {
        let server = server(listen).await;
        for addresses in [server.listen_addresses(), server.named_addresses()] {
            let client = client().await;
            assert_eq!(client.join(&addresses).await.unwrap(), [server.peer_id()]);
            assert_eq!(client.connected_peers().await, [server.peer_id()]);
            assert_eq!(client.peer_addresses(server.peer_id()).await, server.listen_addresses());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_peers_hears_when_the_first_has_come() {
    let (server, client) = (server(QUIC).await, client().await);
    assert_eq!(server.await_peers(Duration::from_millis(1)).await, []);
    let addresses = server.named_addresses();
    // It is polled first, so that it waits before anybody comes.
    let (come, joined) = tokio::join!(
        biased;
        server.await_peers(Duration::from_secs(60)),
        client.join(&addresses),
    );
    joined.unwrap();
    assert_eq!(come, [client.peer_id()]);
    assert_eq!(server.await_peers(Duration::ZERO).await, [client.peer_id()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_that_answers_is_enough() {
    let (server, client) = (server(QUIC).await, client().await);
    let addresses = [address("/ip4/127.0.0.1/tcp/1"), server.preferred_address()];
    assert_eq!(client.join(&addresses).await.unwrap(), [server.peer_id()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_that_cannot_be_joined_says_why_for_each_address() {
    let client = client().await;
    let (first, second) = ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/webrtc-direct");
    let error = client.join(&[address(first), address(second)]).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("{first}: Connection refused")), "{text}");
    assert!(text.contains(&format!("{second}: neither a QUIC nor a TCP address")), "{text}");
    assert!(!text.contains('\n'), "{text}");
    assert!(matches!(client.join(&[]).await, Err(JoinError::NoAddress)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_does_not_join_itself() {
    let server = server(TCP).await;
    let error = server.join(&server.named_addresses()).await.unwrap_err();
    assert!(error.to_string().contains("the peer itself"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_address_is_given_up() {
    let client = client().await;
    let nobody = Identity::ephemeral().peer_id();
    // A socket that never answers: QUIC cannot tell it from a slow peer.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let addresses =
        [address(&format!("/ip4/127.0.0.1/udp/{port}/quic-v1")), address("/ip4/127.0.0.1/tcp/1")];
    let error = client.open_link(nobody, &addresses, LinkProtocol::Session).await.unwrap_err();
    let OpenLinkError::Unreachable { peer, failures } = error else { panic!("{error}") };
    assert_eq!((peer, failures.len()), (nobody, 2), "{failures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_nobody_holds_are_told_from_slow_ones() {
    let client = client().await;
    let nobody = Identity::ephemeral().peer_id();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let quic = address(&format!("/ip4/127.0.0.1/udp/{port}/quic-v1"));
    for addresses in [vec![quic.clone()], vec![quic, address("/ip4/127.0.0.1/tcp/1")]] {
        let error = client.open_link(nobody, &addresses, LinkProtocol::Session).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(text.matches("Connection refused").count(), addresses.len(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_nobody_knows_has_no_address() {
    let (server, client) = (server(QUIC).await, client().await);
    client.join(&server.named_addresses()).await.unwrap();
    let nobody = Identity::ephemeral().peer_id();
    let error = client.open_link(nobody, &[], LinkProtocol::Session).await.unwrap_err();
    assert!(matches!(error, OpenLinkError::NoAddress { peer } if peer == nobody), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_peer_at_the_address_is_not_mistaken_for_the_one_meant() {
    let (server, client) = (server(QUIC).await, client().await);
    let meant = Identity::ephemeral().peer_id();
    let addresses = server.listen_addresses();
    let error = client.open_link(meant, &addresses, LinkProtocol::Session).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("another peer answers there, {}", server.peer_id())), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_nobody_accepts_are_refused_as_such() {
    let (server, client) = (server(QUIC).await, client().await);
    let addresses = server.listen_addresses();
    let open = client.open_link(server.peer_id(), &addresses, LinkProtocol::Push);
    let error = open.await.unwrap_err();
    assert!(matches!(error, OpenLinkError::Unsupported { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_leaves_closes_its_links_at_once() {
    let Pair { server, client, accepted: _accepted, opened } = pair(QUIC).await;
    server.shutdown().await;
    let (_sender, mut receiver) = opened.split();
    assert!(!matches!(receiver.receive().await, Ok(Some(_))));
    while !client.connected_peers().await.is_empty() {
        tokio::task::yield_now().await;
    }
    let error = server.open_link(client.peer_id(), &[], LinkProtocol::Session).await.unwrap_err();
    assert!(matches!(error, OpenLinkError::ShutDown), "{error}");
    assert!(server.find_providers([0; 32]).await.is_empty());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_takes_the_place_of_where_a_peer_listens() {
    let listen = vec![address(QUIC), address(TCP)];
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let outside = address("/ip4/203.0.113.7/udp/4001/quic-v1");
    let own = config.identity.peer_id();
    let named = address(&format!("{outside}/p2p/{own}"));
    let announce = vec![address("/dns4/example.org/tcp/4001"), named.clone()];
    let server = Network::start(NetworkConfig { listen, announce, ..config }).await.unwrap();
    let announced = [outside, address("/dns4/example.org/tcp/4001")];
    assert_eq!(server.announced_addresses(), announced);
    assert_eq!(server.preferred_address(), named);
    assert_eq!(server.listen_addresses().len(), 2, "it listens where it listens");
    let client = client().await;
    client.join(&server.listen_addresses()).await.unwrap();
    let mut told = client.peer_addresses(own).await;
    told.sort_by_key(|address| announced.iter().position(|known| known == address));
    assert_eq!(told, announced);
}

#[tokio::test]
async fn an_address_that_leads_nowhere_is_not_announced() {
    let other = Identity::ephemeral().peer_id();
    let of_other = format!("/ip4/203.0.113.7/tcp/1/p2p/{other}");
    for (text, reason) in [
        ("/ip4/0.0.0.0/tcp/1", "of no machine"),
        ("/ip4/203.0.113.7/udp/1", "neither a QUIC nor a TCP address"),
        (&of_other, "another peer"),
    ] {
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
        let announce = vec![address(text)];
        let error = Network::start(NetworkConfig { announce, ..config }).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(reason), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_notices_a_process_that_has_ended_without_a_farewell() {
    // Tasks of a runtime that is shut down say nothing more, as those of a process that is killed.
    let doomed = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = doomed.spawn(server(QUIC)).await.unwrap();
    let client = client().await;
    let addresses = server.listen_addresses();
    let mut incoming = server.accept(LinkProtocol::Session).unwrap();
    let open = client.open_link(server.peer_id(), &addresses, LinkProtocol::Session);
    let (mut sender, mut receiver) = open.await.unwrap().split();
    doomed.spawn(async move {
        let (mut back, mut from) = incoming.next().await.unwrap().1.split();
        while let Some(frame) = from.receive().await.unwrap() {
            back.send(frame).await.unwrap();
        }
    });
    // A peer that is there takes no notice.
    for number in 0..10 {
        client.probe(server.peer_id());
        sender.send(frame(number, 100)).await.unwrap();
        assert_eq!(receiver.receive().await.unwrap(), Some(frame(number, 100)));
    }
    doomed.shutdown_background();
    let mut probes = tokio::time::interval(Duration::from_millis(20));
    let end = loop {
        tokio::select! {
            end = receiver.receive() => break end,
            _ = probes.tick() => client.probe(server.peer_id()),
        }
    };
    // Without probes it would have been found out by its silence.
    let error = format!("{:?}", end.unwrap_err());
    assert!(!error.contains("TimedOut") && !error.contains("timed out"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    for (taken, kind) in [(server(QUIC).await, "quic-v1"), (server(TCP).await, "tcp")] {
        let listen = taken.listen_addresses();
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
        let started = Network::start(NetworkConfig { listen: listen.clone(), ..config }).await;
        let error = started.unwrap_err();
        assert!(matches!(error, StartNetworkError::Listen { .. }), "{error}");
        assert!(error.to_string().contains(&listen[0].to_string()), "{kind}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_on_every_interface_tells_the_address_of_each() {
    let network = server("/ip4/0.0.0.0/udp/0/quic-v1").await;
    let addresses = network.listen_addresses();
    assert!(!addresses.is_empty());
    assert!(addresses.iter().all(|address| !address.to_string().contains("0.0.0.0")));
    let named = network.preferred_address().to_string();
    assert_eq!(named, format!("{}/p2p/{}", addresses[0], network.peer_id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn round_trips_are_measured_while_a_peer_is_connected() {
    let Pair { server, client, accepted, opened } = pair(QUIC).await;
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    while client.round_trip(server.peer_id()).is_none() {
        sender.send(frame(0, 0)).await.unwrap();
        receiver.receive().await.unwrap();
    }
    server.shutdown().await;
    while client.round_trip(server.peer_id()).is_some() {
        client.connected_peers().await;
    }
}

/// A client that listens and asks to be dialled back.
async fn asking(listen: &str) -> Network {
    let listen = vec![listen.parse().unwrap()];
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    Network::start(NetworkConfig { listen, asks_reachability: true, ..config }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_to_be_dialled_back_learns_whether_others_come_in() {
    for listen in [QUIC, TCP] {
        let (server, asking) = (server(listen).await, asking(listen).await);
        asking.join(&server.named_addresses()).await.unwrap();
        let mut known = asking.reachability();
        let waiting = known.wait_for(|known| !known.is_empty());
        let known = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        let known = known.expect("somebody tries").unwrap()[0].clone();
        assert_eq!((known.by, known.failure), (server.peer_id(), None));
        assert_eq!(vec![known.address], asking.listen_addresses());
    }
}
