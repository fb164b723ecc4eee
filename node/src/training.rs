//! The body of [`umbel_coordinator::training`]: trainers' links, the thread that computes, and the
//! clock against the machine.
//!
//! It shares nothing with the sessions that answer but the blocks and the [`Floor`].

mod engine;
mod links;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};
use umbel_client::clock::Clock;
use umbel_coordinator::server::{LinkId, ShardId};
use umbel_coordinator::training::{Host, HostConfig, Input, Output};
use umbel_engine::HostedSpan;
use umbel_engine::train::{TargetModule, module_shape};
use umbel_net::Network;
use umbel_protocol::PeerId;
use umbel_protocol::training::{ModuleShapes, TrainerMessage, TrainingAnswer};
use umbel_shard::{Model, ModelConfig};

use crate::compute::floor::Floor;
use crate::metrics::server::Waits;
use engine::{Lent, Worked};
use links::OpenLink;

/// Events that wait for the driver. When they are this many, readers wait, and with them their peers.
const EVENTS_WAITING_MAX: usize = 64;

/// What happens on the links and in the engine.
enum Event {
    Accepted { link: LinkId, open: OpenLink },
    Received { link: LinkId, from: PeerId, message: TrainerMessage },
    LinkClosed { link: LinkId },
    Computed(Worked),
    Serve { shard: ShardId, blocks: HostedSpan },
    Drain,
}

/// What the rest of the node tells the trainings.
#[derive(Clone)]
pub struct TrainingHandle {
    tell: mpsc::Sender<Event>,
    users: Arc<watch::Sender<()>>,
}

impl TrainingHandle {
    /// Opens sessions on these blocks from now on.
    pub async fn serve(&self, shard: ShardId, blocks: HostedSpan) {
        // A driver that has ended serves nothing any more.
        let _ended = self.tell.send(Event::Serve { shard, blocks }).await;
    }

    /// Opens no session until blocks are served again, ends those that are open, and lets go of the blocks.
    pub async fn drain(&self) {
        let _ended = self.tell.send(Event::Drain).await;
    }

    /// Waits until the blocks are let go of, behind [`Self::drain`]: one of them may still be computed.
    pub async fn let_go(&self) {
        self.users.closed().await;
    }
}

/// Runs the machine of a server's trainings.
pub struct TrainingDriver {
    host: Host,
    network: Network,
    engine: mpsc::Sender<engine::Command>,
    /// The blocks on which sessions open: however often they change, the last ones count.
    lent: watch::Sender<Option<Lent>>,
    /// What is lent listens to it, so that it is heard when nothing is in use any more.
    users: Arc<watch::Sender<()>>,
    links: BTreeMap<LinkId, OpenLink>,
    tell: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    clock: Clock,
    floor: Floor,
}

impl TrainingDriver {
    /// A driver that listens for trainers as soon as it runs. They train on `blocks` of `model` while
    /// the `floor` is free, and take at most so many bytes; `lost` is told when the GPU is.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    #[must_use]
    pub fn new(
        (model, blocks): (&Model, HostedSpan),
        network: Network,
        (floor, lost): (Floor, Arc<Notify>),
        bytes_max: u64,
    ) -> (Self, TrainingHandle) {
        let config = model.config();
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let host = Host::new(HostConfig {
            model: model.id(),
            span: blocks.span(),
            hidden_size: size(config.hidden_size),
            module_shapes: module_shapes(config),
            context_tokens: size(config.context_tokens),
            bytes_max,
        });
        let (tell, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let done = tell.clone();
        let users = Arc::new(watch::Sender::new(()));
        let (lent, borrowed) = watch::channel(Some(Lent::new(ShardId::default(), blocks, &users)));
        let engine =
            engine::start(config.clone(), borrowed, (floor.clone(), lost), move |result| {
                // The driver ends before the thread does; then nobody waits for the result.
                let _ended = done.blocking_send(Event::Computed(result));
            });
        let handle = TrainingHandle { tell: tell.clone(), users: Arc::clone(&users) };
        let (links, clock) = (BTreeMap::new(), Clock::start());
        (Self { host, network, engine, lent, users, links, tell, events, clock, floor }, handle)
    }

    /// What passes of sessions have waited for.
    #[must_use]
    pub fn waits(&self) -> &Waits {
        self.floor.waits()
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// Where links of the training protocol are accepted elsewhere already.
    pub async fn run(mut self) -> Result<(), umbel_net::AcceptError> {
        let _acceptors = links::accept(&self.network, &self.tell)?;
        loop {
            let deadline = self.host.poll_timeout();
            tokio::select! {
                event = self.events.recv() => {
                    self.handle(event.expect("the driver itself holds a sender"));
                }
                () = self.clock.wait_until(deadline) => self.host.handle_timeout(self.clock.now()),
            }
            while let Some(output) = self.host.poll() {
                self.act(output);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted { link, open } => {
                self.links.insert(link, open);
            }
            Event::Received { link, from, message } => {
                let input = Input::Received { link, from, message };
                if let Err(violation) = self.host.handle(input, self.clock.now()) {
                    tracing::warn!(%from, %violation, "closing a trainer's link");
                    self.close(link);
                }
            }
            Event::LinkClosed { link } => self.close(link),
            Event::Computed(result) => self.tell_host(Input::Computed(result)),
            Event::Serve { shard, blocks } => {
                let span = blocks.span();
                self.lent.send_replace(Some(Lent::new(shard, blocks, &self.users)));
                self.tell_host(Input::Serve { shard, span });
            }
            Event::Drain => {
                self.lent.send_replace(None);
                self.tell_host(Input::Drain);
            }
        }
    }

    /// Tells the machine of something that no peer said, so that nobody can be at fault.
    fn tell_host(&mut self, input: Input) {
        let result = self.host.handle(input, self.clock.now());
        debug_assert!(result.is_ok(), "only what a peer says can break the protocol");
    }

    fn close(&mut self, link: LinkId) {
        if let Some(open) = self.links.remove(&link) {
            open.close.send_replace(true);
        }
        self.tell_host(Input::LinkClosed { link });
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Send { link, answer } => self.send(link, answer),
            // Its writer sends what waits, and closes.
            Output::Close { link } => {
                self.links.remove(&link);
            }
            Output::Compute { session, work } => {
                let sent = self.engine.try_send(engine::Command { session, work });
                sent.expect("there is one piece of work at a time, and the thread outlives panics");
            }
        }
    }

    fn send(&mut self, link: LinkId, answer: TrainingAnswer) {
        let Some(open) = self.links.get(&link) else { return };
        match open.answers.try_send(answer) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => {
                tracing::warn!(link = link.0, "a trainer leaves its answers unread");
            }
            // It is gone, and its reader will say so.
            Err(TrySendError::Closed(_)) => {}
        }
        self.close(link);
    }
}

/// The shape of each module's matrix.
#[must_use]
pub fn module_shapes(config: &ModelConfig) -> ModuleShapes {
    TargetModule::ALL
        .map(|module| module_shape(module, config).map(|shape| shape.map(|size| size as u64)))
}

#[cfg(test)]
mod tests {
    use umbel_net::{Identity, NetworkConfig, Role};
    use umbel_protocol::Span;
    use umbel_shard::Experts;

    use super::*;
    use crate::compute::tests::llama;

    #[test]
    fn experts_have_no_place_for_the_matrices_of_an_mlp() {
        let (model, _) = llama();
        let dense = model.config();
        assert!(module_shapes(dense).iter().all(Option::is_some));
        let experts = Experts { count: 4, per_token: 2, normalized: true };
        let sparse = ModelConfig { experts: Some(experts), ..dense.clone() };
        let shapes = module_shapes(&sparse);
        assert_eq!(shapes[..4], module_shapes(dense)[..4]);
        assert_eq!(shapes[4..], [None; 3]);
    }

    #[tokio::test]
    async fn a_server_that_leaves_its_blocks_holds_none_for_trainings() {
        let (model, weights) = llama();
        let span = Span::new(0, 4).unwrap();
        let blocks = HostedSpan::load(model.config(), &weights, span).unwrap();
        let network = Network::start(NetworkConfig::new(Identity::ephemeral(), Role::Client));
        let network = network.await.unwrap();
        let floor = (Floor::default(), Arc::default());
        let (mut driver, handle) =
            TrainingDriver::new((&model, blocks.clone()), network, floor, 1 << 20);
        // As the thread has them while it computes.
        let used = driver.lent.borrow().clone();
        // They may change often before it asks for them again.
        for number in 1..100 {
            driver.handle(Event::Serve { shard: ShardId(number), blocks: blocks.clone() });
            driver.handle(Event::Drain);
        }
        assert!(driver.lent.borrow().is_none());
        {
            let mut let_go = std::pin::pin!(handle.let_go());
            assert!(futures::poll!(&mut let_go).is_pending(), "some are computed");
            drop(used);
            let_go.await;
        }
        driver.handle(Event::Serve { shard: ShardId(100), blocks });
        let shard = driver.lent.borrow().as_ref().map(|lent| lent.shard);
        assert_eq!(shard, Some(ShardId(100)));
    }
}
