//! Trainings over swarms of real processes, whose servers are killed at random moments of a step.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::watch;
use umbel_client::train::data::Example;
use umbel_client::train::{
    Blocks, LocalBlocks, RemoteBlocks, StepReport, Trainer, TrainerSettings,
};
use umbel_client::{ClientModel, Device, Swarm, SwarmConfig};
use umbel_coordinator::random::Random;
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, TargetModule, TrainingState};
use umbel_protocol::Span;

use crate::swarm::{Server, checkpoint, serve};
use crate::workload::client_model;

/// The longest microbatch of a lesson.
pub const TOKENS_MAX: u32 = 64;

/// Steps of a lesson.
pub const STEPS: usize = 3;

const LEARNING_RATE: f64 = 0.01;

/// How long a trainer waits for a server.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest time between an answer and the kill: some times as long as a message takes in the model
/// of the tests, so that servers also die while they compute.
const DELAY_MICROS_MAX: usize = 3_000;

/// Halves of the model, each of which two servers serve.
const HALVES: [&str; 2] = ["0..2", "2..4"];

/// An adapter, and a few short texts to learn.
pub struct Lesson {
    /// Its model.
    pub model: Arc<ClientModel>,
    /// The adapter before the first step.
    pub state: TrainingState,
    /// How the trainer steps.
    pub settings: TrainerSettings,
    /// The texts.
    pub texts: Vec<Example>,
}

impl Lesson {
    /// One with dropout on all matrices, and several texts of which some go together.
    ///
    /// # Panics
    /// If the fixtures are not what they were.
    #[must_use]
    pub fn new() -> Self {
        let model = client_model(&checkpoint("llama")).expect("the fixtures have the model");
        let config = AdapterConfig {
            rank: 4,
            alpha: 8.0,
            rank_stabilized: true,
            dropout: 0.1,
            target_modules: TargetModule::ALL.to_vec(),
        };
        let all = Span::new(0, model.config().block_count).expect("it has blocks");
        let adapter = Adapter::begin(config, model.config(), all, 7).expect("it fits");
        let state = TrainingState::new(adapter, AdamW::default());
        let settings = TrainerSettings { clip: 0.5, seed: 11, microbatch_tokens: 24 };
        let text = |number: u32| {
            let ids = (0..9 + number % 5).map(|place| (number * 31 + place * 17) % 200);
            Example::of_text(ids.collect())
        };
        Self { model, state, settings, texts: (0..4).map(text).collect() }
    }

    /// A trainer in this process.
    ///
    /// # Panics
    /// If the model cannot be loaded.
    #[must_use]
    pub fn local(&self) -> Trainer {
        local(&self.model, self.state.clone(), self.settings)
    }

    /// A trainer over a swarm, and how many answers it has had.
    ///
    /// # Errors
    /// Where no route opens.
    pub async fn remote(
        &self,
        swarm: &Arc<Swarm>,
    ) -> anyhow::Result<(Trainer, watch::Receiver<u64>)> {
        remote(swarm, &self.model, self.state.clone(), self.settings).await
    }

    /// Takes all steps.
    ///
    /// # Errors
    /// Where one fails.
    pub async fn steps(&self, trainer: &mut Trainer) -> anyhow::Result<Vec<StepReport>> {
        let mut reports = Vec::new();
        for _ in 0..STEPS {
            reports.push(trainer.step(&self.batch(), LEARNING_RATE).await?);
        }
        Ok(reports)
    }

    /// All texts.
    #[must_use]
    pub fn batch(&self) -> Vec<&Example> {
        self.texts.iter().collect()
    }
}

impl Default for Lesson {
    fn default() -> Self {
        Self::new()
    }
}

/// A trainer in this process.
///
/// # Panics
/// If the model cannot be loaded.
#[must_use]
pub fn local(model: &Arc<ClientModel>, state: TrainingState, settings: TrainerSettings) -> Trainer {
    let blocks = LocalBlocks::load(model.shard(), Device::shared()).expect("the model is here");
    Trainer::new(Arc::clone(model), Blocks::Local(blocks), state, settings)
}

/// A trainer over a swarm, and how many answers it has had.
///
/// # Errors
/// Where no route opens.
pub async fn remote(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    state: TrainingState,
    settings: TrainerSettings,
) -> anyhow::Result<(Trainer, watch::Receiver<u64>)> {
    let terms = (settings.seed, TOKENS_MAX);
    let blocks = RemoteBlocks::open(Arc::clone(swarm), model, &state, terms).await?;
    let answers = blocks.answers();
    let blocks = Blocks::Remote(Box::new(blocks));
    Ok((Trainer::new(Arc::clone(model), blocks, state, settings), answers))
}

/// Joins the swarm of a server.
///
/// # Errors
/// Where it does not answer.
pub async fn join(server: &Server) -> anyhow::Result<Arc<Swarm>> {
    let join = vec![server.address().parse()?];
    let config = SwarmConfig { join, patience: PATIENCE, ..SwarmConfig::default() };
    Ok(Arc::new(Swarm::join(config).await?))
}

/// Starts a server of some blocks of the model of lessons.
#[must_use]
pub fn start(blocks: &str, first: Option<&Server>) -> Server {
    let folder = checkpoint("llama");
    let mut arguments = vec![folder.as_str(), "--blocks", blocks];
    if let Some(first) = first {
        arguments.extend(["--join", first.address()]);
    }
    let mut server = serve(&arguments);
    server.set_tag(blocks);
    server
}

/// Two servers for each half of the model, one of which is killed in each run.
pub struct Kills {
    lesson: Lesson,
    servers: Vec<Server>,
    expected: Expected,
    /// Answers of a run in which nobody is killed, behind those to the opening.
    answers: usize,
}

/// What one process comes to.
struct Expected {
    steps: Vec<StepReport>,
    state: TrainingState,
    /// The loss behind the last step.
    after: StepReport,
}

/// When a server was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// Its place on the route.
    pub place: usize,
    /// How many answers there had been since the route was open.
    pub answers: usize,
    /// How long after the last of them.
    pub delay: Duration,
}

impl Kills {
    /// Starts the servers, and learns what one process and an undisturbed swarm do.
    ///
    /// # Errors
    /// Where one of them fails.
    pub async fn start() -> anyhow::Result<Self> {
        let lesson = Lesson::new();
        let mut alone = lesson.local();
        let steps = lesson.steps(&mut alone).await?;
        ensure!(steps[0].loss > steps[STEPS - 1].loss, "it learns: {steps:?}");
        let state = alone.state().clone();
        let after = alone.evaluate(&lesson.batch()).await?;
        // A step more than was asked for would be seen in this loss.
        alone.step(&lesson.batch(), LEARNING_RATE).await?;
        ensure!(alone.evaluate(&lesson.batch()).await? != after, "a step changes the loss");

        let mut servers = vec![start(HALVES[0], None)];
        for half in [HALVES[1], HALVES[0], HALVES[1]] {
            servers.push(start(half, servers.first()));
        }
        let expected = Expected { steps, state, after };
        let mut kills = Self { lesson, servers, expected, answers: 0 };
        let (mut trainer, answers) = kills.open().await?;
        let before = *answers.borrow();
        kills.lesson.steps(&mut trainer).await?;
        kills.answers = usize::try_from(*answers.borrow() - before)?;
        trainer.close().await;
        Ok(kills)
    }

    async fn open(&self) -> anyhow::Result<(Trainer, watch::Receiver<u64>)> {
        let first = self.servers.first().context("there are servers")?;
        self.lesson.remote(&join(first).await?).await
    }

    /// Learns while a server of the route is killed at a random moment, and compares every loss, the
    /// adapter and the loss behind the last step with those of one process, bit for bit.
    ///
    /// # Errors
    /// Where something differs, or a step failed. A server that takes a step twice has other values than
    /// the trainer, which then replaces it as well: so there has to be one replacement and no more.
    pub async fn run(&mut self, seed: u64) -> anyhow::Result<Kill> {
        let mut random = Random::new(seed);
        let (mut trainer, mut answers) = self.open().await?;
        let route = trainer.route();
        let place = random.below(route.len());
        let kill = Kill {
            place,
            answers: random.below(self.answers),
            delay: Duration::from_micros(random.below(DELAY_MICROS_MAX) as u64),
        };
        let victim = route[place].peer.context("a server")?.to_string();
        let doomed = self.servers.iter().position(|server| server.address().ends_with(&victim));
        let doomed = self.servers.remove(doomed.context("it is one of them")?);
        let half = doomed.tag().to_owned();
        let goal = *answers.borrow() + kill.answers as u64;
        let killer = tokio::spawn(async move {
            let reached = answers.wait_for(|count| *count >= goal).await.is_ok();
            tokio::time::sleep(kill.delay).await;
            doomed.assert_no_errors();
            doomed.kill();
            reached
        });
        let steps = self.lesson.steps(&mut trainer).await;
        ensure!(killer.await?, "the moment came");
        let steps = steps.with_context(|| format!("seed {seed}: {kill:?}"))?;
        let after = trainer.evaluate(&self.lesson.batch()).await?;
        let Expected { steps: expected, state, after: expected_after } = &self.expected;
        ensure!(steps == *expected, "seed {seed}: {kill:?}: losses {steps:?}, not {expected:?}");
        ensure!(trainer.state() == state, "seed {seed}: {kill:?}: another adapter");
        ensure!(after == *expected_after, "seed {seed}: {kill:?}: a loss of {after:?} behind it");
        let replaced = trainer.replaced();
        ensure!(replaced == 1, "seed {seed}: {kill:?}: {replaced} servers were replaced");
        trainer.close().await;
        self.servers.push(start(&half, self.servers.first()));
        Ok(kill)
    }

    /// Fails the test where a server has logged an error.
    pub fn assert_no_errors(&self) {
        self.servers.iter().for_each(|server| server.assert_no_errors());
    }
}
