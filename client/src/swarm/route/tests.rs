//! Whom a plan takes of those that are known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;
use umbel_coordinator::random::Random;
use umbel_coordinator::session::Contacts;
use umbel_coordinator::swarm::Directory;
use umbel_net::{Identity, Network, NetworkConfig, Role};
use umbel_protocol::announcement::Throughput;

use super::*;
use crate::clock::Clock;
use crate::swarm::measured::Measured;
use crate::swarm::warm::Warm;

const MODEL: ModelId = ModelId::from_bytes([5; 32]);

impl Swarm {
    /// Whether routes may lead through a server, as far as failures go.
    pub(crate) fn is_usable(&self, peer: PeerId) -> bool {
        self.view().health.is_usable(peer, self.clock.now())
    }

    /// A server that has failed is tried again, and nobody has said yet what came of it.
    pub(crate) fn put_on_trial(&self, peer: PeerId) {
        let now = self.clock.now();
        let mut view = self.view();
        let View { health, random, .. } = &mut *view;
        health.failed(peer, now, random);
        health.returned(peer, now);
        assert!(health.begin_trial(peer, now));
    }
}

/// A client that has met nobody.
async fn swarm() -> Swarm {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    let view = View {
        directory: Directory::new(),
        health: Health::new(),
        doubtful: BTreeMap::new(),
        full: BTreeMap::new(),
        unreachable: BTreeMap::new(),
        measured: Measured::default(),
        random: Random::new(1),
        warm: Warm::default(),
        unanswered: None,
        returning: JoinSet::new(),
    };
    Swarm {
        network: Network::start(config).await.unwrap(),
        view: Mutex::new(view),
        contacts: Mutex::new(Contacts::default()),
        way: Vec::new(),
        joined: Arc::default(),
        patience: PATIENCE,
        clock: Clock::start(),
        secret: [0; 32],
    }
}

/// A server of the whole model, as fast as it says, that the client knows.
fn server(swarm: &Swarm, decode_tokens_per_second: f32) -> PeerId {
    known(swarm, decode_tokens_per_second, false)
}

/// The same, which may be leaving.
fn known(swarm: &Swarm, decode_tokens_per_second: f32, draining: bool) -> PeerId {
    let (identity, now) = (Identity::ephemeral(), unix_time());
    let announcement = Announcement {
        peer: identity.peer_id(),
        model: MODEL,
        model_name: String::new(),
        span: Span::new(0, 4).unwrap(),
        block_count: 4,
        addresses: Vec::new(),
        version: String::new(),
        throughput: Throughput { decode_tokens_per_second, ..Throughput::default() },
        kv_tokens_free: 1_000,
        queue_depth: 0,
        draining,
        issued: now,
        expires: now + Duration::from_secs(60),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: true,
    };
    let signed = announcement.sign(identity.signing_key());
    swarm.view().directory.insert(signed, now).unwrap();
    identity.peer_id()
}

fn planned(swarm: &Swarm) -> Vec<PeerId> {
    let wanted = RouteWanted {
        blocks: Span::new(0, 4).unwrap(),
        before: None,
        after: None,
        avoided: BTreeSet::new(),
        needed: true,
    };
    let now = Instant::now();
    let search = Search {
        model: MODEL,
        tokens_max: 100,
        token_bytes: 8,
        wanted,
        since: now,
        forgiving_from: now,
        urgent: false,
        prefix: Vec::new(),
        thin: false,
    };
    swarm.plan(&search, false).unwrap().into_iter().map(|hop| hop.hop.peer).collect()
}

#[tokio::test]
async fn a_server_that_had_no_room_is_used_last() {
    let swarm = swarm().await;
    let fast = server(&swarm, 1_000.0);
    assert_eq!(planned(&swarm), [fast]);
    swarm.note_full(fast);
    assert_eq!(planned(&swarm), [fast], "there is no other");
    let slow = server(&swarm, 1.0);
    assert_eq!(planned(&swarm), [slow]);
}

#[tokio::test]
async fn a_server_is_planned_by_what_it_does_and_not_by_what_it_says() {
    let swarm = swarm().await;
    let (boaster, honest) = (server(&swarm, 1_000.0), server(&swarm, 100.0));
    assert_eq!(planned(&swarm), [boaster]);
    let hop = Hop { peer: boaster, blocks: Span::new(0, 4).unwrap() };
    let took = Duration::from_millis(400);
    let timing = HopTiming {
        peer: hop.peer,
        span: hop.blocks,
        queue: Duration::ZERO,
        compute: took,
        hop: took,
        link_round_trip: None,
    };
    for _ in 0..16 {
        swarm.note_times(&[hop], &[timing], took);
    }
    assert_eq!(planned(&swarm), [honest]);
}

#[tokio::test]
async fn a_server_that_leaves_is_used_by_whom_it_waits_for() {
    let swarm = swarm().await;
    let (leaving, slow) = (known(&swarm, 1_000.0, true), server(&swarm, 1.0));
    assert_eq!(planned(&swarm), [slow]);
    swarm.stay_with(leaving);
    assert_eq!(planned(&swarm), [leaving]);
}
