//! An adapter with its optimizer and the gradients of a step: what a server holds for a trainer, and a
//! trainer beside it.
//!
//! Its values can be read and written as one row: block by block, in each block module by module, of
//! each module A, B and magnitudes; last what stands before the text, which no server holds. So the part
//! of some blocks is a stretch of the row of all.

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use umbel_protocol::Span;
use umbel_protocol::training::StateKind;
use umbel_shard::ModelConfig;

use super::adapter::{Adapter, AdapterConfig, AdapterError, Parameters};
use super::optimizer::{AdamW, Optimizer, StepError};

/// An adapter in training.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    adapter: Adapter,
    optimizer: Optimizer,
    gradients: Parameters,
}

impl TrainingState {
    /// Before the first step of an adapter.
    #[must_use]
    pub fn new(adapter: Adapter, settings: AdamW) -> Self {
        let optimizer = Optimizer::new(settings, &adapter);
        let gradients = adapter.parameters().zeros_like();
        Self { adapter, optimizer, gradients }
    }

    /// A new adapter for `blocks`, which counts as having taken `steps`: its values may then be
    /// written.
    ///
    /// # Errors
    /// As [`Adapter::begin`].
    pub fn begin(
        (config, settings): (AdapterConfig, AdamW),
        model: &ModelConfig,
        blocks: Span,
        (seed, steps): (u64, u64),
    ) -> Result<Self, AdapterError> {
        let mut state = Self::new(Adapter::begin(config, model, blocks, seed)?, settings);
        state.optimizer.set_steps(steps);
        Ok(state)
    }

    /// The adapter.
    #[must_use]
    pub const fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Steps that were taken.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// How its optimizer steps.
    #[must_use]
    pub const fn settings(&self) -> AdamW {
        self.optimizer.settings()
    }

    /// How many values the adapter has.
    #[must_use]
    pub fn value_count(&self) -> u64 {
        self.adapter.parameters().value_count()
    }

    /// How many of them belong to blocks: the first ones.
    #[must_use]
    pub fn block_value_count(&self) -> u64 {
        self.adapter.parameters().block_value_count()
    }

    /// The stretch of some of the adapter's blocks in the row of all values.
    ///
    /// # Panics
    /// Where the adapter lacks one of them.
    #[must_use]
    pub fn stretch(&self, blocks: Span) -> Range<u64> {
        let all = self.adapter.blocks();
        assert!(all.covers(blocks), "the adapter has all of the blocks");
        let of_block = self.block_value_count() / u64::from(all.block_count());
        let [start, end] =
            [blocks.start(), blocks.end()].map(|block| u64::from(block - all.start()) * of_block);
        start..end
    }

    /// Some of its values; `None` where there are not as many.
    #[must_use]
    pub fn read(&self, kind: StateKind, range: Range<u64>) -> Option<Vec<f32>> {
        self.row(kind).read(range)
    }

    /// Replaces the values from `offset` on.
    ///
    /// # Errors
    /// [`WriteError`] where there are not as many, or one is such as no training has; then nothing has
    /// changed.
    pub fn write(
        &mut self,
        kind: StateKind,
        offset: u64,
        values: &[f32],
    ) -> Result<(), WriteError> {
        let least = if kind == StateKind::MeanSquares { 0.0 } else { f32::NEG_INFINITY };
        if values.iter().any(|value| !value.is_finite() || *value < least) {
            return Err(WriteError::NotFinite);
        }
        let row = match kind {
            StateKind::Values => &mut self.adapter.parameters,
            StateKind::Means => &mut self.optimizer.means,
            StateKind::MeanSquares => &mut self.optimizer.mean_squares,
            StateKind::Gradients => &mut self.gradients,
        };
        row.write(offset, values).ok_or(WriteError::TooMany { count: row.value_count() })
    }

    /// Replaces the magnitudes of the adapter: see [`Adapter::set_magnitudes`].
    ///
    /// # Errors
    /// As there.
    pub fn set_magnitudes(&mut self, values: &[f32]) -> Result<(), WriteError> {
        self.adapter.set_magnitudes(values)
    }

    /// Adds the gradients of a microbatch to those of the step.
    ///
    /// # Panics
    /// Where they are not of this adapter.
    pub fn add(&mut self, gradients: &Parameters) {
        self.gradients.add(gradients);
    }

    /// Adds a microbatch's gradients of the vectors before the text.
    ///
    /// # Panics
    /// Where they are not as many as the adapter has.
    pub fn add_to_prompt(&mut self, gradients: &[f32]) {
        let prompt = &mut self.gradients.prompt;
        assert_eq!(prompt.len(), gradients.len(), "a gradient for each value");
        prompt.iter_mut().zip(gradients).for_each(|(sum, value)| *sum += value);
    }

    /// The gradients of the step.
    #[must_use]
    pub const fn gradients(&self) -> &Parameters {
        &self.gradients
    }

    /// Changes the adapter by the gradients of the step, each multiplied by `factor` first. The next
    /// step begins without any.
    ///
    /// # Errors
    /// [`StepError`]; then nothing has changed.
    pub fn step(&mut self, learning_rate: f64, factor: f64) -> Result<(), StepError> {
        self.step_pausing((learning_rate, factor), &|| ())
    }

    /// As [`Self::step`], with `pause` between parts of the work, upon which others may compute.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_pausing(
        &mut self,
        (learning_rate, factor): (f64, f64),
        pause: &dyn Fn(),
    ) -> Result<(), StepError> {
        let along = (learning_rate, factor);
        self.optimizer.step_pausing(&mut self.adapter, &self.gradients, along, pause)?;
        self.reset();
        Ok(())
    }

    /// Drops the gradients of an unfinished step.
    pub fn reset(&mut self) {
        self.gradients = self.adapter.parameters().zeros_like();
    }

    /// SHA-256 over the values of the adapter in some of its blocks, little-endian: equal where the
    /// same steps were taken.
    ///
    /// # Panics
    /// Where the adapter lacks one of the blocks.
    #[must_use]
    pub fn digest(&self, blocks: Span) -> [u8; 32] {
        self.digest_pausing(blocks, &|| ())
    }

    /// As [`Self::digest`], with `pause` between parts of the work, upon which others may compute.
    ///
    /// # Panics
    /// As [`Self::digest`].
    #[must_use]
    pub fn digest_pausing(&self, blocks: Span, pause: &dyn Fn()) -> [u8; 32] {
        assert!(self.adapter.blocks().covers(blocks), "the adapter has all of the blocks");
        let mut hash = Sha256::new();
        for (block, values) in self.adapter.parameters().rows() {
            if block.is_some_and(|block| blocks.contains(block)) {
                values.iter().for_each(|value| hash.update(value.to_le_bytes()));
                pause();
            }
        }
        hash.finalize().into()
    }

    fn row(&self, kind: StateKind) -> &Parameters {
        match kind {
            StateKind::Values => self.adapter.parameters(),
            StateKind::Means => self.optimizer.moments()[0],
            StateKind::MeanSquares => self.optimizer.moments()[1],
            StateKind::Gradients => &self.gradients,
        }
    }
}

/// Values that were not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Beyond the last.
    #[error("the state has {count} values, and these are beyond them")]
    TooMany {
        /// How many there are.
        count: u64,
    },
    /// A value that is infinite, no number, or the mean of squares and negative.
    #[error("a value that no training has")]
    NotFinite,
}

#[cfg(test)]
mod tests {
    use umbel_shard::Family;

    use super::*;
    use crate::span::tests::model;
    use crate::train::TargetModule;

    const ALL: [StateKind; 4] =
        [StateKind::Values, StateKind::Means, StateKind::MeanSquares, StateKind::Gradients];

    fn span(start: u32, end: u32) -> Span {
        Span::new(start, end).unwrap()
    }

    fn state(blocks: Span) -> TrainingState {
        let config = AdapterConfig {
            rank: 2,
            alpha: 4.0,
            rank_stabilized: false,
            dropout: 0.0,
            target_modules: vec![TargetModule::Key, TargetModule::Query],
            ..AdapterConfig::default()
        };
        let model = model::config(Family::Llama);
        TrainingState::begin((config, AdamW::default()), &model, blocks, (3, 5)).unwrap()
    }

    /// A state whose rows are all different.
    fn filled(blocks: Span) -> TrainingState {
        let mut filled = state(blocks);
        for (number, kind) in (1u8..).zip(ALL) {
            let count = usize::try_from(filled.value_count()).unwrap();
            let values: Vec<f32> =
                (0..count).map(|index| index as f32 + f32::from(number) / 8.0).collect();
            filled.write(kind, 0, &values).unwrap();
        }
        filled
    }

    #[test]
    fn what_is_written_in_pieces_is_read_in_others() {
        let all = filled(span(0, 3));
        let mut copy = state(span(0, 3));
        assert_eq!((all.steps(), copy.steps()), (5, 5));
        for kind in ALL {
            let mut start = 0;
            while start < all.value_count() {
                let end = all.value_count().min(start + 777);
                copy.write(kind, start, &all.read(kind, start..end).unwrap()).unwrap();
                start = end;
            }
            let row = copy.read(kind, 0..copy.value_count()).unwrap();
            assert!(row.windows(2).all(|pair| pair[1] == pair[0] + 1.0), "{kind:?}");
        }
        assert_eq!(copy, all);
    }

    #[test]
    fn the_part_of_some_blocks_is_a_stretch_of_the_row_and_has_its_digest() {
        let all = filled(span(0, 3));
        let mut part = state(span(1, 3));
        let stretch = all.stretch(span(1, 3));
        assert_eq!(stretch.end - stretch.start, part.value_count());
        for kind in ALL {
            part.write(kind, 0, &all.read(kind, stretch.clone()).unwrap()).unwrap();
        }
        assert_eq!(part.digest(span(1, 3)), all.digest(span(1, 3)));
        assert_ne!(part.digest(span(1, 2)), all.digest(span(1, 3)));
        let mut whole = all.clone();
        whole.step(0.1, 1.0).unwrap();
        part.step(0.1, 1.0).unwrap();
        assert_eq!(part.digest(span(1, 3)), whole.digest(span(1, 3)));
        assert_ne!(whole.digest(span(1, 3)), all.digest(span(1, 3)));
        assert_eq!(whole.steps(), 6);
        assert_eq!(whole.gradients().sum_of_squares(), 0.0);
    }

    #[test]
    fn what_stands_before_the_text_comes_last_and_is_no_blocks() {
        let config =
            AdapterConfig { prompt_tokens: 2, block_prompt_tokens: 2, ..AdapterConfig::default() };
        let model = model::config(Family::Llama);
        let begin = |blocks, config| {
            let settings = (config, AdamW::default());
            TrainingState::begin(settings, &model, blocks, (0, 0)).unwrap()
        };
        let mut whole = begin(span(0, 3), config.clone());
        let prompt = 2 * model.hidden_size;
        assert_eq!(whole.value_count(), 4 * prompt as u64);
        assert_eq!(whole.stretch(span(1, 3)), prompt as u64..3 * prompt as u64);
        let mut part = begin(span(1, 3), AdapterConfig { prompt_tokens: 0, ..config });
        assert_eq!(part.digest(span(1, 3)), whole.digest(span(1, 3)));
        let gradients = vec![0.5; 2 * prompt];
        part.write(StateKind::Gradients, 0, &gradients).unwrap();
        whole.write(StateKind::Gradients, prompt as u64, &gradients).unwrap();
        for _ in 0..2 {
            whole.add_to_prompt(&vec![1.5; prompt]);
        }
        let read = whole.read(StateKind::Gradients, 3 * prompt as u64..4 * prompt as u64);
        assert_eq!(read.unwrap(), vec![3.0; prompt]);
        let before = whole.clone();
        whole.step(0.1, 1.0).unwrap();
        part.step(0.1, 1.0).unwrap();
        assert_eq!(part.digest(span(1, 3)), whole.digest(span(1, 3)));
        assert_ne!(before.digest(span(1, 3)), whole.digest(span(1, 3)));
        assert!(whole.adapter().prompt().iter().all(|value| *value < 0.0), "it stepped too");
    }

    #[test]
    fn what_no_training_has_is_not_written() {
        let mut all = filled(span(0, 3));
        let before = all.clone();
        let count = all.value_count();
        assert_eq!(all.write(StateKind::Values, count, &[0.0]), Err(WriteError::TooMany { count }));
        assert!(all.write(StateKind::Values, u64::MAX, &[0.0]).is_err());
        assert_eq!(all.write(StateKind::Means, 0, &[f32::NAN]), Err(WriteError::NotFinite));
        assert_eq!(all.write(StateKind::MeanSquares, 0, &[-1.0]), Err(WriteError::NotFinite));
        assert!(all.write(StateKind::Means, 0, &[-1.0]).is_ok());
        assert_eq!(all.read(StateKind::Values, 0..count + 1), None);
        assert_eq!(all.read(StateKind::Values, 3..3), None);
        assert_eq!(before.digest(span(0, 3)), all.digest(span(0, 3)));
    }
}
