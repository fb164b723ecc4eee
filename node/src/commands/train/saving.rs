//! What a training leaves on disk: checkpoints while it goes on, and the adapter with what is said of
//! it.
//!
//! A disk that is full ends no training. What was written before stays whole, and what could not be
//! written is tried again with the next checkpoint, and at the end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use umbel_client::train::Trainer;
use umbel_client::train::checkpoint::{Checkpoint, CheckpointError};
use umbel_client::train::early_stop::EarlyStop;
use umbel_engine::train::{Adapter, PEFT_WEIGHTS_FILE, PeftFiles, TrainingState};

use super::begin::DIVERGED;
use super::card::Card;
use super::metrics::History;
use super::plot;

/// What there is to go on with.
pub(super) const CHECKPOINT_FILE: &str = "checkpoint.safetensors";

/// Under which key of a checkpoint what the validations have shown is.
const WATCH: &str = "watch";

/// What the validations have shown so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Watch {
    /// Behind which step the last one was.
    pub(super) validated: Option<u64>,
    pub(super) early_stop: EarlyStop,
}

impl Watch {
    /// Reads it from a checkpoint; one that has none has seen nothing.
    pub(super) fn read(other: &Value) -> serde_json::Result<Self> {
        other.get(WATCH).cloned().map_or_else(|| Ok(Self::default()), serde_json::from_value)
    }
}

/// The folder of a training, and what is to go into it.
pub(super) struct Saving {
    folder: PathBuf,
    /// What decides which step comes after which.
    identity: Value,
    pub(super) watch: Watch,
    /// What the validations had shown of the state before the last step.
    proven_watch: Watch,
    /// The best adapter, where it could not be written.
    unwritten: Option<PeftFiles>,
}

impl Saving {
    pub(super) fn new(folder: &Path, identity: Value, watch: Watch) -> Self {
        let proven_watch = watch.clone();
        Self { folder: folder.to_owned(), identity, watch, proven_watch, unwritten: None }
    }

    pub(super) fn checkpoint_path(&self) -> PathBuf {
        self.folder.join(CHECKPOINT_FILE)
    }

    /// A step begins: whether the state before it is good, its loss will show.
    pub(super) fn begin_step(&mut self) -> Watch {
        self.watch.clone()
    }

    /// The loss of the step that began with `watch` was a number.
    pub(super) fn proven(&mut self, watch: Watch) {
        self.proven_watch = watch;
    }

    /// Writes the last state, which was taken as a whole whatever ended the training.
    pub(super) fn last(&mut self, trainer: &Trainer) -> Result<(), CheckpointError> {
        self.write((trainer.state(), trainer.sequences()), &self.watch.clone(), false)
    }

    /// Writes the state before the last step, which is known to be good.
    pub(super) fn before_last(
        &mut self,
        trainer: &Trainer,
        diverged: bool,
    ) -> Result<(), CheckpointError> {
        let Some(proven) = trainer.proven() else { return Ok(()) };
        self.write((&proven.state, proven.sequences), &self.proven_watch.clone(), diverged)
    }

    /// Says of the state that the training was resumed from that what follows has diverged.
    pub(super) fn diverged_at_once(&mut self, trainer: &Trainer) -> Result<(), CheckpointError> {
        self.write((trainer.state(), trainer.sequences()), &self.watch.clone(), true)
    }

    /// A checkpoint names the best adapter, so that one is there before it.
    fn write(
        &mut self,
        (state, sequences): (&TrainingState, u64),
        watch: &Watch,
        diverged: bool,
    ) -> Result<(), CheckpointError> {
        if let Some(files) = &self.unwritten {
            files.write(&self.folder)?;
            self.unwritten = None;
        }
        let mut other = self.identity.clone();
        other[WATCH] = serde_json::to_value(watch).expect("numbers are JSON");
        other[DIVERGED] = diverged.into();
        let model = self.identity["model"].as_str().unwrap_or_default().to_owned();
        Checkpoint { state: state.clone(), model, sequences, other }.write(&self.checkpoint_path())
    }

    /// Keeps an adapter that is the best so far.
    pub(super) fn best(&mut self, adapter: &Adapter) {
        let files = adapter.to_peft();
        self.unwritten = match files.write(&self.folder) {
            Ok(()) => None,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the best adapter so far is kept in memory");
                Some(files)
            }
        };
    }

    /// Writes the adapter of a training that is over: the best one where there was a choice, or `last`.
    /// Returns the step that it is of.
    pub(super) fn finish(&self, last: &TrainingState, chooses: bool) -> anyhow::Result<u64> {
        let best = self.watch.early_stop.best().filter(|_| chooses);
        let written = match (&self.unwritten, best) {
            (Some(files), _) => files.write(&self.folder),
            (None, Some(_)) if self.folder.join(PEFT_WEIGHTS_FILE).exists() => Ok(()),
            (None, _) => last.adapter().to_peft().write(&self.folder),
        };
        written.with_context(|| {
            format!(
                "the adapter was not written to {}; once there is room, --resume writes it",
                self.folder.display()
            )
        })?;
        Ok(best.map_or(last.steps(), |(step, _)| step))
    }

    /// Draws the loss so far, and writes the card where there is an adapter. Both can be made again, so
    /// that a failure is no more than a warning.
    pub(super) fn describe(&self, base: &str, steps: u64, of: Option<u64>) {
        if let Err(error) = self.try_describe(base, steps, of) {
            tracing::warn!(error = format!("{error:#}"), "the plot or the card was not written");
        }
    }

    fn try_describe(&self, base: &str, steps: u64, of: Option<u64>) -> anyhow::Result<()> {
        let history = History::read(&self.folder, steps)?;
        if let Some(svg) = plot::svg(&history)? {
            fs::write(self.folder.join(plot::PLOT_FILE), svg)?;
        }
        if let Some(of) = of {
            let (base, identity) = (base.to_owned(), &self.identity);
            Card { base, identity, steps: (steps, of), history: &history }.write(&self.folder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use umbel_engine::train::{AdamW, AdapterConfig, TargetModule};
    use umbel_protocol::Span;

    use super::*;
    use crate::compute::tests::llama;

    /// The beginning of a training of the small random model.
    fn state(seed: u64) -> TrainingState {
        let (model, _) = llama();
        let config = AdapterConfig {
            rank: 2,
            alpha: 4.0,
            target_modules: vec![TargetModule::Value],
            ..AdapterConfig::default()
        };
        let blocks = Span::new(0, 4).unwrap();
        let adapter = Adapter::begin(config, model.config(), blocks, seed).unwrap();
        TrainingState::new(adapter, AdamW::default())
    }

    #[test]
    fn a_checkpoint_never_names_a_best_adapter_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let (best, last) = (state(1), state(2));
        let mut saving =
            Saving::new(folder.path(), json!({ "model": "a model" }), Watch::default());
        // As good as a full disk.
        let weights = folder.path().join(PEFT_WEIGHTS_FILE);
        fs::create_dir(&weights).unwrap();
        saving.watch.early_stop.validated(3, 0.5);
        saving.best(best.adapter());
        let watch = saving.watch.clone();
        saving.write((&last, 4), &watch, false).unwrap_err();
        assert!(!saving.checkpoint_path().exists(), "it would name what is not there");

        fs::remove_dir(&weights).unwrap();
        saving.write((&last, 4), &watch, false).unwrap();
        let resumed = Saving::new(folder.path(), json!({ "model": "a model" }), watch);
        assert_eq!(resumed.finish(&last, true).unwrap(), 3);
        let kept = fs::read(&weights).unwrap();
        fs::remove_file(&weights).unwrap();
        best.adapter().to_peft().write(folder.path()).unwrap();
        assert_eq!(kept, fs::read(&weights).unwrap());
    }
}
