//! Stopping for a while, with the blocks in memory.

use tokio::sync::watch;
use umbel_coordinator::swarm::placement::Input;

use super::Balancer;
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
        let only_current = self.held.iter().all(|(held, _)| *held == self.current);
        (former_is_gone && only_current).then_some(Input::Drained)
    }
}
