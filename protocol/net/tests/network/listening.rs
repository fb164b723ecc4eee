//! Where a peer listens.

use std::net::TcpListener;

use umbel_net::{Identity, Network, NetworkConfig, Role, StartNetworkError};

use crate::address;

async fn listens(listen: &[String]) -> Result<Network, StartNetworkError> {
    let listen = listen.iter().map(|listen| address(listen)).collect();
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    Network::start(NetworkConfig { listen, ..config }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_somebody_may_answer_later_is_told_apart_from_what_leads_nowhere() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let peer = listens(&[]).await.unwrap();
    for (to, may_pass) in [
        (format!("/ip4/127.0.0.1/tcp/{}", free.port()), true),
        (format!("/ip4/127.0.0.1/udp/{}/quic-v1", free.port()), true),
        ("/ip4/127.0.0.1/udp/4001".to_owned(), false),
    ] {
        let error = peer.join(&[address(&to)]).await.unwrap_err();
        assert_eq!(error.may_pass(), may_pass, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_is_for_both_versions_of_ip_and_for_one_peer() {
    if TcpListener::bind("[::1]:0").is_err() {
        // This machine has one of them.
        return;
    }
    let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let both = [format!("/ip4/0.0.0.0/tcp/{port}"), format!("/ip6/::/tcp/{port}")];
    let peer = listens(&both).await.unwrap();
    let known = peer.listen_addresses();
    for version in ["/ip4/127.0.0.1/", "/ip6/::1/"] {
        assert!(known.iter().any(|at| at.to_string().starts_with(version)), "{known:?}");
    }
    for taken in both {
        let refused = listens(&[taken]).await.unwrap_err();
        assert!(matches!(refused, StartNetworkError::Listen { .. }), "{refused}");
    }
}
