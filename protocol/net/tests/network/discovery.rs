//! The hash table in networks of a few peers.

use umbel_net::LinkProtocol;

use crate::{QUIC, client, server};

const KEY: [u8; 32] = [0x5a; 32];

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
