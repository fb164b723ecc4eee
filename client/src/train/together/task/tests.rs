//! A member that is there and does not do its part.

use umbel_coordinator::training::round::{Message, OuterStep, Rule};
use umbel_net::{Identity, LinkProtocol, NetworkConfig, Role};

use super::*;

/// How long a writer that was ended may take to be gone, until the test fails.
const ENDED_TIMEOUT: Duration = Duration::from_secs(30);

/// More values than fit into what lies between two processes.
const VALUES: usize = 1 << 21;

async fn network() -> Network {
    let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    Network::start(NetworkConfig { listen, ..config }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_asks_and_does_not_read_is_answered_once_and_leaves_nothing_behind() {
    let (network, deaf) = (network().await, network().await);
    let mut incoming = deaf.accept(LinkProtocol::Averaging).unwrap();
    let settings = RunSettings {
        rule: Rule::TrimmedMean,
        outer: OuterStep { learning_rate: 1.0, momentum: 0.0 },
        learn: Duration::from_secs(600),
        gather: Duration::from_secs(1),
    };
    let state = RunState::begin(vec![0.0; VALUES]).unwrap();
    let stand = state.stand();
    let asked = Arc::new(Asked::default());
    let mut task = Task::new(network.clone(), [0; 32], (settings, Some(state)), asked);
    let peer = deaf.peer_id();
    let addresses = deaf.listen_addresses();
    let link = network.open_link(peer, &addresses, LinkProtocol::Averaging).await.unwrap();
    task.others.entry(peer).or_default();
    task.opened(peer, link);
    let _unread = incoming.next().await.unwrap();
    for _ in 0..1_000 {
        task.handle(Event::Said { peer, message: Message::WantState(stand) });
        task.act();
    }
    let (words, _) = task.others[&peer].words.as_ref().expect("to ask is no crime");
    let words = Arc::downgrade(words);
    task.gone(peer);
    let ended = tokio::time::timeout(ENDED_TIMEOUT, task.carriers.join_next());
    assert!(ended.await.expect("the writer ends").unwrap().unwrap_err().is_cancelled());
    assert!(words.upgrade().is_none(), "what it did not read is gone");
}
