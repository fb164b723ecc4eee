//! Who is told of an announcement, and asked for those of others.

use std::collections::BTreeSet;

use umbel_net::{Identity, NetworkConfig, Role};

use super::*;

/// How long servers may take to hear of another, until the test fails.
const HEARD_TIMEOUT: Duration = Duration::from_secs(30);

fn peers(names: std::ops::Range<u8>) -> impl Iterator<Item = PeerId> {
    names.map(|name| PeerId::from_public_key([name; 32]))
}

fn known(names: std::ops::Range<u8>) -> BTreeMap<PeerId, Vec<String>> {
    peers(names).map(|peer| (peer, vec!["/ip4/10.0.0.7/tcp/4001".to_owned()])).collect()
}

fn names(chosen: &[(PeerId, Vec<String>)]) -> BTreeSet<PeerId> {
    chosen.iter().map(|(peer, _)| *peer).collect()
}

#[test]
fn of_many_servers_all_have_their_turn_and_nobody_else() {
    let mut random = Random::new(1);
    let (mut told, mut asked) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..1_000 {
        let chosen = choose(known(100..140), peers(0..120).collect(), &mut random);
        assert_eq!((chosen.len(), names(&chosen).len()), (PEERS_TOLD_MAX, PEERS_TOLD_MAX));
        assert!(chosen.iter().all(|(_, addresses)| !addresses.is_empty()), "all are servers");
        told.extend(names(&chosen));
        asked.extend(chosen.last().map(|(peer, _)| *peer));
    }
    assert_eq!((told, asked), (peers(100..140).collect(), peers(100..140).collect()));
}

#[test]
fn where_few_servers_are_known_those_who_are_connected_are_told_too() {
    let mut random = Random::new(1);
    let chosen = choose(known(100..103), peers(0..101).collect(), &mut random);
    assert_eq!(names(&chosen).len(), PEERS_TOLD_MAX);
    assert!(peers(100..103).all(|peer| names(&chosen).contains(&peer)));
    let of_none_known = choose(BTreeMap::new(), peers(0..3).collect(), &mut random);
    assert_eq!(names(&of_none_known), peers(0..3).collect());
    assert_eq!(choose(BTreeMap::new(), Vec::new(), &mut random), []);
}

async fn server() -> Announcer {
    let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let network = Network::start(NetworkConfig { listen, ..config }).await.unwrap();
    let announcer = Announcer::new(network);
    tokio::spawn(announcer.clone().answer());
    announcer
}

fn offer() -> Offer {
    Offer {
        model: ModelId::from_bytes([7; 32]),
        model_name: "a model".to_owned(),
        span: Span::new(0, 4).unwrap(),
        block_count: 4,
        throughput: Throughput::default(),
        intention: Intention::default(),
        draining: false,
        holds_ends: true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_many_clients_tells_the_other_servers() {
    let load = Load { kv_tokens_free: 0, queue_depth: 0, decode_per_block: None, pages_kept: 0 };
    let hub = server().await;
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let server = server().await;
        let joined = server.network.join(&hub.network.named_addresses()).await.unwrap();
        assert_eq!(joined, [hub.network.peer_id()]);
        // It knows nobody yet, and tells whom it is connected to.
        server.announce(&offer(), load).await;
        servers.push(server);
    }
    for _ in 0..24 {
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
        let client = Network::start(config).await.unwrap();
        client.join(&hub.network.named_addresses()).await.unwrap();
        clients.push(client);
    }
    let told_by_all = async {
        while hub.servers(offer().model).len() < servers.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(HEARD_TIMEOUT, told_by_all).await.expect("the first knows the others");
    hub.announce(&offer(), load).await;
    for server in &servers {
        let known = server.servers(offer().model);
        assert!(known.iter().any(|of| of.peer == hub.network.peer_id()), "{known:?}");
    }
}
