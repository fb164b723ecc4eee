//! Adapters: what a client trains, in binary32.

mod error;
mod peft;
mod values;

use std::collections::BTreeMap;

use umbel_protocol::Span;
use umbel_shard::ModelConfig;

use super::dropout::{bits_at, stream_of};
pub use error::AdapterError;
pub use peft::{PEFT_CONFIG_FILE, PEFT_WEIGHTS_FILE, PeftFiles};

/// The largest rank that is taken: adapters have 4 to 256, and the memory of a server is bounded by
/// it.
pub const RANK_MAX: usize = umbel_protocol::training::RANK_MAX as usize;

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

    /// The part of the block that it is in.
    const fn parent(self) -> &'static str {
        match self {
            Self::Query | Self::Key | Self::Value | Self::Output => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }

    /// Rows and columns of its matrix in a model.
    #[must_use]
    pub const fn shape(self, config: &ModelConfig) -> [usize; 2] {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.head_count * config.head_size;
        let keys = config.kv_head_count * config.head_size;
        match self {
            Self::Query => [queries, hidden],
            Self::Key | Self::Value => [keys, hidden],
            Self::Output => [hidden, queries],
            Self::Gate | Self::Up => [inner, hidden],
            Self::Down => [hidden, inner],
        }
    }
}

/// What an adapter is, beside its values.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rows of A and columns of B: 1 to [`RANK_MAX`].
    pub rank: usize,
    /// What the product of B and A is multiplied by, times the rank (or its root).
    pub alpha: f32,
    /// Whether the product is divided by the root of the rank (Kalajdzievski 2023,
    /// <https://arxiv.org/abs/2312.03732>) and not by the rank.
    pub rank_stabilized: bool,
    /// How likely an input of A is dropped during training: in [0, 1).
    pub dropout: f32,
    /// The matrices that it adds to; each at most once.
    pub target_modules: Vec<TargetModule>,
}

impl AdapterConfig {
    /// What the product of B and A is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// # Errors
    /// [`AdapterError`] where a value is out of its bounds.
    fn check(&self) -> Result<(), AdapterError> {
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

/// The two matrices that an adapter has for one module of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraMatrices {
    /// `[rank, columns]`, row by row.
    pub(super) a: Vec<f32>,
    /// `[rows, rank]`, row by row.
    pub(super) b: Vec<f32>,
    rank: usize,
}

impl LoraMatrices {
    pub(super) fn new(a: Vec<f32>, b: Vec<f32>, rank: usize) -> Self {
        assert!(a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "whole rows");
        Self { a, b, rank }
    }

    /// A, `[rank, columns]`, row by row.
    #[must_use]
    pub fn a(&self) -> &[f32] {
        &self.a
    }

    /// B, `[rows, rank]`, row by row.
    #[must_use]
    pub fn b(&self) -> &[f32] {
        &self.b
    }

    pub(crate) const fn rank(&self) -> usize {
        self.rank
    }

    /// Rows and columns of the matrix that they add to.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.b.len() / self.rank, self.a.len() / self.rank]
    }

    fn zeros_like(&self) -> Self {
        Self { a: vec![0.0; self.a.len()], b: vec![0.0; self.b.len()], rank: self.rank }
    }
}

/// Where a pair of matrices stands: a block, and a module in it.
pub type Place = (u32, TargetModule);

/// Pairs of matrices by their places: the values of an adapter, or gradients of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters(pub(super) BTreeMap<Place, LoraMatrices>);

impl Parameters {
    /// The pairs, in the order of blocks and of modules within a block.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &LoraMatrices)> {
        self.0.iter().map(|(place, matrices)| (*place, matrices))
    }

    /// The pair of `module` in `block`.
    #[must_use]
    pub fn at(&self, block: u32, module: TargetModule) -> Option<&LoraMatrices> {
        self.0.get(&(block, module))
    }

    /// The sum of the squares of all values, from which the norm over all servers follows.
    #[must_use]
    pub fn sum_of_squares(&self) -> f64 {
        self.sum_of_squares_pausing(&|| ())
    }

    /// As [`Self::sum_of_squares`], with `pause` behind each pair of matrices.
    pub(super) fn sum_of_squares_pausing(&self, pause: &dyn Fn()) -> f64 {
        let squares = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let of_pair = |matrices: &LoraMatrices| {
            pause();
            squares(&matrices.a) + squares(&matrices.b)
        };
        self.0.values().map(of_pair).sum()
    }

    /// Adds `other`, which has the same places and shapes: gradients of another microbatch.
    ///
    /// # Panics
    /// Where they differ: both come from one adapter.
    pub fn add(&mut self, other: &Self) {
        assert!(self.0.keys().eq(other.0.keys()), "both are of one adapter");
        for (matrices, other) in self.0.values_mut().zip(other.0.values()) {
            let pairs = [(&mut matrices.a, &other.a), (&mut matrices.b, &other.b)];
            for (values, other) in pairs {
                assert_eq!(values.len(), other.len(), "both are of one adapter");
                values.iter_mut().zip(other).for_each(|(value, other)| *value += other);
            }
        }
    }

    pub(super) fn zeros_like(&self) -> Self {
        Self(self.0.iter().map(|(&place, matrices)| (place, matrices.zeros_like())).collect())
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
    /// places, so that servers begin alike however the blocks are split among them.
    ///
    /// # Errors
    /// [`AdapterError`] where `config` is out of bounds or `model` has no such blocks.
    pub fn begin(
        config: AdapterConfig,
        model: &ModelConfig,
        blocks: Span,
        seed: u64,
    ) -> Result<Self, AdapterError> {
        config.check()?;
        check_blocks(model, blocks)?;
        let matrices = |(block, module): Place| {
            let [rows, columns] = module.shape(model);
            let bound = 1.0 / (columns as f32).sqrt();
            let stream = stream_of(block, module);
            let value = |index| {
                let bits = bits_at(seed, stream, index) >> 40;
                (bits as f32 / (1 << 23) as f32 - 1.0) * bound
            };
            let a = (0..(config.rank * columns) as u64).map(value).collect();
            LoraMatrices::new(a, vec![0.0; rows * config.rank], config.rank)
        };
        let places = places(&config, blocks);
        let parameters = Parameters(places.map(|place| (place, matrices(place))).collect());
        Ok(Self { config, blocks, parameters })
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

    /// The part of some of its blocks.
    ///
    /// # Errors
    /// [`AdapterError::NoSuchBlocks`] where it lacks one of them.
    pub fn part(&self, blocks: Span) -> Result<Self, AdapterError> {
        if !self.blocks.covers(blocks) {
            return Err(AdapterError::NoSuchBlocks { blocks, known: self.blocks });
        }
        let matrices = self.parameters.0.iter().filter(|((block, _), _)| blocks.contains(*block));
        let matrices = matrices.map(|(&place, matrices)| (place, matrices.clone()));
        Ok(Self { config: self.config.clone(), blocks, parameters: Parameters(matrices.collect()) })
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
            let matrices = part.parameters.0.iter();
            whole.parameters.0.extend(matrices.map(|(&place, pair)| (place, pair.clone())));
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
