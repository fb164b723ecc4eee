//! One server of a training's route, and the part of the adapter that it holds.

mod link;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use tokio::sync::watch;
use umbel_coordinator::Hop;
use umbel_coordinator::session::{FailureReason, RouteHop};
use umbel_engine::train::TrainingState;
use umbel_protocol::error::in_one_line;
use umbel_protocol::training::{
    AdapterSettings, OpenTraining, OptimizerStep, STATE_VALUES_MAX, StateKind, StateValues,
    TrainerMessage, TrainingAnswer,
};
use umbel_protocol::{ErrorCode, LinkProtocol, ModelId, Span, Tensor};

use crate::swarm::Swarm;
use crate::train::TrainError;
use link::lost;
pub(super) use link::{HopLink, PIPELINED, unexpected};

/// How long a server may take to say that it has forgotten its part: what it has to compute before that is
/// none of a trainer that leaves. The end of the link says the same to one that takes longer.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// What all servers of a training are told.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) model: ModelId,
    pub(super) seed: u64,
    /// Tokens of the longest microbatch.
    pub(super) tokens_max: u32,
    /// Microbatches between their way forward and their way back, where a server has room for them.
    pub(super) under_way: u32,
    /// Counts the answers of all servers.
    pub(super) answers: watch::Sender<u64>,
}

/// A server that is open.
pub(super) struct OpenHop {
    pub(super) hop: Hop,
    pub(super) link: HopLink,
    pub(super) progress: Progress,
    /// The last step that it is known to have taken.
    pub(super) steps: u64,
}

/// How far a server has come with a step.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Tokens that it keeps at once of microbatches that have yet to come back.
    pub(super) tokens_max: u32,
    /// Microbatches of this step that have gone forward here.
    pub(super) forwarded: BTreeSet<u64>,
    /// Those that have come back too.
    pub(super) done: BTreeSet<u64>,
    /// Whether it has the sum of all gradients, and the trainer too.
    pub(super) read: bool,
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
        let wide = terms.tokens_max.saturating_mul(terms.under_way);
        match Self::open_for(swarm, route, (terms, wide), state).await {
            // With fewer microbatches under way it is slower, and takes less.
            Err(Fault::Hop(FailureReason::Refused { code, .. }))
                if code == ErrorCode::KvFull && wide > terms.tokens_max =>
            {
                Self::open_for(swarm, route, (terms, terms.tokens_max), state).await
            }
            opened => opened,
        }
    }

    async fn open_for(
        swarm: &Swarm,
        route: &RouteHop,
        (terms, tokens_max): (&Terms, u32),
        state: &TrainingState,
    ) -> Result<Self, Fault> {
        let RouteHop { hop, addresses, session, .. } = route;
        let link = swarm.open_link(hop.peer, addresses, LinkProtocol::Training).await;
        let (sender, receiver) = link.map_err(|error| lost(in_one_line(&error)))?.split();
        let link = HopLink { peer: hop.peer, sender, receiver, answers: terms.answers.clone() };
        let (steps, progress) = (state.steps(), Progress { tokens_max, ..Progress::default() });
        let mut open = Self { hop: *hop, link, progress, steps };
        let message = TrainerMessage::Open(OpenTraining {
            session: *session,
            model: terms.model,
            blocks: hop.blocks,
            adapter: AdapterSettings::from(state.adapter().config()),
            optimizer: state.settings().into(),
            seed: terms.seed,
            steps,
            tokens_max,
        });
        let stretch = state.stretch(hop.blocks);
        let count = stretch.end - stretch.start;
        let answer = open.link.ask(swarm, message).await?;
        if !matches!(answer, TrainingAnswer::Opened { value_count, .. } if value_count == count) {
            return Err(unexpected("an answer to OpenTraining"));
        }
        let kinds: &[_] = if state.adapter().lacks_magnitudes() {
            // It is asked for these first, and given all values then.
            &[]
        } else if state.steps() == 0 {
            // Nobody has stepped yet, so that the optimizer's state is zero.
            &[StateKind::Values]
        } else {
            &[StateKind::Values, StateKind::Means, StateKind::MeanSquares]
        };
        open.write(swarm, state, kinds).await?;
        Ok(open)
    }

    /// Gives it its part of some rows of a state.
    async fn write(
        &mut self,
        swarm: &Swarm,
        state: &TrainingState,
        kinds: &[StateKind],
    ) -> Result<(), Fault> {
        let stretch = state.stretch(self.hop.blocks);
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
        for answer in self.link.ask_all(swarm, messages).await? {
            if answer != TrainingAnswer::Written {
                return Err(unexpected("an answer to WriteState"));
            }
        }
        Ok(())
    }

    /// The norms of rows of its frozen matrices: as many as its part of the adapter has magnitudes.
    pub(super) async fn row_norms(&mut self, swarm: &Swarm, count: u64) -> Result<Vec<f32>, Fault> {
        let asked: Vec<_> = parts(&(0..count)).collect();
        let message = |part: &Range<u64>| TrainerMessage::RowNorms {
            offset: part.start,
            count: u32::try_from(part.end - part.start).expect("a part has at most 2^18 values"),
        };
        let messages = asked.iter().map(message).collect();
        let answers = self.link.ask_all(swarm, messages).await?;
        let mut found = Vec::new();
        for (part, answer) in asked.into_iter().zip(answers) {
            let TrainingAnswer::RowNorms { offset, norms } = answer else {
                return Err(unexpected("an answer to ReadRowNorms"));
            };
            if (offset, u64::from(norms.shape()[0])) != (part.start, part.end - part.start) {
                return Err(unexpected("other norms than were asked for"));
            }
            found.extend(norms.to_f32());
        }
        Ok(found)
    }

    /// Gives it its part of other values of the adapter, before the first step.
    pub(super) async fn write_values(
        &mut self,
        swarm: &Swarm,
        state: &TrainingState,
    ) -> Result<(), Fault> {
        self.write(swarm, state, &[StateKind::Values]).await
    }

    /// The gradients that it has gathered: a stretch of the row of all.
    pub(super) async fn gradients(
        &mut self,
        swarm: &Swarm,
        stretch: Range<u64>,
    ) -> Result<Vec<f32>, Fault> {
        let asked: Vec<_> = parts(&stretch).collect();
        let messages = asked.iter().map(|part| read(part, stretch.start)).collect();
        let answers = self.link.ask_all(swarm, messages).await?;
        let mut gradients = Vec::new();
        for (part, answer) in asked.into_iter().zip(answers) {
            gradients.extend(read_answer(&part, stretch.start, answer)?);
        }
        Ok(gradients)
    }

    /// Takes a step, after which its values must be those of `after`. One that has not gathered all
    /// gradients itself is given them, which are those of `before`.
    pub(super) async fn step(
        &mut self,
        swarm: &Swarm,
        step: OptimizerStep,
        (before, after): (&TrainingState, &TrainingState),
    ) -> Result<(), Fault> {
        if !self.progress.read {
            self.write(swarm, before, &[StateKind::Gradients]).await?;
            self.progress.read = true;
        }
        let digest = after.digest(self.hop.blocks);
        let stepped = TrainingAnswer::Stepped { number: step.number, digest };
        if self.link.ask(swarm, TrainerMessage::Step(step)).await? != stepped {
            // It has not learned what this side has: with other values it would go on from there.
            return Err(unexpected("a step that led elsewhere"));
        }
        self.steps = step.number;
        Ok(())
    }

    /// The next step begins with other microbatches.
    pub(super) fn begin_step(&mut self) {
        let tokens_max = self.progress.tokens_max;
        self.progress = Progress { tokens_max, ..Progress::default() };
    }

    /// Lets the server forget its part.
    pub(super) async fn close(mut self, swarm: &Swarm) {
        let farewell = self.link.ask(swarm, TrainerMessage::Close);
        let _gone = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
        self.link.sender.close().await;
    }

    pub(super) const fn blocks(&self) -> Span {
        self.hop.blocks
    }
}

/// A stretch of a row, in parts that a message holds.
pub(super) fn parts(stretch: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let (start, end) = (stretch.start, stretch.end);
    (start..end)
        .step_by(STATE_VALUES_MAX)
        .map(move |from| from..end.min(from + STATE_VALUES_MAX as u64))
}

/// Asks for a part of the gradients of a server whose values begin at `start` of the row of all.
pub(super) fn read(part: &Range<u64>, start: u64) -> TrainerMessage {
    let count = u32::try_from(part.end - part.start).expect("a part has at most 2^18 values");
    TrainerMessage::Read { kind: StateKind::Gradients, offset: part.start - start, count }
}

/// The values of an answer to [`read`].
pub(super) fn read_answer(
    part: &Range<u64>,
    start: u64,
    answer: TrainingAnswer,
) -> Result<Vec<f32>, Fault> {
    let TrainingAnswer::State(StateValues { kind: of, offset, values }) = answer else {
        return Err(unexpected("an answer to ReadState"));
    };
    let place = (part.start - start, part.end - part.start);
    if (of, offset, u64::from(values.shape()[0])) != (StateKind::Gradients, place.0, place.1) {
        return Err(unexpected("other values than were asked for"));
    }
    Ok(values.to_f32())
}
