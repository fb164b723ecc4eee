//! Private swarms: who has the secret comes in, and nobody else.

use std::net::UdpSocket;

use umbel_net::{
    Identity, Network, NetworkConfig, Role, StartNetworkError, SwarmKey, SwarmKeyError,
};

use crate::{QUIC, TCP, address, client, server};

fn key(folder: &tempfile::TempDir, name: &str) -> SwarmKey {
    SwarmKey::create(&folder.path().join(name)).unwrap()
}

async fn member(role: Role, listen: &[&str], key: &SwarmKey) -> Result<Network, StartNetworkError> {
    let listen = listen.iter().map(|listen| address(listen)).collect();
    let swarm_key = Some(key.clone());
    let config = NetworkConfig::new(Identity::ephemeral(), role);
    Network::start(NetworkConfig { listen, swarm_key, ..config }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_in_and_nobody_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (key(&folder, "ours"), key(&folder, "others"));
    let server = member(Role::Server, &[TCP], &ours).await.unwrap();
    let addresses = server.named_addresses();
    let friend = member(Role::Client, &[], &ours).await.unwrap();
    assert_eq!(friend.join(&addresses).await.unwrap(), [server.peer_id()]);
    for stranger in [client().await, member(Role::Client, &[], &others).await.unwrap()] {
        let error = stranger.join(&addresses).await.unwrap_err();
        assert!(!error.may_pass(), "{error}");
        let error = error.to_string();
        assert!(error.contains(&addresses[0].to_string()), "{error}");
        assert!(error.contains("private swarm"), "{error}");
        assert_eq!(stranger.connected_peers().await, []);
    }
    assert_eq!(server.connected_peers().await, [friend.peer_id()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_does_not_connect_to_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(Role::Client, &[], &key(&folder, "ours")).await.unwrap();
    for listen in [TCP, QUIC] {
        let stranger = server(listen).await;
        assert!(member.join(&stranger.named_addresses()).await.is_err(), "{listen}");
        assert_eq!(stranger.connected_peers().await, [], "{listen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_in_a_private_swarm_will_ever_be_reached_over_quic() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(Role::Client, &[], &key(&folder, "ours")).await.unwrap();
    let held = server(QUIC).await;
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let free = address(&format!("/ip4/127.0.0.1/udp/{port}/quic-v1"));
    for at in [held.listen_addresses().remove(0), free] {
        let error = member.join(&[at]).await.unwrap_err();
        assert!(!error.may_pass(), "{error}");
        assert!(error.to_string().contains("TCP alone"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_swarm_is_not_served_over_quic() {
    let folder = tempfile::tempdir().unwrap();
    let refused = member(Role::Server, &[TCP, QUIC], &key(&folder, "ours")).await.unwrap_err();
    assert!(matches!(refused, StartNetworkError::QuicInPrivate { .. }), "{refused}");
}

#[test]
fn a_key_is_kept_for_its_owner_alone_and_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let key = SwarmKey::create(&path).unwrap();
    assert_eq!(SwarmKey::load(&path).unwrap(), key);
    assert!(matches!(SwarmKey::create(&path), Err(SwarmKeyError::Create { .. })));
    assert!(!format!("{key:?}").contains(char::is_numeric), "{key:?}");
    #[cfg(unix)]
    {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::PermissionsExt as _;
        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(SwarmKey::load(&path), Err(SwarmKeyError::Exposed { .. })));
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    for text in ["", "umbel-swarm-key-1 ", "umbel-swarm-key-1 abc", "0OIl"] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(SwarmKey::load(&path), Err(SwarmKeyError::Malformed { .. })), "{text}");
    }
    let nowhere = SwarmKey::load(&folder.path().join("nothing"));
    assert!(matches!(nowhere, Err(SwarmKeyError::Read { .. })));
}
