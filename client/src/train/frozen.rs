//! Blocks of a swarm between layers of one's own: forward, and gradients back through them.
//!
//! The blocks themselves learn nothing. Whatever stands before them, such as a prompt of learned
//! vectors, or behind them, such as a classifier, is computed and learned by the caller.
//!
//! Servers keep nothing between the way forward and the way back: what entered each of them stays in
//! [`Passed`] on this side, so that a result whose way back is never asked for costs them nothing, and
//! a server that is gone by then is replaced. For the way back all of a route go forward once more, at
//! the same time.

use std::collections::BTreeMap;
use std::sync::Arc;

use umbel_engine::HiddenStates;
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, AdapterError, TrainingState};
use umbel_protocol::Span;
use umbel_protocol::training::TrainingSequence;

use super::TrainError;
use super::blocks::{Microbatch, RemoteBlocks, RemoteSettings, TrainingHop};
use crate::model::ClientModel;
use crate::swarm::Swarm;

/// Some or all blocks of a model on the servers of a swarm.
pub struct FrozenBlocks {
    blocks: RemoteBlocks,
    state: Arc<TrainingState>,
    hidden_size: usize,
    tokens_max: u32,
    /// Tokens of the longest sequence.
    length_max: u32,
    /// Microbatches so far, each of which has its own number.
    microbatches: u64,
}

/// What has gone forward through [`FrozenBlocks`], and can be brought back any number of times.
pub struct Passed {
    parts: Vec<Part>,
    output: HiddenStates,
}

/// What went through together.
struct Part {
    sequences: Vec<TrainingSequence>,
    /// What entered the first block of each server, and what left the last one.
    entering: BTreeMap<u32, HiddenStates>,
}

impl Passed {
    /// What left the last block, `[tokens, hidden]`.
    #[must_use]
    pub const fn output(&self) -> &HiddenStates {
        &self.output
    }
}

impl FrozenBlocks {
    /// Opens a route of servers for `blocks`, through which `tokens_max` tokens go together at most, and no
    /// more than [`RemoteBlocks::tokens_max`]: no sequence can be longer, nor than the model's context, and
    /// their memory grows with it.
    ///
    /// With an adapter, which must have these blocks and no prompt, they compute as it says. A part of an
    /// adapter ([`Adapter::part`]) has no prompt: then its vectors are the caller's to put before the texts.
    ///
    /// # Errors
    /// [`FrozenError`] where the model has no such blocks, the adapter has a prompt, or no route of servers
    /// covers them.
    pub async fn open(
        swarm: Arc<Swarm>,
        model: &ClientModel,
        blocks: Span,
        adapter: Option<&Adapter>,
        tokens_max: u32,
    ) -> Result<Self, FrozenError> {
        if let Some(tokens) = adapter.map(|adapter| adapter.config().prompt_tokens)
            && tokens > 0
        {
            return Err(FrozenError::Prompt { tokens });
        }
        let state = match adapter {
            Some(adapter) => TrainingState::new(adapter.part(blocks)?, AdamW::default()),
            None => {
                // It has no values, so that servers hold nothing but what is under way.
                let nothing = AdapterConfig::default();
                let adapter = Adapter::begin(nothing, model.config(), blocks, 0)?;
                TrainingState::new(adapter, AdamW::default())
            }
        };
        let tokens_max = tokens_max.min(RemoteBlocks::tokens_max(model));
        let context = u32::try_from(model.config().context_tokens).unwrap_or(u32::MAX);
        let settings = RemoteSettings { tokens_max, ..RemoteSettings::default() };
        let hidden_size = model.config().hidden_size;
        let blocks = RemoteBlocks::open(swarm, model, &state, settings).await?;
        let length_max = tokens_max.min(context);
        let state = Arc::new(state);
        Ok(Self { blocks, state, hidden_size, tokens_max, length_max, microbatches: 0 })
    }

    /// Takes sequences of these lengths through the blocks, the first token of each at position 0.
    /// `hidden` has a row for each token, sequence after sequence.
    ///
    /// # Errors
    /// [`FrozenError`].
    pub async fn forward(
        &mut self,
        lengths: &[u32],
        hidden: &HiddenStates,
    ) -> Result<Passed, FrozenError> {
        let mut microbatches = self.divide(lengths, hidden)?;
        self.blocks.forward(None, &self.state, &mut microbatches).await?;
        let left: Vec<_> = microbatches.iter().map(|of| of.last_known().clone()).collect();
        let output = HiddenStates::concat(&left).expect("all are of one model");
        let part = |of: Microbatch| Part { sequences: of.sequences, entering: of.entering };
        Ok(Passed { parts: microbatches.into_iter().map(part).collect(), output })
    }

    /// Brings the gradient of what left the last block back to what entered the first.
    ///
    /// # Errors
    /// [`FrozenError`].
    pub async fn backward(
        &mut self,
        passed: &Passed,
        gradient: &HiddenStates,
    ) -> Result<HiddenStates, FrozenError> {
        let expected = [passed.output.token_count(), self.hidden_size];
        check_shape(gradient, expected)?;
        let (mut microbatches, mut row) = (Vec::new(), 0);
        for part in &passed.parts {
            let mut microbatch = self.next_microbatch();
            microbatch.sequences.clone_from(&part.sequences);
            microbatch.entering.clone_from(&part.entering);
            let rows = row..row + microbatch.tokens() as usize;
            row = rows.end;
            let rows = gradient.rows(rows).expect("the shape was checked");
            microbatch.gradients.insert(self.state.adapter().blocks().end(), rows);
            microbatches.push(microbatch);
        }
        self.blocks.bring_back(&self.state, &mut microbatches).await?;
        let back: Vec<_> = microbatches.iter().map(|of| of.first_gradient().clone()).collect();
        Ok(HiddenStates::concat(&back).expect("all are of one model"))
    }

    /// Who computes which blocks.
    #[must_use]
    pub fn route(&self) -> Vec<TrainingHop> {
        self.blocks.routes().into_iter().flatten().collect()
    }

    /// Servers that were given up so far, and replaced.
    #[must_use]
    pub const fn replaced(&self) -> usize {
        self.blocks.replaced()
    }

    /// Values of a token between blocks.
    #[must_use]
    pub const fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Which blocks they are.
    #[must_use]
    pub fn span(&self) -> Span {
        self.state.adapter().blocks()
    }

    /// Lets servers forget their parts.
    pub async fn close(self) {
        self.blocks.close().await;
    }

    /// Divides sequences among microbatches of as many tokens as go through together.
    fn divide(
        &mut self,
        lengths: &[u32],
        hidden: &HiddenStates,
    ) -> Result<Vec<Microbatch>, FrozenError> {
        let tokens: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        let expected = [usize::try_from(tokens).unwrap_or(usize::MAX), self.hidden_size];
        check_shape(hidden, expected)?;
        let start = self.state.adapter().blocks().start();
        let (mut parts, mut row) = (Vec::<Microbatch>::new(), 0);
        for &length in lengths {
            if length == 0 || length > self.length_max {
                return Err(FrozenError::Length { tokens: length, max: self.length_max });
            }
            if parts.last().is_none_or(|part| !part.has_room(length, self.tokens_max)) {
                parts.push(self.next_microbatch());
            }
            let part = parts.last_mut().expect("one was pushed");
            part.sequences.push(TrainingSequence { tokens: length, dropout_seed: 0 });
        }
        for part in &mut parts {
            let rows = row..row + part.tokens() as usize;
            row = rows.end;
            part.entering.insert(start, hidden.rows(rows).expect("the shape was checked"));
        }
        Ok(parts)
    }

    fn next_microbatch(&mut self) -> Microbatch {
        self.microbatches += 1;
        Microbatch::new(self.microbatches)
    }
}

fn check_shape(tensor: &HiddenStates, expected: [usize; 2]) -> Result<(), FrozenError> {
    let found = [tensor.token_count(), tensor.hidden_size()];
    if found == expected { Ok(()) } else { Err(FrozenError::Shape { expected, found }) }
}

/// A pass through blocks of a swarm that was not computed.
#[derive(Debug, thiserror::Error)]
pub enum FrozenError {
    /// A sequence that is empty or too long.
    #[error(
        "a sequence of {tokens} tokens: 1 to {max} go through together here, as many as the blocks were \
         opened for and a message holds"
    )]
    Length {
        /// Its tokens.
        tokens: u32,
        /// The most.
        max: u32,
    },
    /// Another shape than the sequences and the model have.
    #[error("the tensor is {found:?}; the sequences and the model make it {expected:?}")]
    Shape {
        /// Tokens, and values of each.
        expected: [usize; 2],
        /// Those of the tensor.
        found: [usize; 2],
    },
    /// Without its vectors before the text, the adapter would say something else.
    #[error(
        "the adapter has {tokens} learned vectors before each text, which blocks do not add: only one without \
         a prompt will do"
    )]
    Prompt {
        /// How many.
        tokens: usize,
    },
    /// The model has no such blocks, or the adapter lacks them.
    #[error(transparent)]
    Blocks(#[from] AdapterError),
    /// Servers could not compute it.
    #[error(transparent)]
    Train(#[from] TrainError),
}
