//! What an adapter and its optimizer are, within their bounds.

use crate::error::ProtocolViolation;
use crate::generated as v1;
use crate::wire::{self, within};

/// The largest rank that is taken: adapters have 4 to 256, and the memory of a server is bounded by
/// it.
pub const RANK_MAX: u32 = 1_024;

/// The longest prompt that is taken: those that are learned have 8 to 100 tokens.
pub const PROMPT_TOKENS_MAX: u16 = 256;

/// What a dropout is below: nothing would be left.
pub const DROPOUT_END: f32 = 1.0;

/// A matrix of a block that an adapter may add to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetModule {
    /// `self_attn.q_proj`.
    Query,
    /// `self_attn.k_proj`.
    Key,
    /// `self_attn.v_proj`.
    Value,
    /// `self_attn.o_proj`.
    Output,
    /// `mlp.gate_proj`.
    Gate,
    /// `mlp.up_proj`.
    Up,
    /// `mlp.down_proj`.
    Down,
}

impl TargetModule {
    /// Every module, in the order in which a token meets them.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The name that PEFT's `target_modules` has.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }
}

/// Rows and columns of each module's matrix in a block, in the order of [`TargetModule::ALL`]; `None` where
/// blocks have experts in its place.
pub type ModuleShapes = [Option<[u64; 2]>; 7];

/// What an adapter is, beside its values.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSettings {
    /// Rows of A and columns of B: 1 to [`RANK_MAX`]; 0 where there are no matrices.
    pub rank: u32,
    /// What the product of B and A is multiplied by, times the rank or its root; above zero.
    pub alpha: f32,
    /// Whether the product is divided by the root of the rank.
    pub rank_stabilized: bool,
    /// How likely an input of A is dropped; in `[0, 1)`.
    pub dropout: f32,
    /// Each at most once, and none where there are no matrices.
    pub target_modules: Vec<TargetModule>,
    /// Tokens at the beginning of each sequence to whose hidden states every block adds vectors of its
    /// own: at most [`PROMPT_TOKENS_MAX`], and 0 where there are matrices.
    pub block_prompt_tokens: u16,
    /// Whether each row of a matrix, with what is added to it, is scaled to a learned norm (DoRA); only
    /// where there are matrices.
    pub weight_decomposed: bool,
}

impl AdapterSettings {
    /// Whether blocks have values of it: without any they are frozen.
    #[must_use]
    pub const fn has_values(&self) -> bool {
        self.rank > 0 || self.block_prompt_tokens > 0
    }

    /// # Errors
    /// [`MissingModule`] where blocks with these matrices do not have one of its modules.
    pub fn check_modules(&self, shapes: &ModuleShapes) -> Result<(), MissingModule> {
        let shapes = TargetModule::ALL.into_iter().zip(shapes);
        let mut missing = shapes.filter(|(_, shape)| shape.is_none()).map(|(module, _)| module);
        match missing.find(|module| self.target_modules.contains(module)) {
            Some(module) => Err(MissingModule { module }),
            None => Ok(()),
        }
    }

    /// How many values it has in one block of a model with these matrices, whose hidden states have so
    /// many values.
    #[must_use]
    pub fn block_values(&self, shapes: &ModuleShapes, hidden_size: u64) -> u64 {
        let sizes = self.shapes(shapes).map(|[rows, columns]| rows.saturating_add(columns));
        let of_rank = sizes.fold(0, u64::saturating_add);
        let prompt = u64::from(self.block_prompt_tokens).saturating_mul(hidden_size);
        let matrices = of_rank.saturating_mul(u64::from(self.rank));
        matrices.saturating_add(self.block_magnitudes(shapes)).saturating_add(prompt)
    }

    /// How many of them are magnitudes of DoRA: one for each row of a matrix.
    #[must_use]
    pub fn block_magnitudes(&self, shapes: &ModuleShapes) -> u64 {
        if !self.weight_decomposed {
            return 0;
        }
        self.shapes(shapes).map(|[rows, _]| rows).fold(0, u64::saturating_add)
    }

    /// Numbers in one block that who computes with the magnitudes keeps beside them: the norm of each row,
    /// and what the row is multiplied by.
    #[must_use]
    pub fn block_scales(&self, shapes: &ModuleShapes) -> u64 {
        self.block_magnitudes(shapes).saturating_mul(2)
    }

    fn shapes(&self, shapes: &ModuleShapes) -> impl Iterator<Item = [u64; 2]> {
        let shapes = TargetModule::ALL.iter().zip(shapes);
        let shapes = shapes.filter(|(module, _)| self.target_modules.contains(module));
        shapes.filter_map(|(_, shape)| *shape)
    }
}

/// A matrix that an adapter adds to, and that blocks do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("with {}, in whose place these have experts", module.name())]
pub struct MissingModule {
    /// The first such one.
    pub module: TargetModule,
}

/// How an optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// How much of the mean gradient is kept; in `[0, 1)`.
    pub beta1: f64,
    /// How much of the mean square is kept; in `[0, 1)`.
    pub beta2: f64,
    /// What is added to the root of the mean square; above zero.
    pub epsilon: f64,
    /// How much of each value is taken away in a step, times the learning rate; not negative.
    pub weight_decay: f64,
}

/// A row of values of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateKind {
    /// The adapter's own.
    Values,
    /// The optimizer's running means of the gradients.
    Means,
    /// Those of their squares.
    MeanSquares,
    /// The sum of the gradients since the last step, which may be written at any time.
    Gradients,
}

impl From<AdapterSettings> for v1::AdapterSettings {
    fn from(settings: AdapterSettings) -> Self {
        let module = |module: &TargetModule| {
            let module = match module {
                TargetModule::Query => v1::TargetModule::Query,
                TargetModule::Key => v1::TargetModule::Key,
                TargetModule::Value => v1::TargetModule::Value,
                TargetModule::Output => v1::TargetModule::Output,
                TargetModule::Gate => v1::TargetModule::Gate,
                TargetModule::Up => v1::TargetModule::Up,
                TargetModule::Down => v1::TargetModule::Down,
            };
            module.into()
        };
        let modules = settings.target_modules.iter().map(module).collect();
        let (target_modules, decomposed_modules) =
            if settings.weight_decomposed { (Vec::new(), modules) } else { (modules, Vec::new()) };
        Self {
            rank: settings.rank,
            alpha: settings.alpha,
            rank_stabilized: settings.rank_stabilized,
            dropout: settings.dropout,
            target_modules,
            block_prompt_tokens: settings.block_prompt_tokens.into(),
            decomposed_modules,
        }
    }
}

impl TryFrom<v1::AdapterSettings> for AdapterSettings {
    type Error = ProtocolViolation;

    fn try_from(settings: v1::AdapterSettings) -> Result<Self, ProtocolViolation> {
        let v1::AdapterSettings {
            rank,
            alpha,
            rank_stabilized,
            dropout,
            target_modules,
            block_prompt_tokens,
            decomposed_modules,
        } = settings;
        let weight_decomposed = !decomposed_modules.is_empty();
        within(!weight_decomposed || target_modules.is_empty(), "the target modules")?;
        let target_modules = if weight_decomposed { decomposed_modules } else { target_modules };
        let has_matrices = !target_modules.is_empty();
        within(rank <= RANK_MAX && (rank > 0) == has_matrices, "the rank")?;
        within(alpha.is_finite() && alpha >= 0.0 && (alpha > 0.0 || !has_matrices), "alpha")?;
        let block_prompt_tokens = u16::try_from(block_prompt_tokens).unwrap_or(u16::MAX);
        let prompt_max = if has_matrices { 0 } else { PROMPT_TOKENS_MAX };
        within(block_prompt_tokens <= prompt_max, "the tokens of the prompt")?;
        within((0.0..DROPOUT_END).contains(&dropout), "the dropout")?;
        wire::at_most("target modules", TargetModule::ALL.len(), target_modules.len())?;
        let modules = target_modules.into_iter().map(target_module);
        let target_modules: Vec<_> = modules.collect::<Result<_, _>>()?;
        let mut distinct = target_modules.clone();
        distinct.sort_unstable();
        distinct.dedup();
        within(distinct.len() == target_modules.len(), "the target modules")?;
        Ok(Self {
            rank,
            alpha,
            rank_stabilized,
            dropout,
            target_modules,
            block_prompt_tokens,
            weight_decomposed,
        })
    }
}

fn target_module(code: i32) -> Result<TargetModule, ProtocolViolation> {
    match v1::TargetModule::try_from(code) {
        Ok(v1::TargetModule::Query) => Ok(TargetModule::Query),
        Ok(v1::TargetModule::Key) => Ok(TargetModule::Key),
        Ok(v1::TargetModule::Value) => Ok(TargetModule::Value),
        Ok(v1::TargetModule::Output) => Ok(TargetModule::Output),
        Ok(v1::TargetModule::Gate) => Ok(TargetModule::Gate),
        Ok(v1::TargetModule::Up) => Ok(TargetModule::Up),
        Ok(v1::TargetModule::Down) => Ok(TargetModule::Down),
        Ok(v1::TargetModule::Unspecified) | Err(_) => {
            Err(ProtocolViolation::OutOfBounds { field: "a target module" })
        }
    }
}

impl From<AdamWSettings> for v1::AdamWSettings {
    fn from(settings: AdamWSettings) -> Self {
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = settings;
        Self { beta1, beta2, epsilon, weight_decay }
    }
}

impl TryFrom<v1::AdamWSettings> for AdamWSettings {
    type Error = ProtocolViolation;

    fn try_from(settings: v1::AdamWSettings) -> Result<Self, ProtocolViolation> {
        let v1::AdamWSettings { beta1, beta2, epsilon, weight_decay } = settings;
        within((0.0..1.0).contains(&beta1) && (0.0..1.0).contains(&beta2), "a beta of AdamW")?;
        within(epsilon.is_finite() && epsilon > 0.0, "the epsilon of AdamW")?;
        within(weight_decay.is_finite() && weight_decay >= 0.0, "the weight decay")?;
        Ok(Self { beta1, beta2, epsilon, weight_decay })
    }
}

impl StateKind {
    pub(super) fn from_wire(code: i32) -> Result<Self, ProtocolViolation> {
        match v1::StateKind::try_from(code) {
            Ok(v1::StateKind::Values) => Ok(Self::Values),
            Ok(v1::StateKind::Means) => Ok(Self::Means),
            Ok(v1::StateKind::MeanSquares) => Ok(Self::MeanSquares),
            Ok(v1::StateKind::Gradients) => Ok(Self::Gradients),
            Ok(v1::StateKind::Unspecified) | Err(_) => {
                Err(ProtocolViolation::OutOfBounds { field: "a kind of state" })
            }
        }
    }

    pub(super) fn to_wire(self) -> i32 {
        let kind = match self {
            Self::Values => v1::StateKind::Values,
            Self::Means => v1::StateKind::Means,
            Self::MeanSquares => v1::StateKind::MeanSquares,
            Self::Gradients => v1::StateKind::Gradients,
        };
        kind.into()
    }
}
