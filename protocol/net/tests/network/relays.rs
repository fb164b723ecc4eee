//! Peers that are reached by a relay.

use std::time::Duration;

use umbel_net::{
    Identity, LinkProtocol, Network, NetworkConfig, RelayLimits, Role, StartNetworkError,
    relayed_by,
};

use crate::{QUIC, TCP, address, client, frame, server};

/// A server that relays, on an address that it gets or has.
async fn relay(listen: &str) -> Network {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let listen = vec![address(listen)];
    Network::start(NetworkConfig { listen, relays: Some(RelayLimits::default()), ..config })
        .await
        .unwrap()
}

/// A peer that listens nowhere but at a relay.
async fn behind(relay: &Network) -> Result<Network, StartNetworkError> {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    let listen = vec![relayed_by(&relay.preferred_address()).unwrap()];
    Network::start(NetworkConfig { listen, ..config }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_nowhere_else_is_reached_by_a_relay() {
    for listen in [QUIC, TCP] {
        let relay = relay(listen).await;
        let hidden = behind(&relay).await.unwrap();
        let mut incoming = hidden.accept(LinkProtocol::Averaging).unwrap();
        let told = hidden.named_addresses();
        assert!(told.iter().all(|address| address.to_string().contains("/p2p-circuit/p2p/")));
        let asker = client().await;
        assert_eq!(asker.join(&told).await.unwrap(), [hidden.peer_id()]);
        let link = asker.open_link(hidden.peer_id(), &told, LinkProtocol::Averaging).await;
        let (mut sender, _) = link.unwrap().split();
        let (peer, link) = incoming.next().await.unwrap();
        assert_eq!(peer, asker.peer_id());
        // More than libp2p's relays pass on by themselves, and more than is under way at once.
        let (_, mut receiver) = link.split();
        let sending = sender.send(frame(1, 1 << 20));
        let (sent, received) = tokio::join!(sending, receiver.receive());
        sent.unwrap();
        assert_eq!(received.unwrap(), Some(frame(1, 1 << 20)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_relay_gives_no_place() {
    let server = server(QUIC).await;
    let error = behind(&server).await.unwrap_err();
    assert!(matches!(error, StartNetworkError::Listen { .. }), "{error}");
    assert!(error.to_string().contains("p2p-circuit"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_starts_anew_is_asked_again() {
    let identity = tempfile::tempdir().unwrap();
    let file = identity.path().join("identity.pem");
    let start = async |listen| {
        let identity = Identity::load_or_create(&file).unwrap();
        let config = NetworkConfig::new(identity, Role::Server);
        Network::start(NetworkConfig { listen, relays: Some(RelayLimits::default()), ..config })
            .await
            .unwrap()
    };
    let relay = start(vec![address(TCP)]).await;
    let listen = relay.listen_addresses();
    let hidden = behind(&relay).await.unwrap();
    let _incoming = hidden.accept(LinkProtocol::Averaging).unwrap();
    let told = hidden.named_addresses();
    relay.shutdown().await;
    drop(relay);
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    while !hidden.listen_addresses().is_empty() {
        looks.tick().await;
    }
    let _relay = start(listen).await;
    while hidden.listen_addresses().is_empty() {
        looks.tick().await;
    }
    client().await.open_link(hidden.peer_id(), &told, LinkProtocol::Averaging).await.unwrap();
}

#[test]
fn a_relay_has_a_name_and_is_no_other_relays_peer() {
    let peer = Identity::ephemeral().peer_id();
    let bare = "/ip4/10.0.0.7/tcp/4001";
    let named = format!("{bare}/p2p/{peer}");
    assert_eq!(relayed_by(&address(bare)), None);
    let relayed = relayed_by(&address(&named)).unwrap();
    assert_eq!(relayed.to_string(), format!("{named}/p2p-circuit"));
    assert_eq!(relayed_by(&address(&format!("{relayed}/p2p/{peer}"))), None);
}
