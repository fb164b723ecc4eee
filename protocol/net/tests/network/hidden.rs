//! Servers to which nobody comes in from elsewhere, and who are reached all the same.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use umbel_net::{
    Identity, Link, LinkProtocol, Multiaddr, Network, NetworkConfig, RateLimits, Reach,
    RelayLimits, Role, SwarmKey, Verdict, relayed_by,
};

use crate::{QUIC, TCP, address, client, frame, server};

/// How long anything may take on a machine that runs many tests at once.
const LONG: Duration = Duration::from_secs(90);

fn serving() -> NetworkConfig {
    NetworkConfig::new(Identity::ephemeral(), Role::Server)
}

async fn start(listen: &[&str], config: NetworkConfig) -> Network {
    let listen = listen.iter().map(|listen| address(listen)).collect();
    Network::start(NetworkConfig { listen, ..config }).await.unwrap()
}

async fn relay(listen: &str) -> Network {
    start(&[listen], NetworkConfig { relays: Some(RelayLimits::default()), ..serving() }).await
}

/// A server that is reached by relays alone, wherever it listens.
async fn hidden(listen: &[&str]) -> Network {
    start(listen, NetworkConfig { reach: Reach::Relayed, ..serving() }).await
}

/// The same, at these relays, which it joins by.
async fn hidden_at(listen: &[&str], relays: &[&Network]) -> Network {
    let hidden = hidden(listen).await;
    let join: Vec<_> = relays.iter().flat_map(|relay| relay.named_addresses()).collect();
    hidden.join(&join).await.unwrap();
    places(&hidden, relays.len().min(2)).await;
    hidden
}

/// Waits until a peer has places at so many relays, and says where others find it.
async fn places(hidden: &Network, count: usize) -> Vec<Multiaddr> {
    let mut standing = hidden.standing();
    let placed = standing.wait_for(|standing| standing.relays.len() == count);
    tokio::time::timeout(LONG, placed).await.expect("a place").unwrap();
    hidden.named_addresses()
}

/// Opens a link, and takes it at the other end.
async fn linked(from: &Network, to: &Network, told: &[Multiaddr]) -> (Link, Link) {
    let mut incoming = to.accept(LinkProtocol::Push).unwrap();
    let opened = from.open_link(to.peer_id(), told, LinkProtocol::Push).await.unwrap();
    let (peer, accepted) = incoming.next().await.unwrap();
    assert_eq!(peer, from.peer_id());
    (opened, accepted)
}

async fn carries(from: &Network, to: &Network, told: &[Multiaddr]) {
    let (opened, accepted) = linked(from, to, told).await;
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    let (sent, received) = tokio::join!(sender.send(frame(7, 100_000)), receiver.receive());
    sent.unwrap();
    assert_eq!(received.unwrap(), Some(frame(7, 100_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_server_takes_a_place_at_a_relay_among_its_peers_and_is_reached_there() {
    for listen in [QUIC, TCP] {
        let relay = relay(listen).await;
        // It does not listen, so that nothing but the relay leads to it.
        let hidden = hidden_at(&[], &[&relay]).await;
        let told = hidden.named_addresses();
        let name = format!("/p2p-circuit/p2p/{}", hidden.peer_id());
        assert!(!told.is_empty());
        for address in &told {
            assert_eq!(address.to_string().matches(&name).count(), 1, "{address}");
        }
        let asker = client().await;
        carries(&asker, &hidden, &told).await;
        assert_eq!(asker.is_relayed(hidden.peer_id()).await, Some(true));
        assert_eq!(relay.circuits(), 1);
        while asker.round_trip(hidden.peer_id()).is_none() {
            asker.connected_peers().await;
        }
        asker.shutdown().await;
        while relay.circuits() > 0 {
            relay.connected_peers().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hidden_servers_push_to_each_other_each_by_the_others_relay() {
    let (first_relay, second_relay) = (relay(TCP).await, relay(QUIC).await);
    let first = hidden_at(&[], &[&first_relay]).await;
    let second = hidden_at(&[], &[&second_relay]).await;
    carries(&first, &second, &second.named_addresses()).await;
    carries(&second, &first, &first.named_addresses()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_closes_its_links_and_another_takes_its_place() {
    let relays = [relay(TCP).await, relay(TCP).await, relay(TCP).await];
    let [first, second, third] = &relays;
    let hidden = hidden_at(&[], &[first, second, third]).await;
    let holds = |relay: &Network| hidden.standing().borrow().relays.contains(&relay.peer_id());
    let (held, spare): (Vec<_>, Vec<_>) = relays.iter().partition(|relay| holds(relay));
    assert_eq!((held.len(), spare.len()), (2, 1));
    let by = |relay: &Network, told: Vec<Multiaddr>| {
        let name = relay.peer_id().to_string();
        told.into_iter().filter(|told| told.to_string().contains(&name)).collect::<Vec<_>>()
    };
    let asker = client().await;
    let told = by(held[0], hidden.named_addresses());
    let (opened, accepted) = linked(&asker, &hidden, &told).await;
    held[0].shutdown().await;
    for link in [opened, accepted] {
        let (_sender, mut receiver) = link.split();
        assert!(!matches!(receiver.receive().await, Ok(Some(_))), "the circuit has ended");
    }
    // What the other relay calls it leads to it at once, and in a while the third one does too.
    carries(&asker, &hidden, &by(held[1], hidden.named_addresses())).await;
    let mut standing = hidden.standing();
    let moved = standing.wait_for(|standing| standing.relays.contains(&spare[0].peer_id()));
    tokio::time::timeout(LONG, moved).await.expect("a place elsewhere").unwrap();
    let told = hidden.named_addresses();
    assert!(by(held[0], told.clone()).is_empty(), "{told:?}");
    carries(&client().await, &hidden, &by(spare[0], told)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_nobody_named_is_found_by_the_hash_table() {
    let (meeting, relay) = (server(QUIC).await, relay(QUIC).await);
    relay.join(&meeting.named_addresses()).await.unwrap();
    let hidden = hidden(&[]).await;
    hidden.join(&meeting.named_addresses()).await.unwrap();
    let told = places(&hidden, 1).await;
    assert_eq!(hidden.standing().borrow().relays, [relay.peer_id()]);
    assert_eq!(hidden.find_relays().await, [relay.peer_id()]);
    carries(&client().await, &hidden, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_named_is_asked_though_nobody_has_met_it() {
    let (named, met) = (relay(QUIC).await, relay(QUIC).await);
    let relayed_by = vec![relayed_by(&named.preferred_address()).unwrap()];
    let config = NetworkConfig { reach: Reach::Relayed, relayed_by, ..serving() };
    let hidden = start(&[], config).await;
    let told = places(&hidden, 1).await;
    assert_eq!(hidden.standing().borrow().relays, [named.peer_id()]);
    carries(&client().await, &hidden, &told).await;
    hidden.join(&met.named_addresses()).await.unwrap();
    places(&hidden, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_meet_by_a_relay_find_a_direct_way_and_links_take_it() {
    for listen in [QUIC, TCP] {
        let relay = relay(listen).await;
        // It tells nobody that it listens, but the relay has seen where it dials from.
        let hidden = hidden_at(&[listen], &[&relay]).await;
        let told = hidden.named_addresses();
        assert!(told.iter().all(|told| told.to_string().contains("/p2p-circuit/")), "{told:?}");
        // The relay tells an asker how it sees it as well.
        let asker = client().await;
        asker.join(&relay.named_addresses()).await.unwrap();
        carries(&asker, &hidden, &told).await;
        // On a machine that is busy the first link may have gone by the relay.
        let direct = async {
            while asker.is_relayed(hidden.peer_id()).await != Some(false) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, direct).await.expect("a direct connection");
        // The link is no circuit's, and outlives the relay.
        let (opened, accepted) = linked(&asker, &hidden, &told).await;
        relay.shutdown().await;
        let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
        sender.send(frame(1, 10)).await.unwrap();
        assert_eq!(receiver.receive().await.unwrap(), Some(frame(1, 10)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circuit_that_has_carried_enough_ends_and_the_next_one_carries_on() {
    let limits = RelayLimits { circuit_bytes: 1 << 20, ..RelayLimits::default() };
    let relay = start(&[TCP], NetworkConfig { relays: Some(limits), ..serving() }).await;
    let hidden = hidden_at(&[], &[&relay]).await;
    let (asker, told) = (client().await, hidden.named_addresses());
    let (opened, accepted) = linked(&asker, &hidden, &told).await;
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    let send = async { while sender.send(frame(1, 100_000)).await.is_ok() {} };
    let receive = async {
        let mut bytes = 0;
        while let Ok(Some(frame)) = receiver.receive().await {
            bytes += frame.payload.len();
        }
        bytes
    };
    let ((), received) = tokio::join!(send, receive);
    assert!(received > 0 && received < 2 << 20, "{received}");
    carries(&asker, &hidden, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_passes_on_takes_as_long_as_its_limit_says() {
    const RATE: u64 = 400_000;
    let rate_limits = RateLimits { upload: NonZeroU64::new(RATE), download: None };
    for listen in [TCP, QUIC] {
        let config = NetworkConfig { rate_limits, ..serving() };
        let relays = Some(RelayLimits::default());
        let relay = start(&[listen], NetworkConfig { relays, ..config }).await;
        let hidden = hidden_at(&[], &[&relay]).await;
        let (asker, told) = (client().await, hidden.named_addresses());
        let (opened, accepted) = linked(&asker, &hidden, &told).await;
        let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
        let (before, started) = (relay.traffic().sent, Instant::now());
        let sent = sender.send(frame(1, 500_000));
        let (sent, received) = tokio::join!(sent, receiver.receive());
        sent.unwrap();
        received.unwrap();
        let passed = relay.traffic().sent - before;
        assert!(passed >= 500_000, "{passed}");
        // All but what the bucket holds, and a piece of each direction of the circuit.
        let least = Duration::from_secs_f64((500_000.0 - 40_000.0 - 32_768.0) / RATE as f64);
        assert!(started.elapsed() >= least, "{:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_private_swarm_reach_each_other_by_a_member() {
    let folder = tempfile::tempdir().unwrap();
    let swarm_key = Some(SwarmKey::create(&folder.path().join("key")).unwrap());
    let member = || NetworkConfig { swarm_key: swarm_key.clone(), ..serving() };
    let relays = Some(RelayLimits::default());
    let relay = start(&[TCP], NetworkConfig { relays, ..member() }).await;
    let config = NetworkConfig { reach: Reach::Relayed, ..member() };
    let hidden = start(&[], config).await;
    hidden.join(&relay.named_addresses()).await.unwrap();
    let told = places(&hidden, 1).await;
    let friend = start(&[], member()).await;
    carries(&friend, &hidden, &told).await;
    let stranger = client().await;
    stranger.open_link(hidden.peer_id(), &told, LinkProtocol::Push).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_learns_that_nobody_comes_in_takes_a_place_and_who_is_open_does_not() {
    let relay = relay(TCP).await;
    let auto = || NetworkConfig { reach: Reach::Auto, ..serving() };
    let (open, shut) = (start(&[TCP], auto()).await, start(&[], auto()).await);
    for network in [&open, &shut] {
        assert_eq!(network.standing().borrow().verdict, Verdict::Unknown);
        network.join(&relay.named_addresses()).await.unwrap();
    }
    let told = places(&shut, 1).await;
    assert_eq!(shut.standing().borrow().verdict, Verdict::Shut);
    carries(&client().await, &shut, &told).await;
    let mut standing = open.standing();
    let judged = standing.wait_for(|standing| standing.verdict != Verdict::Unknown);
    tokio::time::timeout(LONG, judged).await.expect("somebody tries").unwrap();
    assert_eq!(standing.borrow().verdict, Verdict::Open);
    assert!(standing.borrow().relays.is_empty());
    assert_eq!(open.announced_addresses(), open.listen_addresses());
}
