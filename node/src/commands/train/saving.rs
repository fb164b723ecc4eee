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
    /// The adapter of the best one is not in the folder: only where there is a choice it is kept.
    #[serde(default)]
    unkept: bool,
}

impl Watch {
    /// Reads it from a checkpoint; one that has none has seen nothing.
    pub(super) fn read(other: &Value) -> serde_json::Result<Self> {
        other.get(WATCH).cloned().map_or_else(|| Ok(Self::default()), serde_json::from_value)
    }

    /// For a training that chooses from here on: what was not kept is no choice.
    pub(super) fn choosing(self) -> Self {
        if self.unkept {
            tracing::warn!(
                "the adapter of the best validation so far was not kept, as that is done with --patience \
                 alone: the best of those from here on will be"
            );
            return Self::default();
        }
        self
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
        let watch = if diverged { self.diverged_watch() } else { self.proven_watch.clone() };
        self.write((&proven.state, proven.sequences), &watch, diverged)
    }

    /// What is said beside the state before the one that has diverged. That one may have been validated, and
    /// its adapter is then the one that is in the folder.
    fn diverged_watch(&self) -> Watch {
        Watch { validated: self.proven_watch.validated, ..self.watch.clone() }
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

    /// Takes note of a validation; an adapter that is the best so far is kept where one is chosen.
    pub(super) fn validated(&mut self, step: u64, loss: f64, (adapter, chooses): (&Adapter, bool)) {
        if self.watch.early_stop.validated(step, loss) {
            self.watch.unkept = !chooses;
            if chooses {
                self.best(adapter);
            }
        }
    }

    fn best(&mut self, adapter: &Adapter) {
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

    /// A training is over that does not choose: the last adapter comes in the place of the best one. Whether
    /// that is to be written down.
    pub(super) fn loses_best(&mut self) -> bool {
        let is_kept = self.watch.early_stop.best().is_some() && !self.watch.unkept;
        self.watch.unkept |= is_kept;
        is_kept
    }

    /// Writes the adapter of a training that is over: the best one where there was a choice, or `last`.
    /// Returns the step that it is of.
    pub(super) fn finish(&self, last: &TrainingState, chooses: bool) -> anyhow::Result<u64> {
        let best = self.watch.early_stop.best().filter(|_| chooses && !self.watch.unkept);
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
    use umbel_shard::ModelConfig;

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
        saving.validated(3, 0.5, (best.adapter(), true));
        let watch = saving.watch.clone();
        saving.write((&last, 4), &watch, false).unwrap_err();
        assert!(!saving.checkpoint_path().exists(), "it would name what is not there");

        fs::remove_dir(&weights).unwrap();
        saving.write((&last, 4), &watch, false).unwrap();
        let resumed = Saving::new(folder.path(), json!({ "model": "a model" }), watch);
        assert_eq!(resumed.finish(&last, true).unwrap(), 3);
        assert!(holds(folder.path(), &best));
    }

    /// Whether the adapter in a folder is that of a state.
    fn holds(folder: &Path, state: &TrainingState) -> bool {
        let other = tempfile::tempdir().unwrap();
        state.adapter().to_peft().write(other.path()).unwrap();
        let [kept, expected] =
            [folder, other.path()].map(|folder| fs::read(folder.join(PEFT_WEIGHTS_FILE)).unwrap());
        kept == expected
    }

    /// What a training that goes on finds.
    fn resumed(folder: &Path, model: &ModelConfig) -> Watch {
        let checkpoint = Checkpoint::read(&folder.join(CHECKPOINT_FILE), model).unwrap();
        Watch::read(&checkpoint.other).unwrap()
    }

    #[test]
    fn a_training_that_begins_to_choose_takes_no_other_adapter_for_the_best_one() {
        let folder = tempfile::tempdir().unwrap();
        let (model, _) = llama();
        let identity = || json!({ "model": "a model" });
        let (best, last) = (state(1), state(2));
        // It does not choose, and so keeps none but the last.
        let mut saving = Saving::new(folder.path(), identity(), Watch::default());
        saving.validated(3, 0.5, (best.adapter(), false));
        saving.validated(6, 0.7, (last.adapter(), false));
        assert!(!saving.loses_best(), "it has none");
        saving.write((&last, 4), &saving.watch.clone(), false).unwrap();
        assert_eq!(saving.finish(&last, false).unwrap(), last.steps());
        let watch = resumed(folder.path(), model.config());
        assert_eq!(watch.clone().choosing(), Watch::default());
        let chooses = Saving::new(folder.path(), identity(), watch);
        assert_eq!(chooses.finish(&last, true).unwrap(), last.steps());

        // It chooses, and at its end does so no more.
        let mut saving = Saving::new(folder.path(), identity(), Watch::default());
        saving.validated(3, 0.5, (best.adapter(), true));
        assert!(holds(folder.path(), &best));
        assert_eq!(saving.watch.clone().choosing(), saving.watch);
        assert!(saving.loses_best() && !saving.loses_best());
        saving.finish(&last, false).unwrap();
        assert!(holds(folder.path(), &last));
        assert_eq!(saving.watch.choosing(), Watch::default());
    }

    #[test]
    fn the_adapter_of_a_state_that_was_validated_and_then_diverged_has_its_own_step() {
        let folder = tempfile::tempdir().unwrap();
        let (before, diverging) = (state(1), state(2));
        let mut saving =
            Saving::new(folder.path(), json!({ "model": "a model" }), Watch::default());
        saving.validated(3, 0.5, (before.adapter(), true));
        saving.watch.validated = Some(3);
        let watch = saving.begin_step();
        saving.proven(watch);
        saving.validated(4, 0.4, (diverging.adapter(), true));
        saving.watch.validated = Some(4);

        let watch = saving.diverged_watch();
        assert_eq!(watch.validated, Some(3), "what there is to go on with");
        let resumed = Saving::new(folder.path(), json!({ "model": "a model" }), watch);
        assert_eq!(resumed.finish(&before, true).unwrap(), 4);
        assert!(holds(folder.path(), &diverging));
    }
}
