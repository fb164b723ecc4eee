//! Fine-tuning: an adapter in the blocks of a model, or a prompt before its texts, in this process or on the
//! servers of a swarm.
//!
//! A [`Trainer`] has the whole adapter with its optimizer; each server holds the part of its own blocks
//! and takes the same steps, which a digest of its values proves. So a server that is gone is replaced
//! by one that is given the part anew, and what the step had done so far is computed once more, from
//! what entered the span and the gradient of what left it, with the same bits.
//!
//! | module | what it holds |
//! |---|---|
//! | [`data`] | texts as tokens, and which of them are learned |
//! | [`schedule`] | how far each step goes |
//! | [`run`] | epochs over a data set, with validation |
//! | [`early_stop`] | when no more is to be had |
//! | [`frozen`] | blocks that learn nothing, between layers of one's own |
//! | [`head`] | layers of one's own behind blocks, such as a classifier |
//! | [`prompt`] | learned vectors before the text, and with what they begin |
//! | [`checkpoint`] | a training on disk, to go on with |
//! | [`together`] | trainers who share a run |
//! | `blocks` | where microbatches go forward and back |

mod blocks;
pub mod checkpoint;
pub mod data;
pub mod early_stop;
pub mod frozen;
pub mod head;
pub mod prompt;
pub mod run;
pub mod schedule;
pub mod together;

use std::sync::Arc;

use umbel_coordinator::route::NoRoute;
use umbel_engine::train::optimizer::clip_factor;
use umbel_engine::train::{Adapter, LossError, StepError, TrainError as PassError, TrainingState};
use umbel_protocol::ErrorCode;
use umbel_protocol::frame::FrameError;
use umbel_protocol::training::{StateKind, TrainingSequence};

use crate::model::ClientModel;
pub use blocks::{Blocks, LocalBlocks, RemoteBlocks, RemoteSettings, TrainingHop};
use blocks::{Microbatch, Taken};
use data::Example;
pub use frozen::{FrozenBlocks, FrozenError, Passed};

/// Steps a seed of dropout from one sequence to the next: 2^64 divided by the golden ratio.
const SEED_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// An adapter that is being trained.
pub struct Trainer {
    model: Arc<ClientModel>,
    blocks: Blocks,
    state: Arc<TrainingState>,
    proven: Option<Proven>,
    settings: TrainerSettings,
    /// Sequences that have gone forward, from which follows what each drops.
    sequences: u64,
    /// Microbatches that have.
    microbatches: u64,
    /// A step was begun and not taken.
    unfinished: bool,
}

/// A state that has foretold texts with a loss that is a number. Of the last state nobody knows yet.
#[derive(Debug, Clone)]
pub struct Proven {
    /// The adapter with its optimizer.
    pub state: Arc<TrainingState>,
    /// Sequences that had gone forward.
    pub sequences: u64,
}

/// How a trainer steps, beside its optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainerSettings {
    /// The largest norm of the gradients of a step; larger ones are scaled down to it.
    pub clip: f64,
    /// What dropout is drawn from.
    pub seed: u64,
    /// Tokens that go through the blocks together, those of prompts among them: memory and the length of a
    /// replay grow with them. There are no more than a message to a server holds, wherever the blocks are.
    pub microbatch_tokens: usize,
}

impl Default for TrainerSettings {
    fn default() -> Self {
        Self { clip: 1.0, seed: 0, microbatch_tokens: 1_024 }
    }
}

/// What came of a step, or of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean cross-entropy of the tokens that were to be foretold, before the step.
    pub loss: f64,
    /// How many they were.
    pub targets: usize,
    /// Tokens that went through the blocks.
    pub tokens: usize,
    /// The norm of all gradients, before it was clipped; zero in an evaluation.
    pub gradient_norm: f64,
}

impl Trainer {
    /// A trainer of the state, whose adapter is for all blocks of `model`.
    #[must_use]
    pub fn new(
        model: Arc<ClientModel>,
        blocks: Blocks,
        state: TrainingState,
        settings: TrainerSettings,
    ) -> Self {
        let state = Arc::new(state);
        let (proven, unfinished) = (None, false);
        Self { model, blocks, state, proven, settings, sequences: 0, microbatches: 0, unfinished }
    }

    /// Counts as having taken so many sequences through: where a checkpoint was taken.
    #[must_use]
    pub fn after_sequences(self, sequences: u64) -> Self {
        Self { sequences, ..self }
    }

    /// The adapter as it is after the last step.
    #[must_use]
    pub fn adapter(&self) -> &Adapter {
        self.state.adapter()
    }

    /// The adapter with its optimizer after the last step.
    #[must_use]
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// The state before the last step, once there was one.
    #[must_use]
    pub const fn proven(&self) -> Option<&Proven> {
        self.proven.as_ref()
    }

    /// Sequences that have gone forward.
    #[must_use]
    pub const fn sequences(&self) -> u64 {
        self.sequences
    }

    /// Who computes which blocks, on each route; the peer is `None` for this process.
    #[must_use]
    pub fn routes(&self) -> Vec<Vec<TrainingHop>> {
        self.blocks.routes()
    }

    /// Servers that were given up so far, and replaced where there was another.
    #[must_use]
    pub fn replaced(&self) -> usize {
        self.blocks.replaced()
    }

    /// Has a new adapter begin with what only those know who have the frozen weights: the magnitudes of
    /// DoRA. Steps and evaluations begin so by themselves; it is for who looks at the values before.
    ///
    /// # Errors
    /// [`TrainError`] where they cannot be had.
    pub async fn begin(&mut self) -> Result<(), TrainError> {
        self.blocks.begin_magnitudes(&mut self.state).await
    }

    /// Learns from a batch: one step of the optimizer.
    ///
    /// # Errors
    /// [`TrainError`]; then nothing has changed, and another step may be tried.
    pub async fn step(
        &mut self,
        batch: &[&Example],
        learning_rate: f64,
    ) -> Result<StepReport, TrainError> {
        let (microbatches, sequences) = self.microbatches(batch, self.state.steps() + 1)?;
        // The future of a step may have been dropped on its way.
        self.drop_gradients();
        self.begin().await?;
        self.unfinished = true;
        let stepped = self.try_step(batch, microbatches, learning_rate).await;
        if stepped.is_err() {
            self.drop_gradients();
        }
        let (state, report) = stepped?;
        self.unfinished = false;
        self.proven = Some(Proven { state, sequences: self.sequences });
        self.sequences = sequences;
        Ok(report)
    }

    /// Drops what an unfinished step has left.
    fn drop_gradients(&mut self) {
        if std::mem::replace(&mut self.unfinished, false) {
            Arc::make_mut(&mut self.state).reset();
        }
    }

    /// Takes a step, and returns the state before it.
    async fn try_step(
        &mut self,
        batch: &[&Example],
        mut microbatches: Vec<Microbatch>,
        learning_rate: f64,
    ) -> Result<(Arc<TrainingState>, StepReport), TrainError> {
        let targets: usize = batch.iter().map(|example| example.target_count()).sum();
        #[expect(clippy::cast_possible_truncation, reason = "gradients are binary32")]
        let weight = (1.0 / targets.max(1) as f64) as f32;
        let sum =
            self.blocks.learn(&self.model, &mut self.state, &mut microbatches, weight).await?;
        if !self.state.adapter().prompt().is_empty() {
            let state = Arc::make_mut(&mut self.state);
            // In the order of the microbatches, whatever order they came back in.
            microbatches.iter().for_each(|of| state.add_to_prompt(&of.prompt_gradient()));
        }
        let loss = sum / targets.max(1) as f64;
        let gradient_norm = self.state.gradients().sum_of_squares().sqrt();
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::Diverged { loss, gradient_norm });
        }
        let tokens = tokens_of(&microbatches);
        let factor = clip_factor(gradient_norm * gradient_norm, self.settings.clip);
        let before = Arc::clone(&self.state);
        let mut after = TrainingState::clone(&before);
        after.step(learning_rate, factor)?;
        let taken = Taken { before: &before, after: &after, learning_rate, factor };
        self.blocks.take(taken).await?;
        self.state = Arc::new(after);
        Ok((before, StepReport { loss, targets, tokens, gradient_norm }))
    }

    /// How well texts are foretold; nothing is learned from them, and nothing is dropped.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub async fn evaluate(&mut self, batch: &[&Example]) -> Result<StepReport, TrainError> {
        self.begin().await?;
        // What an evaluation takes through changes nothing of what is dropped later.
        let (mut microbatches, _) = self.microbatches(batch, self.state.steps())?;
        let targets: usize = batch.iter().map(|example| example.target_count()).sum();
        let sum = self.blocks.evaluate(&self.model, &self.state, &mut microbatches).await?;
        let tokens = tokens_of(&microbatches);
        let loss = sum / targets.max(1) as f64;
        let gradient_norm = 0.0;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { loss, gradient_norm });
        }
        Ok(StepReport { loss, targets, tokens, gradient_norm })
    }

    /// All values of the adapter, in one row.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        let count = self.state.value_count();
        self.state.read(StateKind::Values, 0..count).expect("there are as many")
    }

    /// Goes on from other values of the adapter, with the optimizer as it is.
    ///
    /// # Errors
    /// [`TrainError`] where they are not of this adapter, or the servers of the blocks cannot take them up.
    pub async fn adopt(&mut self, values: &[f32]) -> Result<(), TrainError> {
        if values.len() as u64 != self.state.value_count() {
            return Err(TrainError::OtherValues);
        }
        self.drop_gradients();
        let written = Arc::make_mut(&mut self.state).write(StateKind::Values, 0, values);
        written.map_err(|_| TrainError::OtherValues)?;
        self.blocks.adopt(&self.state).await
    }

    /// Lets servers forget their parts.
    pub async fn close(self) {
        self.blocks.close().await;
    }

    /// A batch in parts of as many tokens as go through together, and how many sequences will have gone
    /// forward with it.
    fn microbatches(
        &mut self,
        batch: &[&Example],
        step: u64,
    ) -> Result<(Vec<Microbatch>, u64), TrainError> {
        let mut parts: Vec<Microbatch> = Vec::new();
        let mut sequences = self.sequences;
        let prompt_tokens = self.state.adapter().config().prompt_tokens;
        // The bits of a sum follow from its parts, so that these are the same in one process.
        let message_max = RemoteBlocks::tokens_max(&self.model);
        let together = u32::try_from(self.settings.microbatch_tokens).unwrap_or(u32::MAX);
        let tokens_max = together.min(message_max);
        for example in batch {
            if example.target_count() == 0 {
                continue;
            }
            let tokens = u32::try_from(prompt_tokens + example.input_count());
            let tokens =
                tokens.map_err(|_| TrainError::TooLong { tokens: u32::MAX, max: message_max })?;
            // A text that is longer than those that go together goes alone.
            if parts.last().is_none_or(|part| !part.has_room(tokens, tokens_max)) {
                self.microbatches += 1;
                parts.push(Microbatch::new(self.microbatches).behind(prompt_tokens));
            }
            sequences += 1;
            let dropout_seed = self.settings.seed.wrapping_add(sequences.wrapping_mul(SEED_STEP));
            let sequence = TrainingSequence { tokens, dropout_seed };
            let part = parts.last_mut().expect("one was pushed");
            part.add(sequence, example.inputs(), example.targets());
        }
        if parts.is_empty() {
            return Err(TrainError::NothingToLearn { step });
        }
        let (ends, prompt) = (self.model.ends(), self.state.adapter().prompt());
        for part in &mut parts {
            part.embed(ends, prompt)?;
        }
        Ok((parts, sequences))
    }
}

/// Tokens of all microbatches, with those of prompts.
fn tokens_of(microbatches: &[Microbatch]) -> usize {
    microbatches.iter().map(|of| of.tokens() as usize).sum()
}

/// A training that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Values that are of no adapter of this shape.
    #[error("the values are not of this adapter")]
    OtherValues,
    /// Norms of rows that are not as many as the adapter has magnitudes.
    #[error("the magnitudes of the adapter cannot begin: the blocks are not those of its model")]
    Magnitudes,
    /// No text of a batch has a token to foretell.
    #[error("no token to learn in the batch of step {step}")]
    NothingToLearn {
        /// Which step.
        step: u64,
    },
    /// A text that no server takes, alone or with others: it can be shorter, or the blocks in this process.
    #[error("{tokens} tokens go through together; servers are sent {max} at most")]
    TooLong {
        /// With those of prompts.
        tokens: u32,
        /// The most, as servers were told, or as a message holds.
        max: u32,
    },
    /// Something was to be sent to a server that is no message.
    #[error("a message to a server is larger than any may be")]
    Message(#[source] FrameError),
    /// The loss or a gradient is infinite or no number: go back to a state that is [`Proven`], with a
    /// lower learning rate.
    #[error("the training has diverged (loss {loss}, gradient norm {gradient_norm})")]
    Diverged {
        /// The loss.
        loss: f64,
        /// The norm of the gradients; zero in an evaluation.
        gradient_norm: f64,
    },
    /// The optimizer did not take the step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A token is not in the vocabulary.
    #[error(transparent)]
    Ends(#[from] umbel_engine::EndsError),
    /// The end of the model could not be computed.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The blocks could not be computed here.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// Some blocks are served by nobody who would train on them.
    #[error("nobody is left to train on: {last_failure}")]
    NoRoute {
        /// What is missing.
        #[source]
        source: NoRoute,
        /// Why the last server was given up.
        last_failure: String,
    },
    /// Every server that was asked has too little room for this training.
    #[error(
        "no server has room for this training ({detail}): a lower rank, fewer target modules or fewer \
         tokens at once take less, and a server with more memory allows more"
    )]
    NoRoom {
        /// What the last one said.
        detail: String,
    },
    /// Two servers refuse it with a code that says that every server would.
    #[error("{code}: {detail}")]
    Refused {
        /// What kind of error it is.
        code: ErrorCode,
        /// The second server's own words.
        detail: String,
    },
    /// Servers fail faster than they can be replaced.
    #[error("{count} servers failed in one step, the last of them because of: {last_failure}")]
    TooManyFailures {
        /// How many.
        count: usize,
        /// Why the last one was given up.
        last_failure: String,
    },
}
