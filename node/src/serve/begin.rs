//! How a server comes by its first blocks, beside others that begin at the same time.
//!
//! A server serves nothing before it has loaded its blocks, and to fetch them may take it a quarter of an
//! hour. Whoever looks meanwhile shall know that these will have a server: so it announces from the
//! beginning what it is going to serve, as a server does that has left all its blocks for others.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use umbel_coordinator::swarm::placement::{Intention, choose_again};
use umbel_protocol::Span;
use umbel_protocol::announcement::{Announcement, Throughput};

use crate::announce::{Announcer, Offer};
use crate::driver::Load;

/// How long a server listens, once it has said what it has chosen, for those that have chosen at the same
/// time: a message takes a part of it, and mDNS introduces two servers to each other within as long.
const LISTENING: Duration = Duration::from_secs(1);

/// How often it chooses at most: of so many that begin in the same moment each has blocks of its own. More
/// of them are seen to by those who move.
const CHOICES_MAX: usize = 4;

/// How long others are told of blocks that are to come. What takes longer may never come, as where a download
/// trickles, and others shall see to these blocks; should they be there in the end, it serves them.
pub(super) const LOADING_MAX: Duration = Duration::from_secs(3600);

/// Of a server that serves nothing yet.
const NO_LOAD: Load =
    Load { kv_tokens_free: 0, queue_depth: 0, decode_per_block: None, pages_kept: 0 };

/// What `offer` says before the blocks are there: that they will be.
pub(super) fn beginning(offer: Offer) -> Offer {
    let intention = Intention { moving_to: Some(offer.span), ..Intention::default() };
    Offer { intention, draining: true, ..offer }
}

/// Says that the blocks which it was to be are there.
pub(super) fn serving(offer: &watch::Sender<Offer>, throughput: Throughput) {
    offer.send_modify(|offer| {
        offer.throughput = throughput;
        offer.intention = Intention::default();
        offer.draining = false;
    });
}

/// Takes back what was said of blocks that will not be there after all, and leaves.
pub(super) async fn take_back(announcer: &Announcer, offer: Offer) {
    let nothing = Offer { intention: Intention::default(), draining: true, ..offer };
    announcer.announce(&nothing, NO_LOAD).await;
    announcer.network().shutdown().await;
}

/// Tells the others what was chosen by those `known` before, and where others have chosen the same in the
/// same moment, lets the server `choose` again by the ones that go first; for how many tokens there is room
/// then. Where it can choose nothing else it stays with what it has.
pub(super) async fn beside_others(
    announcer: &Announcer,
    offer: &watch::Sender<Offer>,
    mut known: Vec<Announcement>,
    choose: impl Fn(&[Announcement]) -> anyhow::Result<(Span, usize)>,
) -> Option<usize> {
    let (network, mut kv_tokens) = (announcer.network(), None);
    for _ in 1..CHOICES_MAX {
        let chosen = offer.borrow().clone();
        announcer.announce(&chosen, NO_LOAD).await;
        if network.connected_peers().await.is_empty() {
            break;
        }
        // No event tells that nobody else is about to say something.
        tokio::time::sleep(LISTENING).await;
        announcer.catch_up().await;
        let now = announcer.servers(chosen.model);
        let Some(first) = choose_again(network.peer_id(), chosen.span, &known, &now) else {
            break;
        };
        let other = choose(&first).ok().filter(|(span, _)| *span != chosen.span);
        let Some((span, tokens)) = other else { break };
        kv_tokens = Some(tokens);
        tracing::info!(from = %chosen.span, to = %span, "others begin with the same blocks");
        offer.send_modify(|offer| {
            offer.span = span;
            offer.intention.moving_to = Some(span);
        });
        known = first;
    }
    kv_tokens
}

/// Does something that takes long, and goes on telling the others what is to come, as long as they are to
/// rely on it.
pub(super) async fn while_announcing<T>(
    announcer: &Announcer,
    offer: &watch::Sender<Offer>,
    patience: Duration,
    work: impl Future<Output = T>,
) -> T {
    let (_no_load, load) = watch::channel(NO_LOAD);
    // It ends with this future.
    let mut announcing = JoinSet::new();
    announcing.spawn(announcer.clone().run(offer.subscribe(), load));
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(patience, &mut work).await {
        return done;
    }
    tracing::warn!(
        "the blocks are not loaded after {} minutes: others are told not to rely on them",
        patience.as_secs() / 60
    );
    offer.send_modify(|offer| offer.intention = Intention::default());
    work.await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use umbel_coordinator::swarm::placement::thinnest_span;
    use umbel_net::{Identity, Network, NetworkConfig, Role};
    use umbel_protocol::ModelId;

    use super::*;

    const BLOCKS: u32 = 4;

    async fn server(join: &[&Announcer]) -> Announcer {
        let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
        let network = Network::start(NetworkConfig { listen, ..config }).await.unwrap();
        let join: Vec<_> =
            join.iter().flat_map(|other| other.network().named_addresses()).collect();
        let announcer = Announcer::new(network, &join);
        tokio::spawn(announcer.clone().answer());
        announcer.join().await.unwrap();
        announcer
    }

    fn offer(span: Span) -> Offer {
        Offer {
            model: ModelId::from_bytes([7; 32]),
            model_name: "a model".to_owned(),
            span,
            block_count: BLOCKS,
            throughput: Throughput::default(),
            intention: Intention::default(),
            draining: false,
            holds_ends: true,
        }
    }

    /// What a server comes to that has chosen the first blocks and knows nobody.
    async fn chosen(announcer: &Announcer) -> Span {
        let own = announcer.network().peer_id();
        let offer = watch::Sender::new(beginning(offer(Span::new(0, 2).unwrap())));
        let choose = |servers: &[Announcement]| {
            Ok((thinnest_span(BLOCKS, 2, own, servers).expect("the model has blocks"), 0))
        };
        beside_others(announcer, &offer, Vec::new(), choose).await;
        let span = offer.borrow().span;
        assert_eq!(offer.borrow().intention.moving_to, Some(span));
        span
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_that_begin_at_the_same_time_end_with_other_blocks() {
        let first = server(&[]).await;
        let second = server(&[&first]).await;
        let (a, b) = futures::join!(chosen(&first), chosen(&second));
        let halves = [Span::new(0, 2).unwrap(), Span::new(2, 4).unwrap()];
        assert_eq!(BTreeSet::from([a, b]), BTreeSet::from(halves));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_loads_says_what_it_will_serve_and_serves_nothing() {
        let first = server(&[]).await;
        let second = server(&[&first]).await;
        let offer = watch::Sender::new(beginning(offer(Span::new(0, 2).unwrap())));
        let (model, peer) = (offer.borrow().model, first.network().peer_id());
        let heard = |to: Option<Span>| {
            let second = &second;
            let heard = async move {
                loop {
                    let known = second.servers(model).into_iter().find(|known| known.peer == peer);
                    if let Some(known) = known.filter(|known| known.moving_to == to) {
                        break known;
                    }
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), heard)
        };
        let to = Span::new(0, 2).ok();
        let said = while_announcing(&first, &offer, LOADING_MAX, heard(to)).await;
        assert!(said.expect("it is heard").draining);
        // It takes too long.
        let late = while_announcing(&first, &offer, Duration::ZERO, heard(None)).await;
        assert!(late.expect("it is heard").draining);
        offer.send_modify(|offer| offer.intention.moving_to = to);
        let said = while_announcing(&first, &offer, LOADING_MAX, heard(to)).await;
        assert!(said.is_ok(), "it is heard");
        // It cannot load them.
        let last = offer.borrow().clone();
        let (said, ()) = futures::join!(heard(None), take_back(&first, last));
        assert!(said.expect("it is heard").draining);
        serving(&offer, Throughput::default());
        assert_eq!((offer.borrow().draining, offer.borrow().intention.moving_to), (false, None));
    }
}
