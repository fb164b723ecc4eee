//! Works on jobs, one after the other: each has its training on a thread of its own.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{PoisonError, Weak};

use anyhow::Context as _;
use clap::Parser as _;
use tokio::sync::{oneshot, watch};

use super::super::reply;
use super::store::{FileRecord, JobRecord, Purpose, Status, Store};
use super::{Trains, Tuning};
use crate::args::train::TrainArguments;
use crate::args::{Arguments, ChainArguments, Command};
use crate::commands::train::{self, metrics::History};
use crate::config::Config;

/// What `umbel train` learns by, which a request multiplies.
const LEARNING_RATE: f64 = 1e-3;

/// Works on the jobs that wait, as long as there is a gateway.
pub(super) async fn work(tuning: Weak<Tuning>, mut begun: watch::Receiver<()>, trains: Trains) {
    while let Some(tuning) = tuning.upgrade() {
        if let Some(id) = tuning.store.next_job() {
            learn(&tuning, &id, &trains).await;
            continue;
        }
        // Nobody else may be left who has it.
        drop(tuning);
        if begun.changed().await.is_err() {
            return;
        }
    }
}

/// Learns what a job is for, unless it was cancelled before.
async fn learn(tuning: &Tuning, id: &str, trains: &Trains) {
    let Some((job, stopped)) = begin(tuning, id) else { return };
    tracing::info!(job = id, "learning an adapter");
    let trained = match arguments(&job, &tuning.store, trains) {
        Ok(arguments) => train(arguments, &trains.config, stopped).await,
        Err(error) => Err(error),
    };
    let result = trained.as_ref().ok().and_then(|()| keep_result(&tuning.store, &job));
    tuning.running.lock().unwrap_or_else(PoisonError::into_inner).take();
    let ended = tuning.store.change(id, |job| match &trained {
        Ok(()) => {
            job.status = Status::Succeeded;
            job.fine_tuned_model = Some(name(job));
            job.result_file.clone_from(&result);
        }
        Err(error) => {
            job.status = Status::Failed;
            job.error = Some(tuning.store.told(error));
        }
    });
    if let Some(result) = result.filter(|_| !ended)
        && let Err(error) = tuning.store.forget_file(&result)
    {
        tracing::warn!(%error, "the result of a job that was cancelled stays");
    }
    if let Err(error) = tuning.store.clear(id) {
        tracing::warn!(%error, id, "what a job that was forgotten has left stays");
    }
    tracing::info!(job = id, ended, learned = trained.is_ok(), "the job is over");
}

/// Says that a job is under way, unless it was cancelled before, and gives what tells that it is cancelled
/// from now on: whoever sees that it runs can end it.
fn begin(tuning: &Tuning, id: &str) -> Option<(JobRecord, oneshot::Receiver<()>)> {
    let (stop, stopped) = oneshot::channel();
    let running = || tuning.running.lock().unwrap_or_else(PoisonError::into_inner);
    *running() = Some((id.to_owned(), stop));
    let begun = tuning.store.change(id, |job| job.status = Status::Running);
    let job = tuning.store.job(id).filter(|_| begun);
    if job.is_none() {
        running().take();
    }
    Some((job?, stopped))
}

/// What the model with the adapter is called, as OpenAI does.
fn name(job: &JobRecord) -> String {
    let suffix = job.suffix.as_deref().unwrap_or_default();
    let short = job.id.trim_start_matches("ftjob-");
    format!("ft:{}:umbel:{suffix}:{short}", job.model)
}

/// Keeps the losses of a job as a file of its owner's, in OpenAI's form: a line for each step.
fn keep_result(store: &Store, job: &JobRecord) -> Option<String> {
    let kept = || -> anyhow::Result<String> {
        let history = History::read(&store.adapter_of(&job.id), u64::MAX)?;
        let mut lines = "step,train_loss,valid_loss\n".to_owned();
        for (step, loss, validation) in history.by_step() {
            let cell = |loss: Option<f64>| loss.map_or_else(String::new, |loss| loss.to_string());
            writeln!(lines, "{step},{},{}", cell(loss), cell(validation))?;
        }
        let file = FileRecord {
            id: reply::id("file-"),
            owner: job.owner.clone(),
            filename: "step_metrics.csv".to_owned(),
            bytes: lines.len() as u64,
            created_at: reply::unix_seconds(),
            purpose: Purpose::FineTuneResults,
        };
        let id = file.id.clone();
        // Each is of one of the jobs, of which there is a limit.
        store.keep_file(file, lines.as_bytes(), usize::MAX)?;
        Ok(id)
    };
    kept().inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "no result")).ok()
}

/// What `umbel train` is told for a job: it learns where the gateway has its answers computed.
fn arguments(job: &JobRecord, store: &Store, trains: &Trains) -> anyhow::Result<TrainArguments> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is no text");
    let mut typed = vec![
        "umbel".to_owned(),
        "train".to_owned(),
        trains.model.clone(),
        "--data".to_owned(),
        text(&store.lines_of(&job.training_file))?,
        "--out".to_owned(),
        text(&store.adapter_of(&job.id))?,
        "--epochs".to_owned(),
        job.epochs.to_string(),
        "--batch".to_owned(),
        job.batch.to_string(),
        "--learning-rate".to_owned(),
        (LEARNING_RATE * job.learning_rate_multiplier).to_string(),
        "--seed".to_owned(),
        job.seed.to_string(),
    ];
    if let Some(file) = &job.validation_file {
        typed.extend(["--validation-data".to_owned(), text(&store.lines_of(file))?]);
    }
    let Command::Train(arguments) = Arguments::try_parse_from(typed)?.command else {
        unreachable!("it says train");
    };
    let ChainArguments { join, mdns, local, .. } = &trains.chain;
    Ok(TrainArguments { join: join.clone(), mdns: *mdns, local: *local, ..*arguments })
}

/// Trains to the end, or until it is stopped.
async fn train(
    arguments: TrainArguments,
    config: &Config,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let config = config.clone();
    let (tell, ended) = oneshot::channel();
    // It reads and writes files on its way, which would hold up those who are answered.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (_never, stop) = watch::channel(false);
        let trained = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
            runtime.block_on(async {
                tokio::select! {
                    trained = train::train(arguments, &config, stop) => trained.map(drop),
                    _ = stopped => Err(anyhow::anyhow!("the job was cancelled")),
                }
            })
        });
        // The gateway may have ended.
        let _nobody = tell.send(trained);
    });
    ended.await.context("a bug of umbel: the training panicked")?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::super::jobs;
    use super::super::store::tests::{hold, job};
    use super::*;

    /// What a gateway learns with that was started with these flags.
    fn trains(model: &str, flags: &[&str]) -> Trains {
        let typed = [&["umbel", "gateway", "--model", model][..], flags].concat();
        let typed = Arguments::try_parse_from(typed).unwrap();
        let config = Config::resolve(&typed).unwrap();
        let Command::Gateway(gateway) = typed.command else { panic!("it says gateway") };
        Trains { model: model.to_owned(), chain: gateway.chain, config }
    }

    #[tokio::test]
    async fn a_job_is_learned_though_whoever_asked_for_it_went_away() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("nowhere");
        let trains = trains(nowhere.to_str().unwrap(), &["--local"]);
        let tuning = Tuning::start(&folder.path().join("kept"), trains).unwrap();
        {
            let _held = hold(&tuning.store);
            let asked = jobs::begin(&tuning, job("ftjob-1", "ann", Status::Queued));
            assert!(asked.now_or_never().is_none(), "it is not kept before whoever asked is gone");
        }
        let over = async {
            while !tuning.store.job("ftjob-1").is_some_and(|job| job.status.is_over()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), over).await.unwrap();
        let job = tuning.store.job("ftjob-1").unwrap();
        assert_eq!(job.status, Status::Failed, "it was tried with a model that is not there");
    }

    /// Where a job of a gateway that was started with these flags learns.
    fn learns_at(flags: &[&str]) -> (usize, bool, bool) {
        let folder = tempfile::tempdir().unwrap();
        let trains = trains("m", flags);
        let store = Store::open(folder.path()).unwrap();
        let job = job("ftjob-1", "ann", Status::Running);
        let TrainArguments { join, mdns, local, .. } = arguments(&job, &store, &trains).unwrap();
        (join.len(), mdns, local)
    }

    #[test]
    fn a_job_learns_where_its_gateway_has_answers_computed() {
        assert_eq!(learns_at(&["--local"]), (0, false, true));
        assert_eq!(learns_at(&["--mdns"]), (0, true, false));
        assert_eq!(learns_at(&["--join", "/ip4/10.0.0.7/tcp/4001"]), (1, false, false));
    }
}
