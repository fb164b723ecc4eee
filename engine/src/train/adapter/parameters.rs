//! The values of an adapter, or gradients of them, by their places.

use std::collections::BTreeMap;
use std::ops::Range;

use umbel_protocol::Span;

use super::TargetModule;
use crate::train::dora::Computed;

/// Where a pair of matrices stands: a block, and a module in it.
pub type Place = (u32, TargetModule);

/// The two matrices that an adapter has for one module of one block, and the magnitudes of its rows where
/// it has them.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraMatrices {
    /// `[rank, columns]`, row by row.
    pub(in crate::train) a: Vec<f32>,
    /// `[rows, rank]`, row by row.
    pub(in crate::train) b: Vec<f32>,
    rank: usize,
    /// `[rows]` of DoRA; else empty.
    pub(in crate::train) magnitudes: Vec<f32>,
    /// What follows from the values and the frozen weights; of gradients nothing does.
    pub(in crate::train) computed: Computed,
}

impl LoraMatrices {
    pub(in crate::train) fn new(a: Vec<f32>, b: Vec<f32>, rank: usize) -> Self {
        assert!(a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "whole rows");
        let (magnitudes, computed) = (Vec::new(), Computed::default());
        Self { a, b, rank, magnitudes, computed }
    }

    /// The same with magnitudes of its rows.
    pub(in crate::train) fn with_magnitudes(self, magnitudes: Vec<f32>) -> Self {
        assert_eq!(magnitudes.len() * self.rank, self.b.len(), "one for each row");
        Self { magnitudes, ..self }
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

    /// The magnitudes of DoRA, one for each row of the matrix; empty where there are none.
    #[must_use]
    pub fn magnitudes(&self) -> &[f32] {
        &self.magnitudes
    }

    pub(crate) const fn rank(&self) -> usize {
        self.rank
    }

    /// Rows and columns of the matrix that they add to.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.b.len() / self.rank, self.a.len() / self.rank]
    }

    fn zeros_like(&self) -> Self {
        let zeros = |values: &[f32]| vec![0.0; values.len()];
        let magnitudes = zeros(&self.magnitudes);
        Self { magnitudes, ..Self::new(zeros(&self.a), zeros(&self.b), self.rank) }
    }

    /// A, B, and the magnitudes where there are any.
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let magnitudes = (!self.magnitudes.is_empty()).then_some(self.magnitudes.as_slice());
        [self.a.as_slice(), &self.b].into_iter().chain(magnitudes)
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.computed.forget();
        let has_some = !self.magnitudes.is_empty();
        let magnitudes = has_some.then_some(self.magnitudes.as_mut_slice());
        [self.a.as_mut_slice(), &mut self.b].into_iter().chain(magnitudes)
    }
}

/// The values of an adapter, or gradients of them. It has matrices or prompts, and never both, so that
/// the order of blocks is that of the rows too.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters {
    pub(in crate::train) matrices: BTreeMap<Place, LoraMatrices>,
    /// What each block adds to the hidden states of the first tokens, `[tokens, hidden]`.
    pub(in crate::train) block_prompts: BTreeMap<u32, Vec<f32>>,
    /// What stands before the text, `[tokens, hidden]`; empty where nothing does.
    pub(in crate::train) prompt: Vec<f32>,
}

impl Parameters {
    /// The pairs of matrices, in the order of blocks and of modules within a block.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &LoraMatrices)> {
        self.matrices.iter().map(|(place, matrices)| (*place, matrices))
    }

    /// The pair of `module` in `block`.
    #[must_use]
    pub fn at(&self, block: u32, module: TargetModule) -> Option<&LoraMatrices> {
        self.matrices.get(&(block, module))
    }

    /// What `block` adds to the hidden states of the first tokens, `[tokens, hidden]`.
    #[must_use]
    pub fn prompt_of(&self, block: u32) -> Option<&[f32]> {
        self.block_prompts.get(&block).map(Vec::as_slice)
    }

    /// The sum of the squares of all values, from which the norm over all servers follows.
    #[must_use]
    pub fn sum_of_squares(&self) -> f64 {
        self.sum_of_squares_pausing(&|| ())
    }

    /// As [`Self::sum_of_squares`], with `pause` behind each pair of matrices.
    pub(in crate::train) fn sum_of_squares_pausing(&self, pause: &dyn Fn()) -> f64 {
        let squares = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let of_pair = |matrices: &LoraMatrices| {
            pause();
            matrices.rows().map(squares).sum()
        };
        let of_prompt = |prompt: &Vec<f32>| {
            pause();
            squares(prompt)
        };
        let prompts = self.block_prompts.values().chain([&self.prompt]);
        self.matrices.values().map(of_pair).chain(prompts.map(of_prompt)).sum()
    }

    /// Adds `other`, which has the same places and shapes: gradients of another microbatch. Those of
    /// blocks alone lack the vectors before the text.
    ///
    /// # Panics
    /// Where they differ: both come from one adapter.
    pub fn add(&mut self, other: &Self) {
        let has_prompt = !other.prompt.is_empty();
        let same = self.same_blocks(other) && (!has_prompt || self.has_prompt_like(other));
        assert!(same, "both are of one adapter");
        // The vectors before the text come last, so that nothing is left over but them.
        for ((_, values), (_, other)) in self.rows_mut().zip(other.rows()) {
            values.iter_mut().zip(other).for_each(|(value, other)| *value += other);
        }
    }

    /// Whether two have the same places and sizes.
    pub(in crate::train) fn is_like(&self, other: &Self) -> bool {
        self.same_blocks(other) && self.has_prompt_like(other)
    }

    fn same_blocks(&self, other: &Self) -> bool {
        let of_pair = |pair: &LoraMatrices| (pair.shape(), pair.rank(), pair.magnitudes.is_empty());
        let pairs = |of: &Self| of.iter().map(|(at, pair)| (at, of_pair(pair))).collect();
        let prompts = |of: &Self| of.block_prompts.iter().map(|(at, of)| (*at, of.len())).collect();
        let (mine, others): (Vec<_>, Vec<_>) = (pairs(self), pairs(other));
        let (prompts_mine, prompts_other): (Vec<_>, Vec<_>) = (prompts(self), prompts(other));
        mine == others && prompts_mine == prompts_other
    }

    fn has_prompt_like(&self, other: &Self) -> bool {
        self.prompt.len() == other.prompt.len()
    }

    pub(in crate::train) fn zeros_like(&self) -> Self {
        let matrices = self.matrices.iter().map(|(&at, matrices)| (at, matrices.zeros_like()));
        let prompts = self.block_prompts.iter().map(|(&at, prompt)| (at, vec![0.0; prompt.len()]));
        Self {
            matrices: matrices.collect(),
            block_prompts: prompts.collect(),
            prompt: vec![0.0; self.prompt.len()],
        }
    }

    /// What belongs to some blocks.
    pub(super) fn part(&self, blocks: Span) -> Self {
        let matrices = self.matrices.iter().filter(|((block, _), _)| blocks.contains(*block));
        let prompts = self.block_prompts.iter().filter(|(block, _)| blocks.contains(**block));
        Self {
            matrices: matrices.map(|(&at, matrices)| (at, matrices.clone())).collect(),
            block_prompts: prompts.map(|(&at, prompt)| (at, prompt.clone())).collect(),
            prompt: Vec::new(),
        }
    }

    /// Takes over what belongs to other blocks.
    pub(in crate::train) fn extend(&mut self, other: Self) {
        self.matrices.extend(other.matrices);
        self.block_prompts.extend(other.block_prompts);
    }

    /// All values, with the block that they belong to: block by block, in each block module by module,
    /// of each module A, B and magnitudes; last what stands before the text, which is no block's.
    pub(in crate::train) fn rows(&self) -> impl Iterator<Item = (Option<u32>, &[f32])> {
        let matrices = self
            .matrices
            .iter()
            .flat_map(|((block, _), pair)| pair.rows().map(|row| (Some(*block), row)));
        let prompts = self.block_prompts.iter().map(|(block, row)| (Some(*block), row.as_slice()));
        let prompt = (!self.prompt.is_empty()).then_some((None, self.prompt.as_slice()));
        matrices.chain(prompts).chain(prompt)
    }

    pub(in crate::train) fn rows_mut(&mut self) -> impl Iterator<Item = (Option<u32>, &mut [f32])> {
        let matrices = self
            .matrices
            .iter_mut()
            .flat_map(|((block, _), pair)| pair.rows_mut().map(|row| (Some(*block), row)));
        let prompts = self.block_prompts.iter_mut();
        let prompts = prompts.map(|(block, row)| (Some(*block), row.as_mut_slice()));
        let prompt = (!self.prompt.is_empty()).then_some((None, self.prompt.as_mut_slice()));
        matrices.chain(prompts).chain(prompt)
    }

    /// How many values they are.
    #[must_use]
    pub fn value_count(&self) -> u64 {
        self.rows().map(|(_, row)| row.len() as u64).sum()
    }

    /// How many of them belong to blocks: the first ones.
    #[must_use]
    pub fn block_value_count(&self) -> u64 {
        self.value_count() - self.prompt.len() as u64
    }

    pub(in crate::train) fn read(&self, range: Range<u64>) -> Option<Vec<f32>> {
        if range.is_empty() || range.end > self.value_count() {
            return None;
        }
        let mut found = Vec::new();
        let mut start = 0;
        for (_, values) in self.rows() {
            if let Some(places) = overlap(start, values.len(), &range) {
                found.extend_from_slice(&values[places]);
            }
            start += values.len() as u64;
        }
        Some(found)
    }

    pub(in crate::train) fn write(&mut self, offset: u64, new: &[f32]) -> Option<()> {
        let end = offset.checked_add(new.len() as u64)?;
        if end > self.value_count() {
            return None;
        }
        let mut start = 0;
        let mut rest = new;
        for (_, values) in self.rows_mut() {
            if let Some(places) = overlap(start, values.len(), &(offset..end)) {
                let next = rest.split_off(..places.len())?;
                values[places].copy_from_slice(next);
            }
            start += values.len() as u64;
        }
        Some(())
    }
}

/// The places of a piece of a row, which begins at `start`, that are in `range`.
fn overlap(start: u64, length: usize, range: &Range<u64>) -> Option<Range<usize>> {
    let end = start + length as u64;
    let (first, last) = (range.start.max(start), range.end.min(end));
    let place = |at: u64| usize::try_from(at - start).expect("it is within the piece");
    (first < last).then(|| place(first)..place(last))
}
