//! Microbatches on their way through the servers of all routes at once.
//!
//! Each server has a few messages under way, so that it need not wait for the trainer: while it
//! computes one microbatch, others are on the links, at its neighbours, and at the model's end, which
//! the trainer computes. What may be sent next follows from what is known of each microbatch, so that
//! a pass that was broken off by a failure goes on where it was.
//!
//! The gradients of the microbatches are added in the order of the microbatches, whatever order they
//! become known in: along one route each server adds its own, in that order; along several the trainer
//! reads those of each microbatch and adds them.

mod order;
mod sum;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use umbel_coordinator::session::FailureReason;
use umbel_engine::HiddenStates;
use umbel_engine::train::LossError;
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_protocol::{Span, Tensor};

use super::hop::{Fault, HopLink, OpenHop, PIPELINED, Progress, read_answer, unexpected};
use super::{Foretold, Microbatch, TrainingRoute};
use crate::model::ClientModel;
use crate::swarm::Swarm;
use crate::train::TrainError;
use order::Job;
pub(super) use sum::GradientSum;

/// What a pass is for.
pub(super) struct Pass<'a> {
    pub(super) swarm: &'a Swarm,
    pub(super) loss: WantedLoss<'a>,
    pub(super) way: Way<'a>,
}

/// Where the loss is wanted: the model, and what each token counts where its gradient is too.
type WantedLoss<'a> = Option<(&'a Arc<ClientModel>, Option<f32>)>;

/// Which way microbatches take.
pub(super) enum Way<'a> {
    /// Forward, without dropout.
    Forward,
    /// Forward and back; each server adds its gradients.
    Together,
    /// Forward and back; the gradients are added here.
    Apart(&'a mut GradientSum),
}

/// Why a pass was broken off. No message is without an answer then, but at those that have failed.
pub(super) enum Halt {
    /// Nothing helps.
    Training(TrainError),
    /// Servers have failed: the name of the route, the place on it, and why.
    Hops(Vec<(usize, usize, FailureReason)>),
}

/// Takes all microbatches through what they still lack.
pub(super) async fn run(
    pass: Pass<'_>,
    routes: &mut [TrainingRoute],
    microbatches: &mut [Microbatch],
) -> Result<(), Halt> {
    let count: usize = routes.iter().map(|route| route.hops.len()).sum();
    // A server has no more messages without an answer, and says once that it has failed.
    let (tell, events) = mpsc::channel((PIPELINED + 1) * count.max(1));
    let (mut stages, mut workers) = (Vec::new(), Vec::new());
    for route in routes {
        for (place, hop) in route.hops.iter_mut().enumerate() {
            let OpenHop { hop, link, progress, .. } = hop;
            let (jobs, waiting) = mpsc::channel(PIPELINED);
            workers.push(carry(pass.swarm, link, waiting, (stages.len(), tell.clone())));
            stages.push(Stage {
                route: route.name,
                place,
                blocks: hop.blocks,
                progress,
                jobs,
                sent: [BTreeSet::new(), BTreeSet::new()],
                behind: VecDeque::new(),
                under_way: VecDeque::new(),
                failed: false,
            });
        }
    }
    let conductor = Conductor::new((pass.loss, pass.way), stages, microbatches);
    let carrying = async {
        futures::future::join_all(workers).await;
        // The conductor ends the pass: it has yet to hear of the last events.
        std::future::pending().await
    };
    tokio::select! {
        ended = conductor.conduct(events) => ended,
        () = carrying => unreachable!("it is pending for ever"),
    }
}

/// What happens at a server, by its place among all.
type Event = (usize, Result<TrainingAnswer, Fault>);

async fn carry(
    swarm: &Swarm,
    link: &mut HopLink,
    jobs: mpsc::Receiver<TrainerMessage>,
    (index, tell): (usize, mpsc::Sender<Event>),
) {
    let event = move |answer| (index, Ok(answer));
    if let Err(fault) = link.carry(swarm, jobs, (&tell, event)).await {
        let _over = tell.send((index, Err(fault))).await;
    }
}

/// One server, and what it was asked for in this pass.
struct Stage<'a> {
    /// The name of its route.
    route: usize,
    place: usize,
    blocks: Span,
    progress: &'a mut Progress,
    jobs: mpsc::Sender<TrainerMessage>,
    /// Microbatches that were sent forward, and back, by their places.
    sent: [BTreeSet<usize>; 2],
    /// What has to follow what was sent before anything else is.
    behind: VecDeque<Job>,
    /// What has no answer yet.
    under_way: VecDeque<Job>,
    failed: bool,
}

struct Conductor<'a> {
    loss: WantedLoss<'a>,
    way: Way<'a>,
    stages: Vec<Stage<'a>>,
    microbatches: &'a mut [Microbatch],
    failed: Vec<(usize, usize, FailureReason)>,
    stopped: Option<TrainError>,
    /// The microbatch whose loss is computed.
    foretelling: Option<(usize, JoinHandle<Result<Foretold, LossError>>)>,
}

impl<'a> Conductor<'a> {
    fn new(
        (loss, way): (WantedLoss<'a>, Way<'a>),
        stages: Vec<Stage<'a>>,
        microbatches: &'a mut [Microbatch],
    ) -> Self {
        let (failed, stopped, foretelling) = (Vec::new(), None, None);
        Self { loss, way, stages, microbatches, failed, stopped, foretelling }
    }

    async fn conduct(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), Halt> {
        self.forget_routes();
        loop {
            self.assign();
            while self.send_next() {}
            self.foretell();
            let waits = self.stages.iter().any(|stage| !stage.under_way.is_empty());
            if !waits && self.foretelling.is_none() {
                break;
            }
            let foretold = async {
                match &mut self.foretelling {
                    Some((index, work)) => (*index, work.await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((index, event)) = events.recv() => self.heard(index, event),
                (index, loss) = foretold => {
                    self.foretelling = None;
                    self.foretold(index, loss.expect("arithmetic does not panic"));
                }
            }
        }
        if let Some(error) = self.stopped {
            return Err(Halt::Training(error));
        }
        if !self.failed.is_empty() {
            return Err(Halt::Hops(self.failed));
        }
        let complete = (0..self.microbatches.len()).all(|index| self.is_complete(index));
        assert!(complete, "something can be sent as long as something is missing");
        Ok(())
    }

    /// Whether nothing new is begun any more.
    fn stops(&self) -> bool {
        self.stopped.is_some() || !self.failed.is_empty()
    }

    fn heard(&mut self, index: usize, event: Result<TrainingAnswer, Fault>) {
        let stage = &mut self.stages[index];
        if stage.failed {
            return;
        }
        let job = stage.under_way.pop_front();
        let applied = match (event, job) {
            (Ok(answer), Some(job)) => self.answered(index, job, answer),
            (Ok(_), None) => Err(unexpected("an answer to nothing")),
            (Err(fault), _) => Err(fault),
        };
        let Err(fault) = applied else { return };
        let stage = &mut self.stages[index];
        stage.failed = true;
        stage.behind.clear();
        stage.under_way.clear();
        match fault {
            Fault::Training(error) => self.stopped = Some(error),
            Fault::Hop(reason) => self.failed.push((stage.route, stage.place, reason)),
        }
    }

    fn answered(&mut self, index: usize, job: Job, answer: TrainingAnswer) -> Result<(), Fault> {
        let stage = &mut self.stages[index];
        match job {
            Job::Forward(at) => {
                let TrainingAnswer::Forwarded { microbatch: of, hidden } = answer else {
                    return Err(unexpected("an answer to TrainForward"));
                };
                let microbatch = &mut self.microbatches[at];
                let hidden = rows(microbatch, of, &hidden)?;
                microbatch.entering.insert(stage.blocks.end(), hidden);
                if !matches!(self.way, Way::Forward) {
                    stage.progress.forwarded.insert(microbatch.number);
                }
            }
            Job::Backward(at) => {
                let TrainingAnswer::Backwarded { microbatch: of, gradient } = answer else {
                    return Err(unexpected("an answer to TrainBackward"));
                };
                let microbatch = &mut self.microbatches[at];
                let gradient = rows(microbatch, of, &gradient)?;
                microbatch.gradients.insert(stage.blocks.start(), gradient);
                if matches!(self.way, Way::Together) {
                    stage.progress.done.insert(microbatch.number);
                }
            }
            Job::Read { at, part, start, is_last } => {
                let Way::Apart(sum) = &mut self.way else { return Ok(()) };
                sum.read(at, part.start, &read_answer(&part, start, answer)?);
                if is_last {
                    sum.add(at, stage.blocks);
                    stage.progress.done.insert(self.microbatches[at].number);
                }
            }
        }
        Ok(())
    }

    /// Computes the loss of the next microbatch that has left the last block, apart from the network.
    fn foretell(&mut self) {
        let Some((model, weight)) = self.loss else { return };
        if self.foretelling.is_some() || self.stops() {
            return;
        }
        let last = model.config().block_count;
        let is_next = |of: &Microbatch| of.loss.is_none() && of.entering.contains_key(&last);
        let Some(index) = self.microbatches.iter().position(is_next) else { return };
        let work = self.microbatches[index].loss(model, weight);
        self.foretelling = Some((index, tokio::task::spawn_blocking(work)));
    }

    fn foretold(&mut self, index: usize, foretold: Result<Foretold, LossError>) {
        match foretold {
            Ok(foretold) => self.microbatches[index].foretold(foretold),
            Err(error) => self.stopped = Some(error.into()),
        }
    }
}

/// The rows of an answer, for the microbatch that was asked about.
fn rows(microbatch: &Microbatch, answered: u64, tensor: &Tensor) -> Result<HiddenStates, Fault> {
    let asked = microbatch.entered();
    let rows = HiddenStates::from_wire(tensor, asked.hidden_size());
    let rows = rows.map_err(|_| unexpected("a tensor of another model"))?;
    if microbatch.number != answered || rows.token_count() != asked.token_count() {
        return Err(unexpected("an answer about other tokens"));
    }
    Ok(rows)
}
