//! The hash table in networks of a few peers.

use umbel_net::{Identity, LinkProtocol, Network, NetworkConfig, Role};

use crate::{QUIC, address, client, server};

pub(crate) const KEY: [u8; 32] = [0x5a; 32];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_provides_is_found_through_the_second() {
    let (first, second) = (server(QUIC).await, server(QUIC).await);
    first.provide(KEY).await;
    second.join(&first.named_addresses()).await.unwrap();
    let third = client().await;
    third.join(&second.named_addresses()).await.unwrap();
    assert_eq!(third.find_providers(KEY).await, [first.peer_id()]);
    assert!(third.find_providers([1; 32]).await.is_empty());
    // The third was never told an address of the first.
    let mut incoming = first.accept(LinkProtocol::Directory).unwrap();
    let link = third.open_link(first.peer_id(), &[], LinkProtocol::Directory).await.unwrap();
    assert_eq!(link.peer(), first.peer_id());
    assert_eq!(incoming.next().await.unwrap().0, third.peer_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_second_provides_is_found_through_the_first() {
    let (first, second) = (server(QUIC).await, server(QUIC).await);
    second.join(&first.named_addresses()).await.unwrap();
    second.provide(KEY).await;
    let third = client().await;
    third.join(&first.named_addresses()).await.unwrap();
    while third.find_providers(KEY).await != [second.peer_id()] {}
    first.provide(KEY).await;
    while third.find_providers(KEY).await.len() < 2 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_providing_does_not_say_so_any_more() {
    let (only, asker) = (server(QUIC).await, client().await);
    asker.join(&only.named_addresses()).await.unwrap();
    only.provide(KEY).await;
    assert_eq!(asker.find_providers(KEY).await, [only.peer_id()]);
    only.stop_providing(KEY).await;
    assert!(asker.find_providers(KEY).await.is_empty());
    assert!(only.find_providers(KEY).await.is_empty(), "a peer does not find itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_alone_finds_nobody() {
    assert!(server(QUIC).await.find_providers(KEY).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_no_server_is_met_while_it_is_asked_for() {
    let server = server(QUIC).await;
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    let provider = Network::start(NetworkConfig { listen: vec![address(QUIC)], ..config });
    let provider = provider.await.unwrap();
    provider.join(&server.named_addresses()).await.unwrap();
    provider.provide(KEY).await;
    let mut incoming = provider.accept(LinkProtocol::Averaging).unwrap();
    let asker = client().await;
    asker.join(&server.named_addresses()).await.unwrap();
    while asker.meet_providers(KEY).await != [provider.peer_id()] {}
    let link = asker.open_link(provider.peer_id(), &[], LinkProtocol::Averaging).await.unwrap();
    assert_eq!(link.peer(), provider.peer_id());
    assert_eq!(incoming.next().await.unwrap().0, asker.peer_id());
}
