//! Trainings over swarms of real processes, whose servers are killed at random moments of a step.

pub mod peft;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::sync::watch;
use umbel_client::train::data::Example;
use umbel_client::train::prompt;
use umbel_client::train::{
    Blocks, LocalBlocks, RemoteBlocks, RemoteSettings, StepReport, Trainer, TrainerSettings,
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

/// How long it takes at most until a server that was started is known to the others.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The longest time between an answer and the kill: some times as long as a message takes in the model
/// of the tests, so that servers also die while they compute.
const DELAY_MICROS_MAX: usize = 3_000;

/// Halves of the model. There are servers for two routes, and one that takes the place of another in
/// the second half; for one in the first half a training along two routes finds nobody.
const HALVES: [&str; 5] = ["0..2", "2..4", "0..2", "2..4", "2..4"];

/// Tokens of the prompt of a lesson.
pub const PROMPT_TOKENS: usize = 5;

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
            ..AdapterConfig::default()
        };
        let all = Span::new(0, model.config().block_count).expect("it has blocks");
        let adapter = Adapter::begin(config, model.config(), all, 7).expect("it fits");
        Self::of(model, adapter)
    }

    /// The same with magnitudes (DoRA), which begin as the frozen weights say.
    ///
    /// # Panics
    /// If the fixtures are not what they were.
    #[must_use]
    pub fn decomposed() -> Self {
        let lesson = Self::new();
        let adapter = lesson.state.adapter();
        let config = AdapterConfig { weight_decomposed: true, ..adapter.config().clone() };
        let adapter = Adapter::begin(config, lesson.model.config(), adapter.blocks(), 7);
        Self::of(lesson.model, adapter.expect("it fits"))
    }

    /// One of a prompt, and of others in the blocks where it is deep.
    ///
    /// # Panics
    /// If the fixtures are not what they were.
    #[must_use]
    pub fn of_prompt(deep: bool) -> Self {
        let model = client_model(&checkpoint("llama")).expect("the fixtures have the model");
        let adapter = prompt::begin(&model, (PROMPT_TOKENS, deep), &[], 7).expect("it fits");
        Self::of(model, adapter)
    }

    fn of(model: Arc<ClientModel>, adapter: Adapter) -> Self {
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

    /// Learns over two servers as often as `moments` has answers of the trainer to count from its beginning,
    /// and kills the second server behind another one each time: losses and adapter are those of one
    /// process.
    ///
    /// # Errors
    /// Where something differs, or a step failed.
    pub async fn with_a_kill_behind_each_answer(&self, moments: Range<u64>) -> anyhow::Result<()> {
        let mut alone = self.local();
        let expected = self.steps(&mut alone).await?;
        ensure!(expected[0].loss > expected[STEPS - 1].loss, "it learns: {expected:?}");
        let first = start("0..2", None);
        let mut servers = vec![start("2..4", Some(&first)), start("2..4", Some(&first))];
        for moment in moments {
            let swarm = join(&first).await?;
            let (mut trainer, mut answers) = self.remote(&swarm).await?;
            let victim = trainer.routes()[0][1].peer.context("a server")?.to_string();
            let doomed = servers.iter().position(|server| server.address().ends_with(&victim));
            let doomed = servers.remove(doomed.context("it is one of them")?);
            let goal = *answers.borrow() + moment;
            let kill = tokio::spawn(async move {
                let reached = answers.wait_for(|count| *count >= goal).await.is_ok();
                doomed.kill();
                reached
            });
            let learned = self.steps(&mut trainer).await?;
            ensure!(kill.await?, "the moment came");
            ensure!(learned == expected, "killed at {moment}: {learned:?}, not {expected:?}");
            ensure!(trainer.state() == alone.state(), "killed at {moment}: another adapter");
            ensure!(trainer.replaced() == 1, "killed at {moment}: {}", trainer.replaced());
            trainer.close().await;
            servers.push(start("2..4", Some(&first)));
        }
        first.assert_no_errors();
        Ok(())
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
    let remote = RemoteSettings { tokens_max: TOKENS_MAX, ..RemoteSettings::default() };
    remote_as(remote, swarm, model, state, settings).await
}

/// As [`remote`], along as many routes and with as much under way as `remote` says.
///
/// # Errors
/// Where no route opens.
pub async fn remote_as(
    remote: RemoteSettings,
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    state: TrainingState,
    settings: TrainerSettings,
) -> anyhow::Result<(Trainer, watch::Receiver<u64>)> {
    let remote = RemoteSettings { seed: settings.seed, ..remote };
    let blocks = RemoteBlocks::open(Arc::clone(swarm), model, &state, remote).await?;
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

/// Joins the swarm of the first of some servers, and waits until all of them are known there.
///
/// # Errors
/// Where one stays unknown, or the first does not answer.
pub async fn join_all(servers: &[&Server]) -> anyhow::Result<Arc<Swarm>> {
    let swarm = join(servers.first().context("there are servers")?).await?;
    let deadline = Instant::now() + KNOWN_TIMEOUT;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        let known = swarm.announcements(None).await;
        let is_known = |server: &&Server| {
            known.iter().any(|known| server.address().ends_with(&known.peer.to_string()))
        };
        if servers.iter().all(is_known) {
            return Ok(swarm);
        }
        ensure!(Instant::now() < deadline, "only {} servers are known", known.len());
        looks.tick().await;
    }
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

/// Some servers for each half of the model, one of which is killed in each run.
pub struct Kills {
    lesson: Lesson,
    servers: Vec<Server>,
    expected: Expected,
    /// Answers of a run along one route, and along two, in which nobody is killed; without those to the
    /// opening.
    answers: [usize; 2],
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
    /// How many routes there were.
    pub routes: usize,
    /// On which of them it was.
    pub route: usize,
    /// Its place there.
    pub place: usize,
    /// How many answers there had been since the routes were open.
    pub answers: usize,
    /// How long after the last of them.
    pub delay: Duration,
}

impl Kills {
    /// Starts the servers, and learns what one process and an undisturbed swarm do.
    ///
    /// # Errors
    /// Where one of them fails.
    pub async fn start(lesson: Lesson) -> anyhow::Result<Self> {
        let mut alone = lesson.local();
        let steps = lesson.steps(&mut alone).await?;
        ensure!(steps[0].loss > steps[STEPS - 1].loss, "it learns: {steps:?}");
        let state = alone.state().clone();
        let after = alone.evaluate(&lesson.batch()).await?;
        // A step more than was asked for would be seen in this loss.
        alone.step(&lesson.batch(), LEARNING_RATE).await?;
        ensure!(alone.evaluate(&lesson.batch()).await? != after, "a step changes the loss");

        let mut servers = vec![start(HALVES[0], None)];
        for half in &HALVES[1..] {
            servers.push(start(half, servers.first()));
        }
        let expected = Expected { steps, state, after };
        let mut kills = Self { lesson, servers, expected, answers: [0; 2] };
        for routes in 1..=2 {
            let (mut trainer, answers) = kills.open(routes).await?;
            let before = *answers.borrow();
            kills.lesson.steps(&mut trainer).await?;
            kills.answers[routes - 1] = usize::try_from(*answers.borrow() - before)?;
            trainer.close().await;
        }
        Ok(kills)
    }

    async fn open(&self, routes: usize) -> anyhow::Result<(Trainer, watch::Receiver<u64>)> {
        let swarm = join_all(&self.servers.iter().collect::<Vec<_>>()).await?;
        let remote = RemoteSettings { tokens_max: TOKENS_MAX, routes, ..RemoteSettings::default() };
        let Lesson { model, state, settings, .. } = &self.lesson;
        let opened = remote_as(remote, &swarm, model, state.clone(), *settings).await?;
        ensure!(opened.0.routes().len() == routes, "{routes} routes: {:?}", opened.0.routes());
        Ok(opened)
    }

    /// Learns while a server is killed at a random moment, along two routes where the seed is odd, and
    /// compares every loss, the
    /// adapter and the loss behind the last step with those of one process, bit for bit.
    ///
    /// # Errors
    /// Where something differs, or a step failed. A server that takes a step twice has other values than
    /// the trainer, which then replaces it as well: so there has to be one replacement and no more.
    pub async fn run(&mut self, seed: u64) -> anyhow::Result<Kill> {
        let mut random = Random::new(seed);
        let routes = if seed.is_multiple_of(2) { 1 } else { 2 };
        let (mut trainer, mut answers) = self.open(routes).await?;
        let opened = trainer.routes();
        let route = random.below(routes);
        let kill = Kill {
            routes,
            route,
            place: random.below(opened[route].len()),
            answers: random.below(self.answers[routes - 1]),
            delay: Duration::from_micros(random.below(DELAY_MICROS_MAX) as u64),
        };
        let victim = opened[route][kill.place].peer.context("a server")?.to_string();
        let doomed = self.servers.iter().position(|server| server.address().ends_with(&victim));
        let doomed = self.servers.remove(doomed.context("it is one of them")?);
        let half = doomed.tag().to_owned();
        let goal = *answers.borrow() + kill.answers as u64;
        let killer = tokio::spawn(async move {
            let reached = answers.wait_for(|count| *count >= goal).await.is_ok();
            // The moment is drawn, so there is no event to wait for.
            let mut moments = tokio::time::interval(kill.delay.max(Duration::from_micros(1)));
            moments.tick().await;
            moments.tick().await;
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
        let left = if kill.place == 0 { 1 } else { routes };
        ensure!(trainer.routes().len() == left, "seed {seed}: {kill:?}: {:?}", trainer.routes());
        trainer.close().await;
        self.servers.push(start(&half, self.servers.first()));
        Ok(kill)
    }

    /// Fails the test where a server has logged an error.
    pub fn assert_no_errors(&self) {
        self.servers.iter().for_each(|server| server.assert_no_errors());
    }
}
