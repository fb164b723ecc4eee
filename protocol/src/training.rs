//! What trainers and servers say to each other.
//!
//! A trainer opens a link to each server of its route, and on each link one session: the part of its
//! adapter that belongs to the server's blocks, which is its own and nobody else's. Microbatches go
//! forward and back through it, and an optimizer's step ends what they have gathered. Each message has
//! one answer, in the order of the messages; after an error the link closes.
//!
//! A session survives its link for a while, so that a trainer that comes back need not write its state
//! anew, and a step whose answer was lost is not taken twice.

mod settings;
mod wire;

use crate::{ErrorCode, ModelId, SessionId, Span, Tensor};

pub use settings::{
    AdamWSettings, AdapterSettings, DROPOUT_END, MissingModule, ModuleShapes, PROMPT_TOKENS_MAX,
    RANK_MAX, StateKind, TargetModule,
};

/// Most sequences of a microbatch: 64 KiB of header hold three times as many.
pub const SEQUENCES_MAX: usize = 1_024;

/// Most values of a state in one message: 1 MiB, so that what waits of many sessions stays small.
pub const STATE_VALUES_MAX: usize = 1 << 18;

/// What a trainer says.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainerMessage {
    /// Hold a part of an adapter.
    Open(OpenTraining),
    /// Replace some values of its state.
    Write(StateValues),
    /// Take a microbatch through the blocks.
    Forward(ForwardMicrobatch),
    /// Bring its gradient back.
    Backward {
        /// Which.
        microbatch: u64,
        /// Of what left the last block, `[tokens, hidden]`.
        gradient: Tensor,
        /// The adapter's gradients take the place of those that were gathered, and are not added to
        /// them.
        apart: bool,
    },
    /// Say some values of the state.
    Read {
        /// Of which kind.
        kind: StateKind,
        /// The first.
        offset: u64,
        /// How many: 1 to [`STATE_VALUES_MAX`].
        count: u32,
    },
    /// Say some norms of rows of the frozen matrices, with which the magnitudes of DoRA begin. All of a
    /// session stand in one row: block by block, in each block module by module.
    RowNorms {
        /// The first.
        offset: u64,
        /// How many: 1 to [`STATE_VALUES_MAX`].
        count: u32,
    },
    /// Change the adapter by the gradients that were gathered.
    Step(OptimizerStep),
    /// Forget the session.
    Close,
}

/// What a trainer needs of one server.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenTraining {
    /// Its name, drawn by the trainer.
    pub session: SessionId,
    /// The model that the server must serve.
    pub model: ModelId,
    /// The blocks through which microbatches go.
    pub blocks: Span,
    /// What the adapter is, beside its values.
    pub adapter: AdapterSettings,
    /// How its optimizer steps.
    pub optimizer: AdamWSettings,
    /// What the first values are drawn from.
    pub seed: u64,
    /// Optimizer steps that the state has seen which is about to be written.
    pub steps: u64,
    /// Tokens of microbatches between their way forward and their way back.
    pub tokens_max: u32,
}

/// Consecutive values of a state.
///
/// All values of a session stand in one row: block by block, in each block module by module, of each
/// module first A, then B, each row by row, and then the magnitudes of DoRA, where there are any; or of
/// each block its prompt, token by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateValues {
    /// Of which kind.
    pub kind: StateKind,
    /// The first.
    pub offset: u64,
    /// `[values]`, binary32; at least one.
    pub values: Tensor,
}

/// One text of a microbatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingSequence {
    /// Its tokens; at least one.
    pub tokens: u32,
    /// What dropout is drawn from.
    pub dropout_seed: u64,
}

/// Sequences that enter the first block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardMicrobatch {
    /// Its number, which no other has that is under way.
    pub microbatch: u64,
    /// How the rows are divided among sequences.
    pub sequences: Vec<TrainingSequence>,
    /// Nothing is dropped, and nothing is kept for a way back.
    pub evaluate: bool,
    /// `[tokens, hidden]`, as many as the sequences have together.
    pub hidden: Tensor,
}

/// A step of the optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerStep {
    /// One more than the steps that were taken. One that was taken already is answered and not taken
    /// again.
    pub number: u64,
    /// How far it goes; finite and not negative.
    pub learning_rate: f64,
    /// What gradients are multiplied by first; finite and not negative.
    pub factor: f64,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainingAnswer {
    /// The session is open.
    Opened {
        /// Optimizer steps that its state has seen.
        steps: u64,
        /// It was open already: nothing need be written.
        resumed: bool,
        /// How many values it has.
        value_count: u64,
    },
    /// The values were replaced.
    Written,
    /// What left the last block.
    Forwarded {
        /// Of which microbatch.
        microbatch: u64,
        /// `[tokens, hidden]`.
        hidden: Tensor,
    },
    /// The gradient of what entered the first block; those of the adapter were added to the others.
    Backwarded {
        /// Of which microbatch.
        microbatch: u64,
        /// `[tokens, hidden]`.
        gradient: Tensor,
    },
    /// The values that were asked for.
    State(StateValues),
    /// The norms that were asked for.
    RowNorms {
        /// The first.
        offset: u64,
        /// `[norms]`, binary32, finite and not negative; at least one.
        norms: Tensor,
    },
    /// The step is taken.
    Stepped {
        /// Which.
        number: u64,
        /// SHA-256 over the adapter's values as they are now, little-endian.
        digest: [u8; 32],
    },
    /// The session is forgotten.
    Closed,
    /// It is refused or has failed; the link closes.
    Error {
        /// What kind of error it is, and thereby whether a retry helps.
        code: ErrorCode,
        /// The server's own words.
        detail: String,
    },
}
