//! What is remembered of servers that do what a training asks of them.

use std::path::Path;

use umbel_coordinator::Hop;
use umbel_coordinator::session::RouteHop;
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, TargetModule};
use umbel_net::{Identity, Network, NetworkConfig, Role};
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_protocol::{LinkProtocol, SessionId};
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

use super::*;
use crate::swarm::SwarmConfig;

fn model() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
    let source = ModelSource::parse(folder.to_str().unwrap()).unwrap();
    let cache = Cache::new(tempfile::tempdir().unwrap().path());
    Model::open(&source, &cache, PartsNeeded::nothing(), &Silent).unwrap()
}

fn state(model: &Model) -> TrainingState {
    let target_modules = vec![TargetModule::Value];
    let config = AdapterConfig { rank: 2, alpha: 4.0, target_modules, ..AdapterConfig::default() };
    let blocks = Span::new(0, 4).unwrap();
    let adapter = Adapter::begin(config, model.config(), blocks, 0).unwrap();
    TrainingState::new(adapter, AdamW::default())
}

/// A server that opens one training with so many values, and takes all that it is given.
async fn server(value_count: u64) -> Network {
    let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let network = Network::start(NetworkConfig { listen, ..config }).await.unwrap();
    let mut incoming = network.accept(LinkProtocol::Training).unwrap();
    tokio::spawn(async move {
        let (_, link) = incoming.next().await.unwrap();
        let (mut sender, mut receiver) = link.split();
        while let Ok(Some(frame)) = receiver.receive().await {
            let is_open = matches!(TrainerMessage::decode(frame), Ok(TrainerMessage::Open(_)));
            let opened = TrainingAnswer::Opened { steps: 0, resumed: false, value_count };
            let answer = if is_open { opened } else { TrainingAnswer::Written };
            sender.send(answer.encode()).await.unwrap();
        }
    });
    network
}

/// A training on one server, which has opened it.
async fn blocks(server: &Network, model: &Model, state: &TrainingState) -> RemoteBlocks {
    let join = server.named_addresses();
    let swarm = Swarm::join(SwarmConfig { join, ..SwarmConfig::default() }).await.unwrap();
    let (seed, tokens_max, under_way) = (0, 16, 1);
    let answers = watch::Sender::new(0);
    let terms = Terms { model: model.id(), seed, tokens_max, under_way, answers };
    let blocks = state.adapter().blocks();
    let hop = RouteHop {
        hop: Hop { peer: server.peer_id(), blocks },
        addresses: Vec::new(),
        session: SessionId::new(1),
        round_trip: None,
    };
    let open = OpenHop::open(&swarm, &hop, &terms, state).await.unwrap();
    RemoteBlocks {
        swarm: Arc::new(swarm),
        terms,
        blocks,
        token_bytes: 0,
        routes: vec![TrainingRoute { name: 0, hops: vec![open] }],
        routes_max: 1,
        routes_named: 1,
        opened: true,
        asked: None,
        passed_over: BTreeMap::new(),
        replaced: 0,
        unfinished: false,
        failures: 0,
        avoided: BTreeSet::new(),
        refused: BTreeMap::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_on_trial_is_trusted_again_once_a_step_is_over() {
    let model = model();
    let state = state(&model);
    let server = server(state.block_value_count()).await;
    let mut blocks = blocks(&server, &model, &state).await;
    let (swarm, peer) = (Arc::clone(&blocks.swarm), server.peer_id());
    swarm.put_on_trial(peer);
    assert!(!swarm.is_usable(peer), "nobody else is to try it meanwhile");
    blocks.begin(&state).await.unwrap();
    assert_eq!(blocks.routes[0].hops.len(), 1);
    assert!(swarm.is_usable(peer));
}
