//! The thread that computes trainings, while no pass of a session waits.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use umbel_coordinator::server::{ComputeFailure, ShardId};
use umbel_coordinator::training::Work;
use umbel_engine::train::{
    AdamW, AdapterConfig, Sequence, TrainError, TrainingPass, TrainingState,
};
use umbel_engine::{CudaError, HiddenStates, HostedSpan};
use umbel_protocol::training::{
    ForwardMicrobatch, OpenTraining, OptimizerStep, StateValues, TrainerMessage, TrainingAnswer,
};
use umbel_protocol::{ErrorCode, SessionId, Span, Tensor};
use umbel_shard::ModelConfig;

use crate::compute::floor::Floor;

/// Commands that wait: there is one piece of work at a time, and who has heard what came of it gives the next.
const COMMANDS_WAITING_MAX: usize = 1;

/// What came of a piece of work.
pub(super) type Worked = Result<Option<TrainingAnswer>, ComputeFailure>;

/// What the thread is to compute; the answer is the work's result.
pub(super) struct Command {
    pub(super) session: SessionId,
    pub(super) work: Work,
}

/// Blocks on which sessions open. Whoever gives them up may need their memory for others: the thread has them
/// while it computes, and no longer than until its next block, or the end of a step, where they are taken
/// back.
#[derive(Clone)]
pub(super) struct Lent {
    pub(super) shard: ShardId,
    blocks: HostedSpan,
    /// As long as it is here, they are in use.
    _user: watch::Receiver<()>,
}

impl Lent {
    pub(super) fn new(shard: ShardId, blocks: HostedSpan, users: &watch::Sender<()>) -> Self {
        Self { shard, blocks, _user: users.subscribe() }
    }
}

/// Starts the thread, which ends when the sender is dropped; `lost` is told when the GPU is.
pub(super) fn start(
    config: ModelConfig,
    lent: watch::Receiver<Option<Lent>>,
    (floor, lost): (Floor, Arc<Notify>),
    done: impl Fn(Worked) + Send + 'static,
) -> mpsc::Sender<Command> {
    let (send, mut commands) = mpsc::channel(COMMANDS_WAITING_MAX);
    let mut engine = Engine { config, lent, sessions: BTreeMap::new() };
    std::thread::Builder::new()
        .name("training".to_owned())
        .spawn(move || {
            while let Some(command) = commands.blocking_recv() {
                let worked = engine.obey(command, &floor);
                done(worked.map_err(|failure| failure.said(&lost)));
            }
        })
        .expect("the system can start a thread");
    send
}

/// What came of a piece of work, before the trainer hears of it.
type Done = Result<Option<TrainingAnswer>, Failure>;

/// Why a piece of work was not done.
enum Failure {
    /// What the trainer hears.
    Refused(ComputeFailure),
    /// The GPU had no memory, or is lost.
    Gpu(CudaError),
}

impl Failure {
    /// What the trainer hears, who goes on with another server where the GPU is at fault; the log hears
    /// more.
    fn said(self, lost: &Notify) -> ComputeFailure {
        let error = match self {
            Self::Refused(failure) => return failure,
            Self::Gpu(error) => error,
        };
        tracing::warn!(%error, "the GPU could not compute a training, which goes on elsewhere");
        if error.is_fatal() {
            lost.notify_one();
        }
        if error.is_out_of_memory() {
            let detail = "the GPU has no memory for a microbatch of this size";
            return refused(ErrorCode::KvFull, detail);
        }
        refused(ErrorCode::Internal, "the GPU could not compute the microbatch")
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        let code = match error {
            TrainError::Gpu(error) => return Self::Gpu(error),
            // Another server may have them, or a processor.
            TrainError::NotHosted { .. }
            | TrainError::HeadsOnGpu { .. }
            | TrainError::ExpertsOnGpu => ErrorCode::BlocksNotServed,
            TrainError::NotAdapted { .. }
            | TrainError::OtherModel { .. }
            | TrainError::Experts { .. }
            | TrainError::OtherWidth { .. }
            | TrainError::NoToken
            | TrainError::Shape { .. }
            | TrainError::Inputs { .. } => ErrorCode::WrongShape,
            TrainError::Over => ErrorCode::Draining,
        };
        failure(code, error)
    }
}

struct Engine {
    config: ModelConfig,
    /// `None` where they were taken back.
    lent: watch::Receiver<Option<Lent>>,
    sessions: BTreeMap<SessionId, Session>,
}

/// What is asked between parts of the work.
#[derive(Clone, Copy)]
struct Between<'a> {
    /// Lets others compute.
    pause: &'a dyn Fn(),
    /// Whether the blocks are wanted back.
    is_over: &'a dyn Fn() -> bool,
}

/// What a trainer has here.
struct Session {
    shard: ShardId,
    blocks: Span,
    state: TrainingState,
    /// Microbatches between their way forward and their way back.
    kept: BTreeMap<u64, Kept>,
}

struct Kept {
    sequences: Vec<Sequence>,
    /// What entered each block.
    inputs: Vec<HiddenStates>,
}

impl Engine {
    /// Does what it is told. A bug costs the session in whose work it shows, which ends with it, and no other.
    fn obey(&mut self, Command { session, work }: Command, floor: &Floor) -> Done {
        let work = || floor.patiently(|pause| self.work(session, work, pause));
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_said_already| {
            Err(failure(ErrorCode::Internal, "a bug of umbel: the training panicked"))
        })
    }

    fn work(&mut self, session: SessionId, work: Work, pause: &dyn Fn()) -> Done {
        match work {
            Work::Begin { shard, open } => {
                let begun = self.begin(shard, *open)?;
                self.sessions.insert(session, begun);
                Ok(None)
            }
            Work::Forget => {
                self.sessions.remove(&session);
                Ok(None)
            }
            Work::Reset => {
                let held = self.sessions.get_mut(&session).ok_or_else(not_held)?;
                held.kept.clear();
                held.state.reset();
                Ok(None)
            }
            Work::Message(message) => {
                let held = self.sessions.get_mut(&session).ok_or_else(not_held)?;
                let lent = self.lent.borrow_and_update().clone();
                let lent = lent.filter(|lent| lent.shard == held.shard).ok_or_else(|| {
                    failure(ErrorCode::Draining, "its blocks are not here any more")
                })?;
                let is_over = || self.lent.has_changed().unwrap_or(true);
                let between = Between { pause, is_over: &is_over };
                held.compute(&lent.blocks, message, between).map(Some)
            }
        }
    }

    fn begin(&self, shard: ShardId, open: OpenTraining) -> Result<Session, Failure> {
        let settings = (AdapterConfig::from(&open.adapter), AdamW::from(open.optimizer));
        let numbers = (open.seed, open.steps);
        let state = TrainingState::begin(settings, &self.config, open.blocks, numbers)
            .map_err(|error| failure(ErrorCode::NotAllowed, error))?;
        Ok(Session { shard, blocks: open.blocks, state, kept: BTreeMap::new() })
    }
}

impl Session {
    fn compute(
        &mut self,
        hosted: &HostedSpan,
        message: TrainerMessage,
        between: Between<'_>,
    ) -> Result<TrainingAnswer, Failure> {
        let pause = between.pause;
        match message {
            TrainerMessage::Write(StateValues { kind, offset, values }) => {
                let written = self.state.write(kind, offset, &values.to_f32());
                written.map_err(|error| failure(ErrorCode::NotAllowed, error))?;
                Ok(TrainingAnswer::Written)
            }
            TrainerMessage::Forward(forward) => self.forward(hosted, forward, between),
            TrainerMessage::Backward { microbatch, gradient, apart } => {
                self.backward(hosted, (microbatch, apart), &gradient, between)
            }
            TrainerMessage::Read { kind, offset, count } => {
                let end = offset.saturating_add(u64::from(count));
                let values = self.state.read(kind, offset..end).ok_or_else(|| {
                    failure(ErrorCode::WrongShape, "the session has not as many values")
                })?;
                let values = Tensor::from_f32(vec![count], &values).expect("as many as were asked");
                Ok(TrainingAnswer::State(StateValues { kind, offset, values }))
            }
            TrainerMessage::RowNorms { offset, count } => {
                let range = offset..offset.saturating_add(u64::from(count));
                let norms = hosted.first_magnitudes(self.state.adapter(), range, pause);
                let norms = norms?.ok_or_else(|| {
                    failure(ErrorCode::WrongShape, "the session has not as many magnitudes")
                })?;
                let norms = Tensor::from_f32(vec![count], &norms).expect("as many as were asked");
                Ok(TrainingAnswer::RowNorms { offset, norms })
            }
            TrainerMessage::Step(OptimizerStep { number, learning_rate, factor }) => {
                if self.state.steps().checked_add(1) != Some(number) {
                    return Err(failure(ErrorCode::WrongPosition, "not the next step"));
                }
                let stepped = self.state.step_pausing((learning_rate, factor), pause);
                stepped.map_err(|error| failure(ErrorCode::NotAllowed, error))?;
                Ok(TrainingAnswer::Stepped {
                    number,
                    digest: self.state.digest_pausing(self.blocks, pause),
                })
            }
            TrainerMessage::Open(_) | TrainerMessage::Close => {
                Err(failure(ErrorCode::Internal, "sessions are opened and closed by the machine"))
            }
        }
    }

    fn forward(
        &mut self,
        hosted: &HostedSpan,
        forward: ForwardMicrobatch,
        Between { pause, is_over }: Between<'_>,
    ) -> Result<TrainingAnswer, Failure> {
        let ForwardMicrobatch { microbatch, sequences, evaluate, hidden } = forward;
        let sequence = |of: &umbel_protocol::training::TrainingSequence| Sequence {
            tokens: of.tokens as usize,
            dropout_seed: of.dropout_seed,
        };
        let sequences: Vec<_> = sequences.iter().map(sequence).collect();
        let input = rows(hosted, &hidden)?;
        let pass = TrainingPass::new(hosted, self.blocks, Some(self.state.adapter()), &sequences);
        let pass = pass?.pausing(pause).until(is_over);
        let pass = if evaluate { pass.without_dropout() } else { pass };
        let forward = pass.forward(&input)?;
        let hidden = forward.output.to_wire();
        if !evaluate {
            self.kept.insert(microbatch, Kept { sequences, inputs: forward.inputs });
        }
        Ok(TrainingAnswer::Forwarded { microbatch, hidden })
    }

    fn backward(
        &mut self,
        hosted: &HostedSpan,
        (microbatch, apart): (u64, bool),
        gradient: &Tensor,
        Between { pause, is_over }: Between<'_>,
    ) -> Result<TrainingAnswer, Failure> {
        let kept = self.kept.remove(&microbatch);
        let Kept { sequences, inputs } = kept.ok_or_else(|| {
            failure(ErrorCode::WrongPosition, "the microbatch has not gone forward")
        })?;
        let gradient = rows(hosted, gradient)?;
        let pass = TrainingPass::new(hosted, self.blocks, Some(self.state.adapter()), &sequences);
        let back = pass?.pausing(pause).until(is_over).backward(&inputs, &gradient)?;
        if apart {
            self.state.reset();
        }
        self.state.add(&back.parameters);
        Ok(TrainingAnswer::Backwarded { microbatch, gradient: back.input.to_wire() })
    }
}

fn rows(hosted: &HostedSpan, tensor: &Tensor) -> Result<HiddenStates, Failure> {
    HiddenStates::from_wire(tensor, hosted.hidden_size())
        .map_err(|error| failure(ErrorCode::WrongShape, error))
}

fn not_held() -> Failure {
    failure(ErrorCode::Internal, "the session is not held")
}

fn failure(code: ErrorCode, detail: impl std::fmt::Display) -> Failure {
    Failure::Refused(refused(code, detail))
}

fn refused(code: ErrorCode, detail: impl std::fmt::Display) -> ComputeFailure {
    ComputeFailure { code, detail: detail.to_string() }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use umbel_protocol::ModelId;
    use umbel_protocol::error::Retry;
    use umbel_protocol::training::{
        AdamWSettings, AdapterSettings, StateKind, TargetModule, TrainingSequence,
    };

    use super::*;
    use crate::compute::tests::llama;

    const SESSION: SessionId = SessionId::new(1);

    /// The answer to what every session may be asked.
    fn ask(engine: &mut Engine) -> Result<TrainingAnswer, ErrorCode> {
        let message = TrainerMessage::Write(StateValues {
            kind: StateKind::Values,
            offset: 0,
            values: Tensor::from_f32(vec![1], &[0.0]).unwrap(),
        });
        told(engine, Work::Message(message)).map(|answer| answer.expect("it has an answer"))
    }

    fn told(engine: &mut Engine, work: Work) -> Result<Option<TrainingAnswer>, ErrorCode> {
        code_of(engine.obey(Command { session: SESSION, work }, &Floor::default()))
    }

    fn code_of(done: Done) -> Result<Option<TrainingAnswer>, ErrorCode> {
        match done {
            Ok(answer) => Ok(answer),
            Err(Failure::Refused(ComputeFailure { code, .. })) => Err(code),
            Err(Failure::Gpu(_)) => panic!("no GPU was asked"),
        }
    }

    /// An engine with four blocks, and who lends them.
    struct World {
        engine: Engine,
        blocks: HostedSpan,
        lend: watch::Sender<Option<Lent>>,
        users: watch::Sender<()>,
    }

    impl World {
        fn new() -> Self {
            let (model, weights) = llama();
            let blocks = HostedSpan::load(model.config(), &weights, Span::new(0, 4).unwrap());
            let blocks = blocks.unwrap();
            let users = watch::Sender::new(());
            let lent = Lent::new(ShardId::default(), blocks.clone(), &users);
            let (lend, lent) = watch::channel(Some(lent));
            let (config, sessions) = (model.config().clone(), BTreeMap::new());
            Self { engine: Engine { config, lent, sessions }, blocks, lend, users }
        }

        fn serve(&self, shard: ShardId) {
            self.lend.send_replace(Some(Lent::new(shard, self.blocks.clone(), &self.users)));
        }
    }

    fn begin(shard: ShardId) -> Work {
        let open = OpenTraining {
            session: SESSION,
            model: ModelId::from_bytes([3; 32]),
            blocks: Span::new(0, 4).unwrap(),
            adapter: AdapterSettings {
                rank: 2,
                alpha: 4.0,
                rank_stabilized: false,
                dropout: 0.0,
                target_modules: vec![TargetModule::Query],
                block_prompt_tokens: 0,
                weight_decomposed: false,
            },
            optimizer: AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 },
            seed: 1,
            steps: 0,
            tokens_max: 10,
        };
        Work::Begin { shard, open: Box::new(open) }
    }

    fn forward(hosted: &HostedSpan) -> Work {
        let (tokens, width) = (2, u32::try_from(hosted.hidden_size()).unwrap());
        let values = vec![0.5; (tokens * width) as usize];
        Work::Message(TrainerMessage::Forward(ForwardMicrobatch {
            microbatch: 1,
            sequences: vec![TrainingSequence { tokens, dropout_seed: 0 }],
            evaluate: false,
            hidden: Tensor::from_f32(vec![tokens, width], &values).unwrap(),
        }))
    }

    #[test]
    fn blocks_that_are_taken_back_are_held_no_more_until_they_are_served_again() {
        let mut world = World::new();
        assert_eq!(told(&mut world.engine, begin(ShardId::default())), Ok(None));
        assert_eq!(ask(&mut world.engine), Ok(TrainingAnswer::Written));

        world.lend.send_replace(None);
        assert!(world.users.is_closed(), "nothing here holds their weights");
        assert_eq!(ask(&mut world.engine), Err(ErrorCode::Draining));

        let again = ShardId(1);
        world.serve(again);
        assert_eq!(ask(&mut world.engine), Err(ErrorCode::Draining), "its session was on others");
        assert_eq!(told(&mut world.engine, begin(again)), Ok(None));
        assert_eq!(ask(&mut world.engine), Ok(TrainingAnswer::Written));
    }

    #[test]
    fn blocks_that_are_taken_back_while_they_are_computed_are_let_go_of_behind_the_next_one() {
        let World { mut engine, blocks, lend, users } = World::new();
        assert_eq!(told(&mut engine, begin(ShardId::default())), Ok(None));
        let pauses = Cell::new(0);
        let count = || pauses.set(pauses.get() + 1);
        let done = engine.work(SESSION, forward(&blocks), &count);
        assert!(matches!(code_of(done), Ok(Some(TrainingAnswer::Forwarded { .. }))));
        let whole = pauses.take();
        let pause = || {
            count();
            lend.send_replace(None);
            assert!(!users.is_closed(), "they are computed");
        };
        let done = engine.work(SESSION, forward(&blocks), &pause);
        assert_eq!(code_of(done), Err(ErrorCode::Draining));
        assert!(users.is_closed());
        assert_eq!(4 * pauses.get(), whole, "it was in the first of four blocks");
    }

    #[test]
    fn a_panic_ends_the_session_in_whose_work_it_is_and_no_other() {
        let World { mut engine, lend: _lend, .. } = World::new();
        let floor = Floor::default();
        let tell = |engine: &mut Engine, session, work| {
            let session = SessionId::new(session);
            code_of(engine.obey(Command { session, work }, &floor))
        };
        for session in [1, 2] {
            assert_eq!(tell(&mut engine, session, begin(ShardId::default())), Ok(None));
        }
        // What no trainer can bring about: a block that its state lacks.
        let broken = engine.sessions.get_mut(&SESSION).unwrap();
        broken.blocks = Span::new(0, 5).unwrap();
        let step = || {
            let step = OptimizerStep { number: 1, learning_rate: 0.1, factor: 1.0 };
            Work::Message(TrainerMessage::Step(step))
        };
        assert_eq!(tell(&mut engine, 1, step()), Err(ErrorCode::Internal));
        assert_eq!(tell(&mut engine, 1, Work::Forget), Ok(None));
        let stepped = tell(&mut engine, 2, step());
        assert!(matches!(stepped, Ok(Some(TrainingAnswer::Stepped { number: 1, .. }))));
    }

    /// A trainer is told to look elsewhere where another server may do what this one cannot, and to give up
    /// where its own words are at fault.
    #[test]
    fn what_this_server_lacks_sends_a_trainer_elsewhere() {
        let retry = |error: TrainError| match Failure::from(error) {
            Failure::Refused(ComputeFailure { code, .. }) => code.retry(),
            Failure::Gpu(_) => panic!("no GPU was asked"),
        };
        let (blocks, hosted) = (Span::new(0, 2).unwrap(), Span::new(1, 2).unwrap());
        assert_eq!(retry(TrainError::HeadsOnGpu { found: 512 }), Retry::Elsewhere);
        assert_eq!(retry(TrainError::ExpertsOnGpu), Retry::Elsewhere);
        assert_eq!(retry(TrainError::NotHosted { blocks, hosted }), Retry::Elsewhere);
        assert_eq!(retry(TrainError::NoToken), Retry::Never);
        assert_eq!(retry(TrainError::OtherWidth { expected: 64, found: 32 }), Retry::Never);
    }
}
