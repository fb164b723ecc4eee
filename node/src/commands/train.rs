//! `umbel train`

mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use umbel_client::train::checkpoint::Checkpoint;
use umbel_client::train::data::{DataSet, Example, TextReader};
use umbel_client::train::run::{Run, RunSettings, RunStep};
use umbel_client::train::schedule::Schedule;
use umbel_client::train::{Blocks, LocalBlocks, RemoteBlocks, Trainer, TrainerSettings};
use umbel_client::{ClientModel, Swarm, SwarmConfig};
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, TrainingState};
use umbel_protocol::Span;
use umbel_shard::{ModelSource, PartsNeeded};

use super::session::open_ends;
use crate::args::join::{Way, way};
use crate::args::train::TrainArguments;
use crate::config::Config;
use report::Reporter;

/// What there is to go on with.
const CHECKPOINT_FILE: &str = "checkpoint.safetensors";

pub(super) async fn run(arguments: TrainArguments, config: &Config) -> anyhow::Result<()> {
    if arguments.join.is_empty() && !arguments.local {
        bail!("where? --join ADDR for a swarm, --local for none");
    }
    let source = ModelSource::parse(arguments.model.name())?;
    // The swarm is joined first: a wrong address is found before anything is downloaded.
    let swarm = if arguments.local { None } else { Some(join(&arguments).await?) };
    let parts = if arguments.local { PartsNeeded::everything() } else { PartsNeeded::ends() };
    let model = open_ends(source, config, parts).await?;
    let texts = read_texts(&arguments, &model)?;
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("{} cannot be made", arguments.out.display()))?;
    let begun = begin(&arguments, &model, &texts)?;
    let blocks = blocks(&arguments, config, &model, swarm.as_ref(), &begun.state).await?;
    let learning = &arguments.learning;
    let settings = TrainerSettings {
        clip: learning.clip,
        seed: learning.seed,
        microbatch_tokens: learning.microbatch_tokens as usize,
    };
    let first_step = begun.state.steps();
    let trainer = Trainer::new(Arc::clone(&model), blocks, begun.state, settings)
        .after_sequences(begun.sequences);
    let run_settings = run_settings(&arguments);
    let schedule = Schedule {
        learning_rate: learning.learning_rate,
        warmup_steps: learning.warmup_steps,
        steps: run_settings.steps(texts.0.len()),
        decay: learning.schedule,
    };
    let reporter = Reporter::new(&arguments.out, first_step, schedule.steps)?;
    let run = Run::new(trainer, texts, run_settings, schedule);
    let saving = Saving { path: arguments.out.join(CHECKPOINT_FILE), other: begun.other };
    let mut training = Training { run, saving, reporter };
    let result = training.go_on(&arguments).await;
    // Whatever ended it: the last step was taken as a whole, and can be gone on from.
    let stepped = training.run.trainer().state().steps() > first_step;
    let saved = if stepped { training.checkpoint().write(&training.saving.path) } else { Ok(()) };
    result?;
    saved?;
    let adapter = training.run.trainer().adapter();
    adapter.to_peft().write(&arguments.out).context("the adapter was not written")?;
    training.reporter.finish(&arguments.out);
    training.run.close().await;
    if let Some(swarm) = swarm.and_then(Arc::into_inner) {
        swarm.leave().await;
    }
    Ok(())
}

/// A training under way.
struct Training {
    run: Run,
    saving: Saving,
    reporter: Reporter,
}

/// Where checkpoints go, and what is in them besides the state.
struct Saving {
    path: PathBuf,
    other: Value,
}

impl Training {
    async fn go_on(&mut self, arguments: &TrainArguments) -> anyhow::Result<()> {
        let learning = &arguments.learning;
        if self.run.trainer().state().steps() == 0 {
            self.validate(0).await?;
        }
        while let Some(step) = self.run.next().await? {
            let RunStep { step: number, of, .. } = step;
            self.reporter.stepped(step, self.run.trainer().replaced())?;
            let is_wanted =
                learning.validate_every.is_some_and(|every| number.is_multiple_of(every));
            if is_wanted || self.run.ends_epoch(number) || number == of {
                self.validate(number).await?;
            }
            if number.is_multiple_of(learning.checkpoint_every) {
                // A full disk may have room again behind some more steps.
                if let Err(error) = self.checkpoint().write(&self.saving.path) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "going on without a checkpoint of this step");
                }
            }
        }
        Ok(())
    }

    async fn validate(&mut self, step: u64) -> anyhow::Result<()> {
        if let Some(report) = self.run.validate().await? {
            self.reporter.validated(step, report)?;
        }
        Ok(())
    }

    fn checkpoint(&self) -> Checkpoint {
        let trainer = self.run.trainer();
        Checkpoint {
            state: trainer.state().clone(),
            model: self.saving.other["model"].as_str().unwrap_or_default().to_owned(),
            sequences: trainer.sequences(),
            other: self.saving.other.clone(),
        }
    }
}

async fn join(arguments: &TrainArguments) -> anyhow::Result<Arc<Swarm>> {
    let Way { addresses, swarm_key } = way(&arguments.join, None)?;
    let config = SwarmConfig {
        join: addresses,
        swarm_key,
        mdns: false,
        patience: Duration::from_secs(arguments.patience.into()),
    };
    Ok(Arc::new(Swarm::join(config).await?))
}

/// The texts to learn, and those for validation.
fn read_texts(
    arguments: &TrainArguments,
    model: &ClientModel,
) -> anyhow::Result<(Vec<Example>, Vec<Example>)> {
    let learning = &arguments.learning;
    let longest = (learning.max_tokens as usize).min(model.config().context_tokens);
    let data = DataSet::read(&arguments.data, &TextReader::of(model), longest)?;
    if data.cut > 0 {
        tracing::warn!(texts = data.cut, tokens = longest, "texts were cut");
    }
    if data.left_out > 0 {
        tracing::warn!(texts = data.left_out, "texts have nothing left to learn and were left out");
    }
    Ok(data.split(learning.validation, learning.seed))
}

/// Where a training begins.
struct Begun {
    state: TrainingState,
    sequences: u64,
    /// What it is of, beside the state: a training that goes on must be of the same.
    other: Value,
}

fn begin(
    arguments: &TrainArguments,
    model: &ClientModel,
    texts: &(Vec<Example>, Vec<Example>),
) -> anyhow::Result<Begun> {
    let path = arguments.out.join(CHECKPOINT_FILE);
    let other = identity(arguments, model, texts);
    if arguments.resume {
        let checkpoint = Checkpoint::read(&path, model.config())
            .with_context(|| format!("cannot go on from {}", path.display()))?;
        if let Some(key) = difference(&checkpoint.other, &other) {
            bail!("{} is of a training with another {key}", path.display());
        }
        let Checkpoint { state, sequences, .. } = checkpoint;
        return Ok(Begun { state, sequences, other });
    }
    if path.exists() {
        bail!(
            "there is a training in {}: --resume goes on with it, or give another --out",
            arguments.out.display()
        );
    }
    let typed = &arguments.adapter;
    let config = AdapterConfig {
        rank: typed.rank.into(),
        alpha: typed.alpha.unwrap_or(2.0 * f32::from(typed.rank)),
        rank_stabilized: typed.rank_stabilized,
        dropout: typed.dropout,
        target_modules: typed.target_modules.clone(),
    };
    let learning = &arguments.learning;
    let all = Span::new(0, model.config().block_count)?;
    let adapter = Adapter::begin(config, model.config(), all, learning.seed)?;
    let adamw = AdamW { weight_decay: learning.weight_decay, ..AdamW::default() };
    Ok(Begun { state: TrainingState::new(adapter, adamw), sequences: 0, other })
}

/// What decides which step comes after which.
fn identity(
    arguments: &TrainArguments,
    model: &ClientModel,
    (learned, validation): &(Vec<Example>, Vec<Example>),
) -> Value {
    let (adapter, learning) = (&arguments.adapter, &arguments.learning);
    let tokens =
        |examples: &[Example]| -> usize { examples.iter().map(Example::input_count).sum() };
    let modules: Vec<_> = adapter.target_modules.iter().map(|module| module.name()).collect();
    json!({
        "model": model.id().to_string(),
        "epochs": learning.epochs,
        "batch": learning.batch,
        "seed": learning.seed,
        "learning rate": learning.learning_rate,
        "schedule": format!("{:?}", learning.schedule),
        "warm-up": learning.warmup_steps,
        "weight decay": learning.weight_decay,
        "clip": learning.clip,
        "microbatch": learning.microbatch_tokens,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "dropout": adapter.dropout,
        "target modules": modules,
        // Last, since they follow from the others too.
        "texts": [learned.len(), validation.len()],
        "tokens": [tokens(learned), tokens(validation)],
    })
}

/// The first thing in which two trainings differ.
fn difference(one: &Value, other: &Value) -> Option<String> {
    let keys = other.as_object()?.keys();
    keys.into_iter().find(|key| one[key.as_str()] != other[key.as_str()]).cloned()
}

fn run_settings(arguments: &TrainArguments) -> RunSettings {
    let learning = &arguments.learning;
    RunSettings { epochs: learning.epochs, batch: learning.batch.into(), seed: learning.seed }
}

async fn blocks(
    arguments: &TrainArguments,
    config: &Config,
    model: &Arc<ClientModel>,
    swarm: Option<&Arc<Swarm>>,
    state: &TrainingState,
) -> anyhow::Result<Blocks> {
    let Some(swarm) = swarm else {
        let (model, device) = (Arc::clone(model), config.device()?);
        let load = move || LocalBlocks::load(model.shard(), device);
        return Ok(Blocks::Local(tokio::task::spawn_blocking(load).await??));
    };
    let learning = &arguments.learning;
    // A text that is longer than a microbatch goes alone.
    let tokens_max = learning.microbatch_tokens.max(learning.max_tokens);
    let terms = (learning.seed, tokens_max);
    let blocks = RemoteBlocks::open(Arc::clone(swarm), model, state, terms).await?;
    Ok(Blocks::Remote(Box::new(blocks)))
}
