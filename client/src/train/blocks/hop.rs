//! One server of a training's route, and the part of the adapter that it holds.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use tokio::sync::watch;
use umbel_coordinator::Hop;
use umbel_coordinator::session::{FailureReason, RouteHop};
use umbel_engine::HiddenStates;
use umbel_engine::train::TrainingState;
use umbel_net::{LinkReceiver, LinkSender};
use umbel_protocol::error::Retry;
use umbel_protocol::training::{
    AdapterSettings, ForwardMicrobatch, OpenTraining, OptimizerStep, STATE_VALUES_MAX, StateKind,
    StateValues, TrainerMessage, TrainingAnswer,
};
use umbel_protocol::{LinkProtocol, ModelId, ProtocolViolation, Span, Tensor};

use super::Microbatch;
use crate::swarm::Swarm;
use crate::swarm::exchange::chain;
use crate::train::TrainError;

/// How often a server that has not answered is looked after: its system says at once if its process has
/// ended.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// How long a server may take for one answer. Others may train there too, and the machine may be slow;
/// one that is gone is noticed by its link.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Messages under way: a server lets two wait behind the one that it computes.
const PIPELINED: usize = 3;

/// What all servers of a training are told.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) model: ModelId,
    pub(super) hidden_size: usize,
    pub(super) seed: u64,
    pub(super) tokens_max: u32,
    /// Counts the answers of all servers.
    pub(super) answers: watch::Sender<u64>,
}

/// A server that is open.
pub(super) struct OpenHop {
    pub(super) hop: Hop,
    sender: LinkSender,
    receiver: LinkReceiver,
    hidden_size: usize,
    /// Microbatches of this step that have gone forward here.
    forwarded: BTreeSet<u64>,
    /// Those that have come back too.
    done: BTreeSet<u64>,
    /// Whether its gradients of this step were read.
    pub(super) read: bool,
    answers: watch::Sender<u64>,
    /// The last step that it is known to have taken.
    pub(super) steps: u64,
}

/// Why a server is given up.
#[derive(Debug)]
pub(super) enum Fault {
    /// It failed, and another may do better.
    Hop(FailureReason),
    /// Nothing helps.
    Training(TrainError),
}

impl From<TrainError> for Fault {
    fn from(error: TrainError) -> Self {
        Self::Training(error)
    }
}

impl OpenHop {
    /// Opens a session on a server and gives it its part of the state.
    pub(super) async fn open(
        swarm: &Swarm,
        route: &RouteHop,
        terms: &Terms,
        state: &TrainingState,
    ) -> Result<Self, Fault> {
        let RouteHop { hop, addresses, session, .. } = route;
        let link = swarm.open_link(hop.peer, addresses, LinkProtocol::Training).await;
        let (sender, receiver) = link.map_err(|error| lost(chain(&error)))?.split();
        let (steps, hidden_size) = (state.steps(), terms.hidden_size);
        let (forwarded, done) = (BTreeSet::new(), BTreeSet::new());
        let mut open = Self {
            hop: *hop,
            sender,
            receiver,
            hidden_size,
            forwarded,
            done,
            read: false,
            answers: terms.answers.clone(),
            steps,
        };
        let message = TrainerMessage::Open(OpenTraining {
            session: *session,
            model: terms.model,
            blocks: hop.blocks,
            adapter: AdapterSettings::from(state.adapter().config()),
            optimizer: state.settings().into(),
            seed: terms.seed,
            steps,
            tokens_max: terms.tokens_max,
        });
        let stretch = state.stretch(hop.blocks);
        let count = stretch.end - stretch.start;
        let answer = open.ask(swarm, message).await?;
        if !matches!(answer, TrainingAnswer::Opened { value_count, .. } if value_count == count) {
            return Err(unexpected("an answer to OpenTraining"));
        }
        open.write(swarm, state, stretch).await?;
        Ok(open)
    }

    /// Gives it its part of the adapter and of the optimizer's state.
    async fn write(
        &mut self,
        swarm: &Swarm,
        state: &TrainingState,
        stretch: Range<u64>,
    ) -> Result<(), Fault> {
        let kinds: &[_] = if state.steps() == 0 {
            // Nobody has stepped yet, so that the optimizer's state is zero.
            &[StateKind::Values]
        } else {
            &[StateKind::Values, StateKind::Means, StateKind::MeanSquares]
        };
        let mut messages = Vec::new();
        for &kind in kinds {
            for part in parts(&stretch) {
                let values = state.read(kind, part.clone()).expect("the stretch has these values");
                let count = u32::try_from(values.len()).expect("a part has at most 2^18 values");
                let values = Tensor::from_f32(vec![count], &values).expect("the shape fits");
                let offset = part.start - stretch.start;
                messages.push(TrainerMessage::Write(StateValues { kind, offset, values }));
            }
        }
        for answer in self.ask_all(swarm, messages).await? {
            if answer != TrainingAnswer::Written {
                return Err(unexpected("an answer to WriteState"));
            }
        }
        Ok(())
    }

    /// Takes a microbatch through the blocks, unless it has been there.
    pub(super) async fn forward(
        &mut self,
        swarm: &Swarm,
        microbatch: &mut Microbatch,
        evaluate: bool,
    ) -> Result<(), Fault> {
        let number = microbatch.number;
        if self.forwarded.contains(&number) {
            return Ok(());
        }
        let entering = &microbatch.entering[&self.hop.blocks.start()];
        let message = TrainerMessage::Forward(ForwardMicrobatch {
            microbatch: number,
            sequences: microbatch.sequences.clone(),
            evaluate,
            hidden: entering.to_wire(),
        });
        let tokens = entering.token_count();
        let answer = self.ask(swarm, message).await?;
        let TrainingAnswer::Forwarded { microbatch: of, hidden } = answer else {
            return Err(unexpected("an answer to TrainForward"));
        };
        let hidden = self.rows((number, of), &hidden, tokens)?;
        microbatch.entering.insert(self.hop.blocks.end(), hidden);
        if !evaluate {
            self.forwarded.insert(number);
        }
        Ok(())
    }

    /// Brings its gradient back, unless that is done.
    pub(super) async fn backward(
        &mut self,
        swarm: &Swarm,
        microbatch: &mut Microbatch,
    ) -> Result<(), Fault> {
        let number = microbatch.number;
        if self.done.contains(&number) {
            return Ok(());
        }
        let gradient = &microbatch.gradients[&self.hop.blocks.end()];
        let tokens = gradient.token_count();
        let message = TrainerMessage::Backward { microbatch: number, gradient: gradient.to_wire() };
        let answer = self.ask(swarm, message).await?;
        let TrainingAnswer::Backwarded { microbatch: of, gradient } = answer else {
            return Err(unexpected("an answer to TrainBackward"));
        };
        let gradient = self.rows((number, of), &gradient, tokens)?;
        microbatch.gradients.insert(self.hop.blocks.start(), gradient);
        self.done.insert(number);
        Ok(())
    }

    /// The gradients that it has gathered: a stretch of the row of all.
    pub(super) async fn gradients(
        &mut self,
        swarm: &Swarm,
        stretch: Range<u64>,
    ) -> Result<Vec<f32>, Fault> {
        let kind = StateKind::Gradients;
        let asked: Vec<_> = parts(&stretch).collect();
        let messages = asked.iter().map(|part| {
            let count =
                u32::try_from(part.end - part.start).expect("a part has at most 2^18 values");
            TrainerMessage::Read { kind, offset: part.start - stretch.start, count }
        });
        let answers = self.ask_all(swarm, messages.collect()).await?;
        let mut gradients = Vec::new();
        for (part, answer) in asked.into_iter().zip(answers) {
            let TrainingAnswer::State(StateValues { kind: of, offset, values }) = answer else {
                return Err(unexpected("an answer to ReadState"));
            };
            let place = (part.start - stretch.start, part.end - part.start);
            if (of, offset, u64::from(values.shape()[0])) != (kind, place.0, place.1) {
                return Err(unexpected("other values than were asked for"));
            }
            gradients.extend(values.to_f32());
        }
        Ok(gradients)
    }

    /// Takes a step, after which its values must be those of `after`.
    pub(super) async fn step(
        &mut self,
        swarm: &Swarm,
        step: OptimizerStep,
        after: &TrainingState,
    ) -> Result<(), Fault> {
        let digest = after.digest(self.hop.blocks);
        let stepped = TrainingAnswer::Stepped { number: step.number, digest };
        if self.ask(swarm, TrainerMessage::Step(step)).await? != stepped {
            // It has not learned what this side has: with other values it would go on from there.
            return Err(unexpected("a step that led elsewhere"));
        }
        self.steps = step.number;
        Ok(())
    }

    /// The next step begins with other microbatches.
    pub(super) fn begin_step(&mut self) {
        self.forwarded.clear();
        self.done.clear();
        self.read = false;
    }

    /// Lets the server forget its part.
    pub(super) async fn close(mut self, swarm: &Swarm) {
        let _gone = self.ask(swarm, TrainerMessage::Close).await;
        self.sender.close().await;
    }

    pub(super) const fn blocks(&self) -> Span {
        self.hop.blocks
    }

    /// The rows of an answer, for the microbatch and as many tokens as were asked about.
    fn rows(
        &self,
        (asked, answered): (u64, u64),
        tensor: &Tensor,
        tokens: usize,
    ) -> Result<HiddenStates, Fault> {
        let rows = HiddenStates::from_wire(tensor, self.hidden_size);
        let rows = rows.map_err(|_| unexpected("a tensor of another model"))?;
        if asked != answered || rows.token_count() != tokens {
            return Err(unexpected("an answer about other tokens"));
        }
        Ok(rows)
    }

    async fn ask(
        &mut self,
        swarm: &Swarm,
        message: TrainerMessage,
    ) -> Result<TrainingAnswer, Fault> {
        self.send(message).await?;
        self.answer(swarm).await
    }

    /// Asks several things, some of which are under way at once.
    async fn ask_all(
        &mut self,
        swarm: &Swarm,
        messages: Vec<TrainerMessage>,
    ) -> Result<Vec<TrainingAnswer>, Fault> {
        let count = messages.len();
        let mut answers = Vec::with_capacity(count);
        for (sent, message) in messages.into_iter().enumerate() {
            if sent - answers.len() >= PIPELINED {
                answers.push(self.answer(swarm).await?);
            }
            self.send(message).await?;
        }
        while answers.len() < count {
            answers.push(self.answer(swarm).await?);
        }
        Ok(answers)
    }

    async fn send(&mut self, message: TrainerMessage) -> Result<(), Fault> {
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, self.sender.send(message.encode())).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(chain(&error))),
            Err(_) => Err(Fault::Hop(FailureReason::Silent { after: ANSWER_TIMEOUT })),
        }
    }

    async fn answer(&mut self, swarm: &Swarm) -> Result<TrainingAnswer, Fault> {
        let peer = self.hop.peer;
        let watch = async {
            loop {
                tokio::time::sleep(PROBE_INTERVAL).await;
                swarm.probe(peer);
            }
        };
        let frame = tokio::select! {
            frame = tokio::time::timeout(ANSWER_TIMEOUT, self.receiver.receive()) => frame,
            () = watch => unreachable!("a loop without end"),
        };
        let silent = |_| Fault::Hop(FailureReason::Silent { after: ANSWER_TIMEOUT });
        let frame = frame.map_err(silent)?.map_err(|error| lost(chain(&error)))?;
        let frame = frame.ok_or_else(|| lost("the link closed".to_owned()))?;
        match TrainingAnswer::decode(frame) {
            Ok(TrainingAnswer::Error { code, detail }) if code.retry() == Retry::Never => {
                Err(TrainError::Refused { code, detail }.into())
            }
            Ok(TrainingAnswer::Error { code, detail }) => {
                Err(Fault::Hop(FailureReason::Refused { code, detail }))
            }
            Ok(answer) => {
                self.answers.send_modify(|answers| *answers += 1);
                Ok(answer)
            }
            Err(violation) => Err(Fault::Hop(FailureReason::Violation(violation))),
        }
    }
}

/// A stretch of a row, in parts that a message holds.
fn parts(stretch: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let (start, end) = (stretch.start, stretch.end);
    (start..end)
        .step_by(STATE_VALUES_MAX)
        .map(move |from| from..end.min(from + STATE_VALUES_MAX as u64))
}

fn lost(detail: String) -> Fault {
    Fault::Hop(FailureReason::LinkLost { detail })
}

fn unexpected(message: &'static str) -> Fault {
    Fault::Hop(FailureReason::Violation(ProtocolViolation::Unexpected { message }))
}
