//! Peers that can be reached, and those that cannot.

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
