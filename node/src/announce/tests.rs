//! Who is told of an announcement, and asked for those of others.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use umbel_client::{Swarm, SwarmConfig};
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

const ANYWHERE: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

async fn server() -> Announcer {
    joining(&[]).await
}

/// A server that comes in by these addresses.
async fn joining(join: &[Multiaddr]) -> Announcer {
    server_at(&ANYWHERE.parse().unwrap(), Identity::ephemeral, join).await
}

/// A server that listens there as soon as it can.
async fn server_at(
    listen: &Multiaddr,
    identity: impl Fn() -> Identity,
    join: &[Multiaddr],
) -> Announcer {
    let start = async {
        loop {
            let config = NetworkConfig::new(identity(), Role::Server);
            let listen = vec![listen.clone()];
            match Network::start(NetworkConfig { listen, ..config }).await {
                Ok(network) => return network,
                // Who was there before may not have left it yet.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let network = tokio::time::timeout(HEARD_TIMEOUT, start).await.expect("the address is free");
    let announcer = Announcer::new(network, join);
    tokio::spawn(announcer.clone().answer());
    announcer
}

const IDLE: Load =
    Load { kv_tokens_free: 0, queue_depth: 0, decode_per_block: None, pages_kept: 0 };

fn knows(server: &Announcer, other: PeerId) -> bool {
    server.servers(offer().model).iter().any(|known| known.peer == other)
}

/// Waits until a server knows another.
async fn hears_of(server: &Announcer, other: PeerId) {
    let heard = async {
        while !knows(server, other) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(HEARD_TIMEOUT, heard).await.expect("it hears of the other");
}

/// The identity in a file, of which each process has a copy, since a file is for one at a time.
fn of_copy(file: &Path) -> Identity {
    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("identity.pem");
    if file.exists() {
        fs::copy(file, &copied).unwrap();
    }
    let identity = Identity::load_or_create(&copied).unwrap();
    fs::copy(&copied, file).unwrap();
    identity
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
    let load = IDLE;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_server_asks_those_who_have_found_it_before_it_begins() {
    let (first, second) = (server().await, server().await);
    first.announce(&offer(), IDLE).await;
    // As mDNS does: one finds the other, and connects.
    first.network.join(&second.network.named_addresses()).await.unwrap();
    second.meet_neighbours().await;
    assert!(knows(&second, first.network.peer_id()));
    let alone = server().await;
    alone.meet_neighbours().await;
    assert_eq!(alone.servers(offer().model), [], "the first of all does not wait for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_answers_nobody_is_forgotten() {
    let (hub, other) = (server().await, server().await);
    let lone = joining(&hub.network.named_addresses()).await;
    let peer = hub.network.peer_id();
    hub.announce(&offer(), IDLE).await;
    lone.join().await.unwrap();
    hears_of(&lone, peer).await;
    hub.network.shutdown().await;
    lone.announce(&offer(), IDLE).await;
    assert!(knows(&lone, peer), "it may be this side that is cut off");

    lone.network.join(&other.network.named_addresses()).await.unwrap();
    let forgotten = async {
        while knows(&lone, peer) {
            lone.announce(&offer(), IDLE).await;
        }
    };
    tokio::time::timeout(HEARD_TIMEOUT, forgotten).await.expect("another has answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_was_away_hears_of_its_servers_who_have_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let identity = || of_copy(&folder.path().join("hub.pem"));
    let hub = server_at(&ANYWHERE.parse().unwrap(), identity, &[]).await;
    let (peer, at) = (hub.network.peer_id(), hub.network.listen_addresses());
    let (first, second) = (
        joining(&hub.network.named_addresses()).await,
        joining(&hub.network.named_addresses()).await,
    );
    hub.announce(&offer(), IDLE).await;
    for server in [&first, &second] {
        server.join().await.unwrap();
        server.announce(&offer(), IDLE).await;
    }
    hears_of(&first, second.network.peer_id()).await;
    hub.network.shutdown().await;
    drop(hub);
    let forgotten = async {
        while knows(&first, peer) {
            first.announce(&offer(), IDLE).await;
        }
    };
    tokio::time::timeout(HEARD_TIMEOUT, forgotten).await.expect("the second has answered");

    let hub = server_at(&at[0], identity, &[]).await;
    assert_eq!(hub.network.peer_id(), peer);
    let (offers, loads) = (watch::Sender::new(offer()), watch::Sender::new(IDLE));
    let running = tokio::spawn(first.clone().run(offers.subscribe(), loads.subscribe()));
    hears_of(&hub, first.network.peer_id()).await;
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_hub_in_its_place_is_found_by_servers_and_clients_that_have_nobody_else() {
    let hub = server().await;
    // Without a name, as people type it.
    let at = hub.network.listen_addresses();
    let (lone, config) =
        (joining(&at).await, SwarmConfig { join: at.clone(), ..Default::default() });
    lone.join().await.unwrap();
    let client = Swarm::join(config).await.unwrap();
    hub.network.shutdown().await;
    drop(hub);
    assert_eq!(client.announcements(None).await, []);

    let hub = server_at(&at[0], Identity::ephemeral, &[]).await;
    let (offers, loads) = (watch::Sender::new(offer()), watch::Sender::new(IDLE));
    let running = tokio::spawn(lone.clone().run(offers.subscribe(), loads.subscribe()));
    hears_of(&hub, lone.network.peer_id()).await;
    running.abort();
    let found = async { while client.announcements(None).await.is_empty() {} };
    tokio::time::timeout(HEARD_TIMEOUT, found).await.expect("the client comes in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_come_in_by_itself() {
    let server = server().await;
    let own = [server.network.named_addresses(), server.network.listen_addresses()].concat();
    let same = Announcer::new(server.network.clone(), &own);
    same.join().await.unwrap();
    let nobody = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let error = Announcer::new(server.network.clone(), &[nobody]).join().await.unwrap_err();
    assert!(error.may_pass(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_answered_at_an_address_without_a_name_is_known_there() {
    let hub = server().await;
    let at = hub.network.listen_addresses();
    let lone = joining(&[at.clone(), at].concat()).await;
    lone.join().await.unwrap();
    let peers: Vec<_> = lone.doors().iter().map(|door| door.peer).collect();
    assert_eq!(peers, [Some(hub.network.peer_id())], "and no address is tried twice");
}

/// All of 127.0.0.0/8 leads to this machine on Linux alone.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_come_in_by_itself_by_an_address_that_it_does_not_know_as_its_own() {
    let anywhere = "/ip4/0.0.0.0/tcp/0".parse().unwrap();
    let server = server_at(&anywhere, Identity::ephemeral, &[]).await;
    let listens = server.network.listen_addresses()[0].to_string();
    let port = listens.split('/').nth(4).unwrap();
    let own: Multiaddr = format!("/ip4/127.0.0.77/tcp/{port}").parse().unwrap();
    let nobody: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let of = |announcer: &Announcer| -> Vec<_> {
        announcer.doors().iter().map(|door| door.address.clone()).collect()
    };
    let same = Announcer::new(server.network.clone(), std::slice::from_ref(&own));
    assert_eq!(of(&same), std::slice::from_ref(&own));
    same.join().await.unwrap();
    assert_eq!(of(&same), []);

    let same = Announcer::new(server.network.clone(), &[own, nobody.clone()]);
    assert!(same.join().await.unwrap_err().may_pass(), "another may come");
    assert_eq!(of(&same), [nobody]);
}
