//! `umbel train`

mod begin;
mod card;
pub(crate) mod metrics;
mod plot;
mod report;
mod saving;
mod together;

use std::fs::File;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use umbel_client::train::run::Run;
use umbel_client::train::schedule::Schedule;
use umbel_client::train::together::Together;
use umbel_client::train::{
    Blocks, LocalBlocks, RemoteBlocks, RemoteSettings, TrainError, Trainer, TrainerSettings,
};
use umbel_client::{ClientModel, Swarm, SwarmConfig};
use umbel_engine::Device;
use umbel_engine::train::TrainingState;
use umbel_net::Way;
use umbel_shard::{ModelSource, PartsNeeded};

use super::session::open_ends;
use crate::args::train::{LearningArguments, TrainArguments};
use crate::config::Config;
use crate::folder;
use crate::shutdown::Shutdown;
use report::Reporter;
use saving::Saving;

/// Trains until there is no step left, or until it is asked to stop: the step under way is taken, and what
/// there is to go on with is written.
pub(super) async fn run(arguments: TrainArguments, config: &Config) -> anyhow::Result<ExitCode> {
    let mut signals = Shutdown::listen().context("signals cannot be caught")?;
    let (stop, stopped) = watch::channel(false);
    let mut training = std::pin::pin!(train(arguments, config, stopped));
    let signal = tokio::select! {
        trained = &mut training => return trained.map(|_| ExitCode::SUCCESS),
        signal = signals.requested() => signal,
    };
    tracing::info!(%signal, "stopping behind the step under way; once more stops at once");
    stop.send_replace(true);
    let ended = tokio::select! {
        ended = training => ended?,
        _ = signals.requested() => Ended::Stopped,
    };
    Ok(match ended {
        Ended::Complete => ExitCode::SUCCESS,
        Ended::Stopped => ExitCode::from(signal.exit_code()),
    })
}

/// How a training ended that nothing has gone wrong with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There is no step left, or no better validation is to be expected.
    Complete,
    /// It was asked to stop before that.
    Stopped,
}

/// Trains until there is no step left, or until `stop` is true.
pub(crate) async fn train(
    arguments: TrainArguments,
    config: &Config,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<Ended> {
    let (mut training, swarm) = tokio::select! {
        prepared = prepare(&arguments, config) => prepared?,
        // Nothing is there yet that could be lost.
        () = asked(&mut stop) => return Ok(Ended::Stopped),
    };
    let first_step = training.run.trainer().state().steps();
    let ended = training.go_on(&arguments.learning, &mut stop).await;
    if let Some(together) = training.together.take() {
        together.leave().await;
    }
    let ended = training.end(&arguments, first_step, ended)?;
    training.run.close().await;
    if let Some(swarm) = swarm.and_then(Arc::into_inner) {
        swarm.leave().await;
    }
    Ok(ended)
}

/// Returns as soon as the training is to stop.
async fn asked(stop: &mut watch::Receiver<bool>) {
    // Who has gone without a word wants no more of it either.
    let _gone = stop.wait_for(|&stop| stop).await;
}

/// Finds the servers, the model and the texts, and where the training begins.
async fn prepare(
    arguments: &TrainArguments,
    config: &Config,
) -> anyhow::Result<(Training, Option<Arc<Swarm>>)> {
    if arguments.join.is_empty() && !arguments.local && !arguments.mdns {
        bail!("where? --join ADDR for a swarm, --mdns to look for one nearby, --local for none");
    }
    let method = arguments.adapter.method;
    if let Some(argument) = arguments.adapter.out_of_place() {
        bail!("{argument} means nothing with --method {}", method.name());
    }
    begin::look_for_texts(arguments)?;
    let source = ModelSource::parse(arguments.model.name())?;
    let base = card::base_of(&source);
    // The swarm is joined first: a wrong address is found before anything is downloaded.
    let swarm = if arguments.local { None } else { Some(join(arguments).await?) };
    let parts = if arguments.local { PartsNeeded::everything() } else { PartsNeeded::ends() };
    let model = open_ends(source, config, parts).await?;
    let texts = begin::read_texts(arguments, &model)?;
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("{} cannot be made", arguments.out.display()))?;
    let lock = folder::lock(&arguments.out).with_context(|| arguments.out.display().to_string())?;
    let begun = begin::begin(arguments, &model, &texts)?;
    let prompt_tokens = arguments.adapter.prompt_tokens().into();
    let longest = u32::try_from(begin::longest(&texts, prompt_tokens)).unwrap_or(u32::MAX);
    let blocks = blocks(arguments, longest, &model, swarm.as_ref(), &begun.state).await?;
    let learning = &arguments.learning;
    let settings = TrainerSettings {
        clip: learning.clip,
        seed: learning.seed,
        microbatch_tokens: learning.microbatch_tokens as usize,
    };
    let first_step = begun.state.steps();
    let mut trainer = Trainer::new(Arc::clone(&model), blocks, begun.state, settings)
        .after_sequences(begun.sequences);
    let together =
        together::start(&arguments.together, &arguments.join, &model, &mut trainer).await?;
    let schedule = begin::schedule(arguments, &texts);
    warn_of(&schedule);
    let steps = (first_step, schedule.steps);
    let reporter = Reporter::new(&arguments.out, arguments.resume, steps)?;
    let run = Run::new(trainer, texts, begin::run_settings(arguments), schedule);
    let saving = Saving::new(&arguments.out, begun.identity, begun.watch);
    Ok((Training { run, saving, reporter, base, together, _lock: lock }, swarm))
}

/// Says where little will come of the learning rates.
fn warn_of(schedule: &Schedule) {
    let &Schedule { warmup_steps, steps, .. } = schedule;
    if schedule.learns_nothing() {
        tracing::warn!(
            "nothing is learned in one step, at which the learning rate only begins to rise: ask for \
             more --epochs, a smaller --batch or --warmup-steps 0"
        );
    } else if schedule.ends_in_warmup() {
        tracing::warn!(
            steps,
            warmup_steps,
            "the training is over before the learning rate has risen to what was asked for: ask for \
             more --epochs, a smaller --batch or fewer --warmup-steps"
        );
    }
}

/// A training under way.
struct Training {
    run: Run,
    saving: Saving,
    reporter: Reporter,
    /// Who the model is to those who read the card.
    base: String,
    /// With whom it is learned.
    together: Option<Together>,
    /// Keeps other trainings out of the folder as long as it is open.
    _lock: File,
}

impl Training {
    /// Takes steps until there is none left, no better validation is to be expected, or it is to stop.
    async fn go_on(
        &mut self,
        learning: &LearningArguments,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended, TrainError> {
        let first = self.run.trainer().state().steps();
        loop {
            let done = self.run.trainer().state().steps();
            if self.validates(done, learning) && self.saving.watch.validated != Some(done) {
                // One that was not finished is begun anew by whoever goes on, and none has changed anything.
                tokio::select! {
                    biased;
                    () = asked(stop) => return Ok(Ended::Stopped),
                    validated = self.validate(done, learning.patience.is_some()) => validated?,
                }
            }
            let patience = learning.patience.unwrap_or(u32::MAX);
            if self.saving.watch.early_stop.is_over(patience) {
                return Ok(Ended::Complete);
            }
            if *stop.borrow() {
                return Ok(Ended::Stopped);
            }
            if let Some(together) = &self.together
                && let Some(begun) = together.between_steps(self.run.trainer_mut()).await?
            {
                self.reporter.round_begun(begun);
            }
            let watch = self.saving.begin_step();
            let Some(step) = self.run.next().await? else { return Ok(Ended::Complete) };
            self.saving.proven(watch);
            self.reporter.stepped(step, self.run.trainer().replaced());
            if done > first && done.is_multiple_of(learning.checkpoint_every) {
                // A full disk may have room again behind some more steps.
                if let Err(error) = self.saving.before_last(self.run.trainer(), false) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "going on without a checkpoint of this step");
                }
            }
        }
    }

    fn validates(&self, step: u64, learning: &LearningArguments) -> bool {
        let is_wanted = learning.validate_every.is_some_and(|every| step.is_multiple_of(every));
        is_wanted || self.run.ends_epoch(step)
    }

    async fn validate(&mut self, step: u64, chooses: bool) -> Result<(), TrainError> {
        if let Some(report) = self.run.validate().await? {
            self.reporter.validated(step, report);
            let adapter = self.run.trainer().adapter();
            self.saving.validated(step, report.loss, (adapter, chooses));
        }
        self.saving.watch.validated = Some(step);
        Ok(())
    }

    /// Writes what there is to keep, whatever ended the training.
    fn end(
        &mut self,
        arguments: &TrainArguments,
        first_step: u64,
        ended: Result<Ended, TrainError>,
    ) -> anyhow::Result<Ended> {
        let trainer = self.run.trainer();
        let (steps, saving) = (trainer.state().steps(), &mut self.saving);
        let stepped = steps > first_step;
        let chooses = arguments.learning.patience.is_some();
        let outdated = matches!(ended, Ok(Ended::Complete)) && !chooses && saving.loses_best();
        let saved = match &ended {
            Err(TrainError::Diverged { .. }) if stepped => saving.before_last(trainer, true),
            Err(TrainError::Diverged { .. }) if arguments.resume => {
                saving.diverged_at_once(trainer)
            }
            _ if stepped || outdated => saving.last(trainer),
            _ => Ok(()),
        };
        let saved = saved.with_context(|| saving.checkpoint_path().display().to_string());
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => return Err(self.failed(error, saved)),
        };
        if ended == Ended::Stopped {
            saving.describe(&self.base, steps, None);
            saved?;
            self.say_how_to_go_on();
            return Ok(ended);
        }
        let chosen = saving.finish(trainer.state(), chooses);
        saving.describe(&self.base, steps, chosen.as_ref().ok().copied());
        let chosen = chosen?;
        saved?;
        self.reporter.finish(&arguments.out, steps, chosen);
        Ok(ended)
    }

    /// Says what there is of a training that failed, and returns why it did.
    fn failed(&self, error: TrainError, saved: anyhow::Result<()>) -> anyhow::Error {
        let (steps, saving) = (self.run.trainer().state().steps(), &self.saving);
        saving.describe(&self.base, steps, None);
        if let Err(unsaved) = saved {
            let error = format!("{unsaved:#}");
            tracing::warn!(error, "there is no checkpoint of this end");
        }
        let is_divergence = matches!(error, TrainError::Diverged { .. });
        let kept = saving.checkpoint_path();
        let error = anyhow::Error::new(error);
        if !is_divergence || !kept.exists() {
            return error;
        }
        error.context(format!(
            "step {} was not taken; {} is from before: go on with --resume and a lower --learning-rate",
            steps + 1,
            kept.display()
        ))
    }

    /// Says what there is of a training that was stopped.
    fn say_how_to_go_on(&self) {
        let (step, checkpoint) =
            (self.run.trainer().state().steps(), self.saving.checkpoint_path());
        if checkpoint.exists() {
            let checkpoint = checkpoint.display();
            tracing::info!(step, %checkpoint, "stopped; the same with --resume goes on from here");
        } else {
            tracing::info!("stopped before the first step");
        }
    }
}

async fn join(arguments: &TrainArguments) -> anyhow::Result<Arc<Swarm>> {
    let Way { addresses, swarm_key } = Way::new(&arguments.join, None)?;
    let config = SwarmConfig {
        join: addresses,
        swarm_key,
        mdns: arguments.mdns,
        patience: Duration::from_secs(arguments.wait.into()),
    };
    Ok(Arc::new(Swarm::join(config).await?))
}

async fn blocks(
    arguments: &TrainArguments,
    longest: u32,
    model: &Arc<ClientModel>,
    swarm: Option<&Arc<Swarm>>,
    state: &TrainingState,
) -> anyhow::Result<Blocks> {
    let Some(swarm) = swarm else {
        let (model, device) = (Arc::clone(model), Device::shared());
        let load = move || LocalBlocks::load(model.shard(), device);
        return Ok(Blocks::Local(tokio::task::spawn_blocking(load).await??));
    };
    let learning = &arguments.learning;
    // A text that is longer than a microbatch goes alone.
    let tokens_max = learning.microbatch_tokens.max(longest);
    let settings = RemoteSettings {
        seed: learning.seed,
        tokens_max,
        routes: arguments.routes.into(),
        ..RemoteSettings::default()
    };
    let blocks = RemoteBlocks::open(Arc::clone(swarm), model, state, settings).await?;
    Ok(Blocks::Remote(Box::new(blocks)))
}
