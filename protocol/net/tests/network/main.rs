//! Peers on loopback, each on ports of its own.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod discovery;
mod hidden;
mod limits;
mod links;
mod listening;
#[cfg(target_os = "linux")]
mod local;
mod private;
mod rates;
mod reach;
mod relays;

use umbel_net::{Identity, Link, LinkProtocol, Multiaddr, Network, NetworkConfig, Role};
use umbel_protocol::frame::Frame;

const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const TCP: &str = "/ip4/127.0.0.1/tcp/0";

async fn server(listen: &str) -> Network {
    let listen = vec![listen.parse().unwrap()];
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    Network::start(NetworkConfig { listen, ..config }).await.unwrap()
}

async fn client() -> Network {
    Network::start(NetworkConfig::new(Identity::ephemeral(), Role::Client)).await.unwrap()
}

/// A server, a client, and the two ends of a session link that the client opened.
struct Pair {
    server: Network,
    client: Network,
    accepted: Link,
    opened: Link,
}

async fn pair(listen: &str) -> Pair {
    linked(server(listen).await, client().await).await
}

/// The same on links within the machine.
#[cfg(target_os = "linux")]
async fn local_pair() -> Pair {
    let pair = linked(local::server(QUIC).await, local::client().await).await;
    assert!(pair.opened.is_local() && pair.accepted.is_local());
    pair
}

async fn linked(server: Network, client: Network) -> Pair {
    let mut incoming = server.accept(LinkProtocol::Session).unwrap();
    let addresses = server.listen_addresses();
    let opened =
        client.open_link(server.peer_id(), &addresses, LinkProtocol::Session).await.unwrap();
    let (peer, accepted) = incoming.next().await.unwrap();
    assert_eq!((peer, accepted.peer()), (client.peer_id(), client.peer_id()));
    assert_eq!(accepted.protocol(), LinkProtocol::Session);
    Pair { server, client, accepted, opened }
}

fn frame(number: usize, payload_bytes: usize) -> Frame {
    let header = number.to_le_bytes().to_vec().into();
    Frame { header, payload: vec![number.to_le_bytes()[0]; payload_bytes].into() }
}

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}
