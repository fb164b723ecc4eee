//! Adapters: what a client trains, in binary32.

mod error;
mod parameters;
mod peft;
mod values;

use umbel_protocol::Span;
use umbel_shard::ModelConfig;

use super::dropout::stream_of;
use crate::noise::Stream;
pub use error::AdapterError;
pub use parameters::{LoraMatrices, Parameters, Place};
pub use peft::{PEFT_CONFIG_FILE, PEFT_WEIGHTS_FILE, PeftFiles};
pub use umbel_protocol::training::TargetModule;

/// The largest rank that is taken: adapters have 4 to 256, and the memory of a server is bounded by
/// it.
pub const RANK_MAX: usize = umbel_protocol::training::RANK_MAX as usize;

/// The longest prompt that is learned: prompts have 8 to 100 tokens, and each takes its place in the
/// model's context.
pub const PROMPT_TOKENS_MAX: usize = umbel_protocol::training::PROMPT_TOKENS_MAX as usize;

/// Rows and columns of a module's matrix in a model; `None` where it has experts in its place.
#[must_use]
pub fn module_shape(module: TargetModule, config: &ModelConfig) -> Option<[usize; 2]> {
    let sizes = ModuleSizes {
        hidden: config.hidden_size,
        intermediate: config.experts.is_none().then_some(config.intermediate_size),
        queries: config.head_count * config.head_size,
        keys: config.kv_head_count * config.head_size,
    };
    sizes.shape(module)
}

/// The features that the modules of a block take and make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModuleSizes {
    pub(crate) hidden: usize,
    /// Inside the MLP; `None` where experts stand in its place.
    pub(crate) intermediate: Option<usize>,
    pub(crate) queries: usize,
    /// Of the keys, and as many of the values.
    pub(crate) keys: usize,
}

impl ModuleSizes {
    /// Rows and columns of a module's matrix; `None` where blocks do not have it.
    pub(crate) fn shape(self, module: TargetModule) -> Option<[usize; 2]> {
        let Self { hidden, intermediate, queries, keys } = self;
        match module {
            TargetModule::Query => Some([queries, hidden]),
            TargetModule::Key | TargetModule::Value => Some([keys, hidden]),
            TargetModule::Output => Some([hidden, queries]),
            TargetModule::Gate | TargetModule::Up => Some([intermediate?, hidden]),
            TargetModule::Down => Some([hidden, intermediate?]),
        }
    }
}

/// What an adapter is, beside its values: matrices in the blocks (LoRA), or a prompt of learned vectors.
///
/// The default has no part at all, as blocks have that are frozen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AdapterConfig {
    /// Rows of A and columns of B: 1 to [`RANK_MAX`]; 0 where there are no matrices.
    pub rank: usize,
    /// What the product of B and A is multiplied by, times the rank (or its root).
    pub alpha: f32,
    /// Whether the product is divided by the root of the rank (Kalajdzievski 2023,
    /// <https://arxiv.org/abs/2312.03732>) and not by the rank.
    pub rank_stabilized: bool,
    /// How likely an input of A is dropped during training: in [0, 1).
    pub dropout: f32,
    /// Whether rows of the matrices with what is added to them are scaled to learned norms (DoRA; Liu et al.
    /// 2024, <https://arxiv.org/abs/2402.09353>). Only with matrices.
    pub weight_decomposed: bool,
    /// The matrices that it adds to; each at most once.
    pub target_modules: Vec<TargetModule>,
    /// Learned vectors that stand before the text (Lester et al. 2021,
    /// <https://arxiv.org/abs/2104.08691>): at most [`PROMPT_TOKENS_MAX`]. They are whoever's who embeds
    /// the text, and no block's.
    pub prompt_tokens: usize,
    /// Tokens at the beginning of each sequence to whose hidden states every block adds learned vectors
    /// of its own (deep prompts, as Petals has them): at most [`PROMPT_TOKENS_MAX`].
    pub block_prompt_tokens: usize,
}

impl AdapterConfig {
    /// What the product of B and A is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// Whether blocks have a part of it: else it is nothing to who serves them.
    #[must_use]
    pub const fn adapts_blocks(&self) -> bool {
        !self.target_modules.is_empty() || self.block_prompt_tokens > 0
    }

    /// # Errors
    /// [`AdapterError::PromptTokens`] where the model has no room for the prompt and something behind it.
    fn check_context(&self, model: &ModelConfig) -> Result<(), AdapterError> {
        let (found, max) = (self.prompt_tokens, model.context_tokens.saturating_sub(1));
        if found > max { Err(AdapterError::PromptTokens { found, max }) } else { Ok(()) }
    }

    /// # Errors
    /// [`AdapterError::Experts`] where the model has experts in the place of a matrix.
    fn check_modules(&self, model: &ModelConfig) -> Result<(), AdapterError> {
        let mut modules = self.target_modules.iter();
        match modules.find(|module| module_shape(**module, model).is_none()) {
            Some(&module) => Err(AdapterError::Experts { module }),
            None => Ok(()),
        }
    }

    /// # Errors
    /// [`AdapterError`] where a value is out of its bounds.
    fn check(&self) -> Result<(), AdapterError> {
        let longest = self.prompt_tokens.max(self.block_prompt_tokens);
        if longest > PROMPT_TOKENS_MAX {
            return Err(AdapterError::PromptTokens { found: longest, max: PROMPT_TOKENS_MAX });
        }
        if self.rank == 0 && self.target_modules.is_empty() {
            if self.weight_decomposed {
                return Err(AdapterError::NoRows);
            }
            return Ok(());
        }
        if longest > 0 {
            return Err(AdapterError::TwoKinds);
        }
        if !(1..=RANK_MAX).contains(&self.rank) {
            return Err(AdapterError::Rank { found: self.rank, max: RANK_MAX });
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return Err(AdapterError::Alpha { found: self.alpha });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(AdapterError::Dropout { found: self.dropout });
        }
        let mut modules = self.target_modules.clone();
        modules.sort_unstable();
        modules.dedup();
        if modules.is_empty() || modules.len() != self.target_modules.len() {
            return Err(AdapterError::TargetModules);
        }
        Ok(())
    }
}

/// The part of an adapter that belongs to some blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    config: AdapterConfig,
    blocks: Span,
    pub(super) parameters: Parameters,
}

impl Adapter {
    /// A new adapter, which changes nothing yet: A is uniform between plus and minus the inverse root
    /// of its columns, as PEFT begins, and B is zero. The values are a function of `seed` and their
    /// places, so that servers begin alike however the blocks are split among them. Prompts and the
    /// magnitudes of DoRA are zero: see [`Adapter::set_prompt`] and [`Adapter::set_magnitudes`].
    ///
    /// # Errors
    /// [`AdapterError`] where `config` is out of bounds or `model` has no such blocks.
    pub fn begin(
        config: AdapterConfig,
        model: &ModelConfig,
        blocks: Span,
        seed: u64,
    ) -> Result<Self, AdapterError> {
        let mut blank = Self::blank(config, model, blocks)?;
        for (&(block, module), matrices) in &mut blank.parameters.matrices {
            let [_, columns] = matrices.shape();
            let bound = 1.0 / (columns as f32).sqrt();
            let noise = Stream::of(seed, stream_of(block, module));
            let places = (0..).zip(&mut matrices.a);
            places.for_each(|(index, place)| *place = noise.signed(index) * bound);
        }
        Ok(blank)
    }

    /// The vectors that stand before the text, `[tokens, hidden]`; empty where there are none.
    #[must_use]
    pub fn prompt(&self) -> &[f32] {
        &self.parameters.prompt
    }

    /// Replaces the vectors that stand before the text: a training goes best from those of tokens.
    ///
    /// # Errors
    /// [`AdapterError::PromptValues`] where they are not as many as there were.
    pub fn set_prompt(&mut self, values: &[f32]) -> Result<(), AdapterError> {
        let (expected, found) = (self.parameters.prompt.len(), values.len());
        if found != expected {
            return Err(AdapterError::PromptValues { expected, found });
        }
        self.parameters.prompt.copy_from_slice(values);
        Ok(())
    }

    /// What it is, beside its values.
    #[must_use]
    pub const fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The blocks that it has matrices for.
    #[must_use]
    pub const fn blocks(&self) -> Span {
        self.blocks
    }

    /// Its values.
    #[must_use]
    pub const fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The part of some of its blocks, to none of which the vectors before the text belong.
    ///
    /// # Errors
    /// [`AdapterError::NoSuchBlocks`] where it lacks one of them.
    pub fn part(&self, blocks: Span) -> Result<Self, AdapterError> {
        if !self.blocks.covers(blocks) {
            return Err(AdapterError::NoSuchBlocks { blocks, known: self.blocks });
        }
        let config = AdapterConfig { prompt_tokens: 0, ..self.config.clone() };
        Ok(Self { config, blocks, parameters: self.parameters.part(blocks) })
    }

    /// The adapter whose parts follow each other: what several servers have trained.
    ///
    /// # Errors
    /// [`AdapterError::Parts`] where one does not follow the other or is of another adapter.
    pub fn join(parts: &[Self]) -> Result<Self, AdapterError> {
        let [first, rest @ ..] = parts else {
            return Err(AdapterError::Parts);
        };
        let mut whole = first.clone();
        for part in rest {
            if part.config != whole.config || part.blocks.start() != whole.blocks.end() {
                return Err(AdapterError::Parts);
            }
            whole.blocks = Span::new(whole.blocks.start(), part.blocks.end())
                .map_err(|_| AdapterError::Parts)?;
            whole.parameters.extend(part.parameters.clone());
        }
        Ok(whole)
    }
}

/// The places of an adapter's matrices.
fn places(config: &AdapterConfig, blocks: Span) -> impl Iterator<Item = Place> + use<'_> {
    blocks.blocks().flat_map(|block| config.target_modules.iter().map(move |&of| (block, of)))
}

fn check_blocks(model: &ModelConfig, blocks: Span) -> Result<(), AdapterError> {
    match Span::new(0, model.block_count) {
        Ok(known) if !known.covers(blocks) => Err(AdapterError::NoSuchBlocks { blocks, known }),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
