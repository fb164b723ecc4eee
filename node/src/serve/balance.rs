//! The body of [`umbel_coordinator::swarm::placement::Mover`]: moving to other blocks while serving.

mod pause;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use umbel_client::clock::Clock;
use umbel_coordinator::Time;
use umbel_coordinator::server::ShardId;
use umbel_coordinator::swarm::placement::{Input, Mover, MoverConfig, Output, Sight, View};
use umbel_engine::{HostedSpan, KvArena};
use umbel_protocol::{PeerId, Span};
use umbel_shard::Model;

use super::loading::{Held, Loaded, Loader};
use super::rest::Pauses;
use crate::announce::{Announcer, Offer};
use crate::args::ServeArguments;
use crate::compute::{Shard, ShardEnds};
use crate::driver::Handle;
use crate::training::TrainingHandle;

/// How long a training may take to let go of blocks: to the end of one of them, between passes of sessions.
const LETTING_GO_MAX: Duration = Duration::from_secs(10);

/// Looks for blocks that need this server more, and moves to them.
pub(super) struct Balancer {
    /// `None` where the server stays with its blocks, and while it looks for others.
    mover: Option<Mover>,
    looking: Option<JoinHandle<Mover>>,
    block_bytes: Vec<u64>,
    loader: Loader,
    /// The blocks in memory, by whose sessions use them, and the room for all sessions.
    held: Vec<(ShardId, HostedSpan)>,
    arena: KvArena,
    /// Of the blocks on which sessions open.
    ends: ShardEnds,
    handle: Handle,
    trainings: Option<TrainingHandle>,
    drained: mpsc::Receiver<ShardId>,
    current: ShardId,
    loading: Option<JoinHandle<anyhow::Result<Loaded>>>,
    loaded: Option<Loaded>,
    clock: Clock,
}

impl Balancer {
    /// Of a server that serves these blocks, and may hold so many at once.
    pub(super) fn new(
        peer: PeerId,
        arguments: &ServeArguments,
        model: &Model,
        (held, held_max): (Held, u32),
        loader: Loader,
        (handle, drained): (Handle, mpsc::Receiver<ShardId>),
    ) -> Self {
        let Held { spans, arena, ends } = held;
        let span = arena.hosted();
        let pinned = arguments.no_rebalance || arguments.blocks.is_some();
        let block_count = model.config().block_count;
        let mover = (!pinned && span.block_count() < block_count).then(|| {
            let config = MoverConfig {
                peer,
                span,
                block_limit: span.block_count(),
                held_max,
                look_interval: Duration::from_secs(arguments.rebalance_interval.into()),
                seed: getrandom::u64().unwrap_or_default(),
            };
            Mover::new(config, Time::START)
        });
        let block_bytes = (0..block_count).map(|block| model.manifest().block_bytes(block));
        Self {
            mover,
            looking: None,
            block_bytes: block_bytes.collect(),
            loader,
            held: spans.into_iter().map(|span| (ShardId::default(), span)).collect(),
            arena,
            ends,
            handle,
            trainings: None,
            drained,
            current: ShardId::default(),
            loading: None,
            loaded: None,
            clock: Clock::start(),
        }
    }

    /// Tells the trainings on these blocks, too, of what it does.
    pub(super) fn with(self, trainings: TrainingHandle) -> Self {
        Self { trainings: Some(trainings), ..self }
    }

    /// Ends the trainings, which go on elsewhere.
    pub(super) async fn drain_trainings(&self) {
        if let Some(trainings) = &self.trainings {
            trainings.drain().await;
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Moves as the swarm needs it, and pauses where that is wished, until the future is dropped.
    pub(super) async fn run(
        &mut self,
        announcer: &Announcer,
        offer: &watch::Sender<Offer>,
        mut pauses: watch::Receiver<Pauses>,
    ) {
        loop {
            self.looked().await;
            while let Some(output) = self.mover.as_mut().and_then(Mover::poll) {
                self.act(output, announcer, offer).await;
            }
            let deadline = self.mover.as_ref().and_then(Mover::poll_timeout);
            let clock = self.clock;
            let input = tokio::select! {
                result = finished(&mut self.loading) => {
                    self.loading = None;
                    match result {
                        Ok(loaded) => {
                            self.loaded = Some(loaded);
                            Some(Input::Loaded)
                        }
                        Err(error) => {
                            tracing::warn!(error = format!("{error:#}"), "blocks were not loaded");
                            Some(Input::LoadFailed)
                        }
                    }
                }
                Some(shard) = self.drained.recv() => {
                    self.held.retain(|(held, _)| *held != shard);
                    let all_are_left = offer.borrow().draining;
                    is_drained(&self.held, self.current, all_are_left).then_some(Input::Drained)
                }
                () = clock.wait_until(deadline) => None,
                () = wished(&mut pauses) => self.pause(offer, &mut pauses).await,
            };
            let now = self.clock.now();
            let Some(mover) = &mut self.mover else { continue };
            match input {
                Some(input) => mover.handle(input, now),
                None => mover.handle_timeout(now),
            }
        }
    }

    /// Waits until no session uses any of the blocks, also of those that were left before.
    pub(super) async fn drained(&mut self) {
        all_drained(&mut self.held, &mut self.drained).await;
    }

    async fn act(&mut self, output: Output, announcer: &Announcer, offer: &watch::Sender<Offer>) {
        match output {
            Output::Look => {
                let sight = self.sight(announcer, &offer.borrow().clone());
                self.look(sight).await;
            }
            Output::Announce(intention) => {
                let before = offer.borrow().intention.clone();
                if intention.moving_to != before.moving_to {
                    let to = intention.moving_to.map(|span| span.to_string());
                    tracing::info!(?to, "intend to move");
                }
                if let Some(proposal) =
                    intention.proposal.as_ref().filter(|_| before.proposal.is_none())
                {
                    tracing::info!(
                        moves = proposal.moves.len(),
                        "propose that servers change places"
                    );
                }
                offer.send_modify(|offer| offer.intention = intention);
            }
            Output::Load(span) => {
                let spans = self.held.iter().map(|(_, held)| held.clone()).collect();
                let (arena, ends) = (self.arena.clone(), self.ends.clone());
                let (loader, held) = (self.loader.clone(), Held { spans, arena, ends });
                let load = async move { loader.load_beside(span, held).await };
                self.loading = Some(tokio::spawn(load));
            }
            Output::Serve(span) => self.serve(span, offer).await,
            // The driver drops blocks as soon as no session uses them; those that were loaded and
            // never served go here.
            Output::DropOld(_) => self.loaded = None,
            Output::Withdraw { to } => self.withdraw(to, offer).await,
        }
    }

    async fn serve(&mut self, span: Span, offer: &watch::Sender<Offer>) {
        let Some(Loaded { shard, throughput }) = self.loaded.take() else {
            return;
        };
        self.hand_over(shard).await;
        tracing::info!(blocks = %span, "serving other blocks");
        offer.send_modify(|offer| {
            offer.span = span;
            offer.draining = false;
            offer.intention.moving_to = None;
            offer.intention.joined = None;
            offer.throughput = throughput;
        });
    }

    /// Goes on with a part of the blocks, or with none, so that there is room for others.
    async fn withdraw(&mut self, to: Option<Span>, offer: &watch::Sender<Offer>) {
        let served = self.held.iter().find(|(held, _)| *held == self.current);
        let part = to.and_then(|to| served?.1.part(to));
        let Some(blocks) = part else {
            tracing::info!("leaving all blocks, as there is no room for others beside them");
            offer.send_modify(|offer| offer.draining = true);
            self.ends = ShardEnds::default();
            self.handle.drain().await;
            self.take_back_from_trainings().await;
            return;
        };
        let span = blocks.span();
        tracing::info!(blocks = %span, "leaving the other blocks, as there is no room beside them");
        let ShardEnds { embedding, head } = self.ends.clone();
        let ends = ShardEnds {
            embedding: embedding.filter(|_| span.start() == 0),
            head: head.filter(|_| span.end() as usize == self.block_bytes.len()),
        };
        self.take_back_from_trainings().await;
        self.hand_over(Shard { arena: self.arena.beside(span), blocks, ends }).await;
        offer.send_modify(|offer| offer.span = span);
    }

    /// Waits until no training has the blocks in use, into whose room others are loaded.
    async fn take_back_from_trainings(&self) {
        let Some(trainings) = &self.trainings else { return };
        trainings.drain().await;
        if tokio::time::timeout(LETTING_GO_MAX, trainings.let_go()).await.is_err() {
            tracing::warn!("a training that gives way to sessions still has the blocks in use");
        }
    }

    /// Lets new sessions open on these blocks.
    async fn hand_over(&mut self, shard: Shard) {
        self.current = ShardId(self.current.0 + 1);
        self.held.push((self.current, shard.blocks.clone()));
        if let Some(trainings) = &self.trainings {
            trainings.serve(self.current, shard.blocks.clone()).await;
        }
        self.ends = shard.ends.clone();
        self.handle.serve(self.current, shard.blocks.span(), shard).await;
    }

    /// Lets the mover see this, beside the links of all sessions: among a thousand servers it may look
    /// for moves for 70 ms.
    async fn look(&mut self, sight: Sight) {
        let (Some(mut mover), now) = (self.mover.take(), self.clock.now()) else { return };
        self.looking = Some(tokio::task::spawn_blocking(move || {
            mover.handle(Input::Seen(sight), now);
            mover
        }));
        self.looked().await;
    }

    /// Waits for the mover, if it looks; who ceases to wait may wait again.
    async fn looked(&mut self) {
        if let Some(looking) = &mut self.looking {
            self.mover = Some(looking.await.expect("whoever looks does not panic"));
            self.looking = None;
        }
    }

    fn sight(&self, announcer: &Announcer, offer: &Offer) -> Sight {
        let servers = announcer.servers(offer.model);
        let view = View::of(offer.block_count, servers.iter());
        // The others weigh this server by the rate that it has announced, and so must it.
        let own = servers.iter().find(|server| server.peer == announcer.network().peer_id());
        let throughput = own.map_or(offer.throughput, |own| own.throughput);
        Sight {
            view,
            rate: f64::from(throughput.decode_tokens_per_second).max(1.0),
            // Neither what is on disk nor how fast the rest would come is known, so that a download
            // costs a server nothing when it looks for a move.
            missing_bytes: self.block_bytes.clone(),
            bytes_per_second: 0.0,
        }
    }
}

/// Whether nobody uses the blocks any more from which a server goes to others: those of earlier moves,
/// and where `all_are_left`, the last ones too.
fn is_drained<B>(held: &[(ShardId, B)], current: ShardId, all_are_left: bool) -> bool {
    // Blocks of an earlier move may be in use for longer than those of the last.
    if all_are_left { held.is_empty() } else { held.iter().all(|(held, _)| *held == current) }
}

/// Waits until nobody uses any of what is held.
async fn all_drained<B>(held: &mut Vec<(ShardId, B)>, drained: &mut mpsc::Receiver<ShardId>) {
    while !held.is_empty() {
        let Some(shard) = drained.recv().await else { return };
        held.retain(|(held, _)| *held != shard);
    }
}

/// Waits until the server is to pause.
async fn wished(pauses: &mut watch::Receiver<Pauses>) {
    if pauses.wait_for(|pauses| pauses.any()).await.is_err() {
        std::future::pending().await
    }
}

/// The blocks that are being loaded, once they are.
async fn finished(
    loading: &mut Option<JoinHandle<anyhow::Result<Loaded>>>,
) -> anyhow::Result<Loaded> {
    match loading {
        Some(task) => task.await?,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_all_blocks_waits_for_the_sessions_on_the_last_ones_too() {
        let (former, current) = (ShardId(3), ShardId(4));
        let of_both = [(former, ()), (current, ())];
        for (held, moved, left) in [
            (&of_both[..], false, false),
            (&of_both[1..], true, false),
            (&of_both[2..], true, true),
        ] {
            assert_eq!(is_drained(held, current, false), moved, "{held:?}");
            assert_eq!(is_drained(held, current, true), left, "{held:?}");
        }
    }

    #[tokio::test]
    async fn who_stops_waits_for_the_sessions_on_the_blocks_before_too() {
        let (former, current) = (ShardId(3), ShardId(4));
        let (drain, mut drained) = mpsc::channel(2);
        let mut held = vec![(former, ()), (current, ())];
        // The new blocks have no session yet, and are said to be free at once.
        drain.try_send(current).unwrap();
        {
            let mut waiting = std::pin::pin!(all_drained(&mut held, &mut drained));
            assert!(futures::poll!(&mut waiting).is_pending(), "sessions are on the others");
            drain.try_send(former).unwrap();
            waiting.await;
        }
        assert!(held.is_empty());
        all_drained(&mut held, &mut drained).await;
    }
}
