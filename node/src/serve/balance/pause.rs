//! Stopping for a while, with the blocks in memory.

use tokio::sync::watch;
use umbel_coordinator::swarm::placement::Input;

use super::{Balancer, is_drained};
use crate::announce::Offer;
use crate::compute::Shard;
use crate::serve::rest::Pauses;

impl Balancer {
    /// Leaves as a server that stops does, and opens sessions on the same blocks again when it is
    /// told to go on. Gives what the mover has to hear of it.
    pub(super) async fn pause(
        &mut self,
        offer: &watch::Sender<Offer>,
        pauses: &mut watch::Receiver<Pauses>,
    ) -> Option<Input> {
        let why = pauses.borrow().to_string();
        tracing::info!(why, "paused: clients go elsewhere, and the blocks stay in memory");
        // A server that has left its blocks for others has nothing to go on with until those are here,
        // also while the last sessions are still on them: there is no room for both.
        let had_left = offer.borrow().draining;
        let served = self.held.iter().find(|(held, _)| *held == self.current && !had_left).cloned();
        let mut intention = Default::default();
        offer.send_modify(|offer| {
            offer.draining = true;
            intention = std::mem::take(&mut offer.intention);
        });
        self.drain_trainings().await;
        self.handle.drain().await;
        let left = self.current;
        let mut former_is_gone = false;
        loop {
            tokio::select! {
                goes_on = async { pauses.wait_for(|pauses| !pauses.any()).await.is_ok() } => {
                    if goes_on {
                        break;
                    }
                    // Nobody is left who could tell it to go on.
                    return std::future::pending().await;
                }
                Some(shard) = self.drained.recv() => {
                    self.held.retain(|(held, _)| *held != shard);
                    former_is_gone |= had_left || shard != left;
                }
            }
        }
        if let Some((_, blocks)) = served {
            let (arena, ends) = (self.arena.beside(blocks.span()), self.ends.clone());
            self.hand_over(Shard { arena, blocks, ends }).await;
        }
        offer.send_modify(|offer| {
            offer.draining = had_left;
            offer.intention = intention;
        });
        tracing::info!("going on");
        (former_is_gone && is_drained(&self.held, self.current, had_left)).then_some(Input::Drained)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::sync::mpsc;
    use umbel_client::clock::Clock;
    use umbel_coordinator::server::ShardId;
    use umbel_coordinator::swarm::placement::Intention;
    use umbel_engine::{Arithmetic, HostedSpan};
    use umbel_protocol::announcement::Throughput;
    use umbel_protocol::{ModelId, Span};
    use umbel_shard::{HubConfig, ModelSource};

    use super::*;
    use crate::compute::ShardEnds;
    use crate::compute::tests::llama;
    use crate::config::Config;
    use crate::driver::Events;
    use crate::serve::loading::Loader;

    /// The blocks that the server holds when it begins to pause.
    const HELD: ShardId = ShardId(0);

    /// Of a server that stays where it is, and where its driver says which blocks nobody uses any more.
    fn balancer() -> (Balancer, mpsc::Sender<ShardId>) {
        let (model, weights) = llama();
        let blocks = HostedSpan::load(model.config(), &weights, Span::new(0, 4).unwrap()).unwrap();
        let config = Config {
            cache_dir: "nowhere".into(),
            data_dir: "nowhere".into(),
            hub: HubConfig::default(),
            threads: None,
            instructions: None,
            arithmetic: Arithmetic::Usual,
            log: None,
        };
        let loader = Loader {
            source: ModelSource::parse("smollm2-135m").unwrap(),
            model: model.id(),
            config,
            gpu: None,
            head_on_gpu: false,
            ends_of: None,
            network_rate: 0,
        };
        let (drain, drained) = mpsc::channel(1);
        let balancer = Balancer {
            mover: None,
            looking: None,
            block_bytes: vec![0; 4],
            loader,
            arena: blocks.arena(model.config(), 64).unwrap(),
            held: vec![(HELD, blocks)],
            ends: ShardEnds::default(),
            handle: Events::new().handle(),
            trainings: None,
            drained,
            current: HELD,
            loading: None,
            loaded: None,
            clock: Clock::start(),
        };
        (balancer, drain)
    }

    fn offer(draining: bool) -> watch::Sender<Offer> {
        watch::Sender::new(Offer {
            model: ModelId::from_bytes([7; 32]),
            model_name: "a model".to_owned(),
            span: Span::new(0, 4).unwrap(),
            block_count: 4,
            throughput: Throughput::default(),
            intention: Intention::default(),
            draining,
            holds_ends: true,
        })
    }

    /// Pauses and goes on; meanwhile the driver may say that nobody uses the blocks any more.
    async fn paused(draining: bool, is_drained: bool) -> (Balancer, bool, Option<Input>) {
        let ((mut balancer, drain), offer) = (balancer(), offer(draining));
        let pauses = watch::Sender::new(Pauses::default());
        Pauses::set(&pauses, |pauses| pauses.told = true);
        if is_drained {
            drain.try_send(HELD).unwrap();
        }
        let mut seen = pauses.subscribe();
        let input = {
            let mut pausing = std::pin::pin!(balancer.pause(&offer, &mut seen));
            assert!(futures::poll!(&mut pausing).is_pending(), "until it is told to go on");
            assert!(offer.borrow().draining);
            Pauses::set(&pauses, |pauses| pauses.told = false);
            pausing.await
        };
        let draining = offer.borrow().draining;
        (balancer, draining, input)
    }

    /// The same of a server that also has blocks of an earlier move, which nobody uses any more by the end.
    #[tokio::test]
    async fn who_had_left_its_blocks_is_not_done_when_those_of_an_earlier_move_are_free() {
        let ((mut balancer, drain), offer) = (balancer(), offer(true));
        let former = ShardId(7);
        balancer.held.push((former, balancer.held[0].1.clone()));
        let pauses = watch::Sender::new(Pauses::default());
        Pauses::set(&pauses, |pauses| pauses.told = true);
        drain.try_send(former).unwrap();
        let mut seen = pauses.subscribe();
        let input = {
            let mut pausing = std::pin::pin!(balancer.pause(&offer, &mut seen));
            assert!(futures::poll!(&mut pausing).is_pending(), "until it is told to go on");
            Pauses::set(&pauses, |pauses| pauses.told = false);
            pausing.await
        };
        assert_eq!(held(&balancer), BTreeSet::from([HELD]));
        assert!(input.is_none(), "sessions are on the last ones still");
    }

    fn held(balancer: &Balancer) -> BTreeSet<ShardId> {
        balancer.held.iter().map(|(held, _)| *held).collect()
    }

    #[tokio::test]
    async fn who_served_its_blocks_opens_sessions_on_them_again() {
        for is_drained in [false, true] {
            let (balancer, draining, input) = paused(false, is_drained).await;
            let again = ShardId(1);
            let former = (!is_drained).then_some(HELD);
            assert_eq!(held(&balancer), BTreeSet::from_iter(former.into_iter().chain([again])));
            assert_eq!((balancer.current, draining), (again, false));
            assert!(input.is_none(), "the mover has nothing to free");
        }
    }

    #[tokio::test]
    async fn who_had_left_its_blocks_has_left_them_behind_the_pause_too() {
        let (balancer, draining, input) = paused(true, false).await;
        assert_eq!((balancer.current, draining), (HELD, true), "nothing opens on them");
        assert_eq!(held(&balancer), BTreeSet::from([HELD]));
        assert!(input.is_none(), "sessions are on them still");

        let (balancer, draining, input) = paused(true, true).await;
        assert_eq!((balancer.current, draining), (HELD, true));
        assert_eq!(held(&balancer), BTreeSet::new());
        assert!(matches!(input, Some(Input::Drained)), "there is room for others now");
    }
}
