//! Peers that stand in a swarm for a server, and answer as a test has it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use umbel_client::swarm::{exchange, unix_time};
use umbel_net::{Identity, LinkProtocol, Network, NetworkConfig, Role};
use umbel_protocol::Span;
use umbel_protocol::announcement::{Announcement, LIFETIME_MAX, Throughput};
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_tests::swarm::Server;
use umbel_tests::training::Lesson;

const LISTEN: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A peer that says it has the second half of the blocks of a lesson. It opens what it is asked to open,
/// and answers all else by `answer`.
pub(super) async fn fake(
    server: &Server,
    lesson: &Lesson,
    answer: impl Fn(TrainerMessage) -> TrainingAnswer + Send + 'static,
) -> Network {
    let network = Network::start(NetworkConfig {
        listen: vec![LISTEN.parse().unwrap()],
        ..NetworkConfig::new(Identity::ephemeral(), Role::Server)
    });
    let network = network.await.unwrap();
    let mut incoming = network.accept(LinkProtocol::Training).unwrap();
    let met = network.join(&[server.address().parse().unwrap()]).await.unwrap();
    let half = Span::new(2, 4).unwrap();
    let signed = announcement(&network, lesson, half).sign(network.signing_key());
    exchange::announce(&network, met[0], &[], signed).await.unwrap();
    let stretch = lesson.state.stretch(half);
    let value_count = stretch.end - stretch.start;
    tokio::spawn(async move {
        while let Some((_, link)) = incoming.next().await {
            let (mut sender, mut receiver) = link.split();
            while let Ok(Some(frame)) = receiver.receive().await {
                let message = TrainerMessage::decode(frame).unwrap();
                let answer = if matches!(message, TrainerMessage::Open(_)) {
                    TrainingAnswer::Opened { steps: 0, resumed: false, value_count }
                } else {
                    answer(message)
                };
                if sender.send(answer.encode()).await.is_err() {
                    break;
                }
            }
        }
    });
    network
}

fn announcement(network: &Network, lesson: &Lesson, span: Span) -> Announcement {
    let now = unix_time();
    Announcement {
        peer: network.peer_id(),
        model: lesson.model.id(),
        model_name: "llama".to_owned(),
        span,
        block_count: lesson.model.config().block_count,
        addresses: vec![network.preferred_address().to_string()],
        version: "0".to_owned(),
        throughput: Throughput::default(),
        kv_tokens_free: 1_000_000,
        queue_depth: 0,
        draining: false,
        issued: now,
        expires: now + LIFETIME_MAX,
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: false,
    }
}
