//! A training from its first step to its last: epochs over a data set, and validation.

use super::data::{Example, shuffle};
use super::schedule::Schedule;
use super::{StepReport, TrainError, Trainer};

/// Texts that a validation takes through at once: what is known of a batch is small beside them.
const VALIDATION_BATCH: usize = 8;

/// What is learned, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunSettings {
    /// How often each text is learned.
    pub epochs: u64,
    /// Texts of one step.
    pub batch: usize,
    /// What the order of the texts is drawn from.
    pub seed: u64,
}

impl RunSettings {
    /// Steps of one epoch over so many texts.
    #[must_use]
    pub const fn epoch_steps(&self, examples: usize) -> u64 {
        examples.div_ceil(if self.batch == 0 { 1 } else { self.batch }) as u64
    }

    /// Steps of the whole training.
    #[must_use]
    pub const fn steps(&self, examples: usize) -> u64 {
        self.epoch_steps(examples).saturating_mul(self.epochs)
    }
}

/// A training that goes on step by step. What a step learns follows from its number, so that a training
/// that is resumed goes on as it would have.
pub struct Run {
    trainer: Trainer,
    examples: Vec<Example>,
    validation: Vec<Example>,
    settings: RunSettings,
    schedule: Schedule,
    /// The order of the texts in one epoch.
    order: Option<(u64, Vec<usize>)>,
}

/// A step that was taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunStep {
    /// Its number, from 1 on.
    pub step: u64,
    /// Steps of the whole training.
    pub of: u64,
    /// The epoch that it belongs to, from 1 on.
    pub epoch: u64,
    /// How far it went.
    pub learning_rate: f64,
    /// What came of it.
    pub report: StepReport,
}

impl Run {
    /// A training that goes on behind the last step of the trainer.
    #[must_use]
    pub fn new(
        trainer: Trainer,
        (examples, validation): (Vec<Example>, Vec<Example>),
        settings: RunSettings,
        schedule: Schedule,
    ) -> Self {
        Self { trainer, examples, validation, settings, schedule, order: None }
    }

    /// The trainer.
    #[must_use]
    pub const fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// The trainer, to whom something may be done between two steps.
    pub const fn trainer_mut(&mut self) -> &mut Trainer {
        &mut self.trainer
    }

    /// Whether there are texts for validation.
    #[must_use]
    pub const fn validates(&self) -> bool {
        !self.validation.is_empty()
    }

    /// Takes the next step; `None` behind the last one.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub async fn next(&mut self) -> Result<Option<RunStep>, TrainError> {
        let step = self.trainer.state().steps() + 1;
        let of = self.settings.steps(self.examples.len());
        if step > of {
            return Ok(None);
        }
        let epoch_steps = self.settings.epoch_steps(self.examples.len());
        let (epoch, within) = ((step - 1) / epoch_steps, (step - 1) % epoch_steps);
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let mut order: Vec<_> = (0..self.examples.len()).collect();
            shuffle(&mut order, self.settings.seed.wrapping_add(epoch));
            self.order = Some((epoch, order));
        }
        let (_, order) = self.order.as_ref().expect("it was drawn just now");
        let batch = self.settings.batch.max(1);
        let places = order.chunks(batch).nth(usize::try_from(within).unwrap_or(usize::MAX));
        let batch: Vec<_> =
            places.unwrap_or_default().iter().map(|&index| &self.examples[index]).collect();
        let learning_rate = self.schedule.at(step);
        let report = self.trainer.step(&batch, learning_rate).await?;
        Ok(Some(RunStep { step, of, epoch: epoch + 1, learning_rate, report }))
    }

    /// Whether a step ends an epoch.
    #[must_use]
    pub const fn ends_epoch(&self, step: u64) -> bool {
        step.is_multiple_of(self.settings.epoch_steps(self.examples.len()))
    }

    /// How well the texts that are not learned are foretold; `None` where there are none.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub async fn validate(&mut self) -> Result<Option<StepReport>, TrainError> {
        if self.validation.is_empty() {
            return Ok(None);
        }
        let mut total = StepReport { loss: 0.0, targets: 0, tokens: 0, gradient_norm: 0.0 };
        for batch in self.validation.chunks(VALIDATION_BATCH) {
            let batch: Vec<_> = batch.iter().collect();
            let report = self.trainer.evaluate(&batch).await?;
            total.loss += report.loss * report.targets as f64;
            total.targets += report.targets;
            total.tokens += report.tokens;
        }
        total.loss /= total.targets.max(1) as f64;
        Ok(Some(total))
    }

    /// Lets servers forget their parts, and returns nothing that was learned: see
    /// [`Trainer::adapter`] before.
    pub async fn close(self) {
        self.trainer.close().await;
    }
}
