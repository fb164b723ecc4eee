//! Attention to the keys and values of a paged cache.
//!
//! One pass over the pages with a running maximum (Milakov and Gimelshein 2018,
//! <https://arxiv.org/abs/1805.02867>; Dao et al. 2022, <https://arxiv.org/abs/2205.14135>): no row of
//! scores is stored and no page is copied. The steps of the pass are the pages, which are cut at fixed
//! positions, so the order of a token's sums depends on its own position and window alone.

use std::ops::Range;

use super::exponential::exponential;
use super::{InstructionSet, LANES, PARALLEL_WORK_MIN, parallel, portable};

/// Positions in a page of the cache.
pub const PAGE_TOKENS: usize = 16;

/// Tokens that pass over a page together, while it lies in the first-level cache: with 3 or 4 heads of
/// queries to each of keys, their queries and sums take no more room than the page.
const TILE_TOKENS: usize = 8;

/// How many heads there are, and what each may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Heads of the queries; a whole number of them shares each head of keys and values.
    pub heads: usize,
    /// Heads of the keys and of the values.
    pub kv_heads: usize,
    /// Values of one head.
    pub head_size: usize,
    /// The most recent positions that a token attends to, itself included; `None` for all.
    pub window: Option<usize>,
}

/// The pages of one session in one block; page `index` has the positions from
/// `index * PAGE_TOKENS` on.
pub trait KvPages: Sync {
    /// The keys of page `index`: `[kv_heads, PAGE_TOKENS, head_size]`.
    fn keys(&self, index: usize) -> &[f32];
    /// The values of page `index`, in the same layout.
    fn values(&self, index: usize) -> &[f32];
}

/// Consecutive tokens of one session, and the pages that hold their keys and values and those of the
/// positions before them.
#[derive(Debug)]
pub struct Attending<'a, P> {
    /// The pages.
    pub pages: &'a P,
    /// Where the first token stands.
    pub position: usize,
    /// How many tokens there are.
    pub tokens: usize,
}

/// Lets each token of `queries` attend to its own position and those before it, within its window.
///
/// `queries` and `output` are `[tokens, heads, head_size]`: the tokens of each of `sessions`, one
/// session after the other, whose pages hold the keys and values of all the tokens already. Scores
/// are divided by the root of `head_size`. What a page holds at positions that no token sees is never
/// used. The work is divided by sessions, heads and tokens in one section, so that threads are busy
/// with many sessions of one token each as with one of many.
///
/// # Panics
/// Where the sizes do not fit each other: shapes are checked when a model is loaded.
pub fn attention<P: KvPages>(
    shape: AttentionShape,
    queries: &[f32],
    sessions: &[Attending<'_, P>],
    output: &mut [f32],
) {
    attention_with(InstructionSet::detected(), shape, queries, sessions, output);
}

/// As [`attention`], with the instructions of `set`.
///
/// # Panics
/// As [`attention`].
pub fn attention_with<P: KvPages>(
    set: InstructionSet,
    shape: AttentionShape,
    queries: &[f32],
    sessions: &[Attending<'_, P>],
    output: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_size, window } = shape;
    assert!(kv_heads > 0 && head_size > 0, "there are heads, and they have values");
    assert!(heads > 0 && heads.is_multiple_of(kv_heads), "queries share the heads of keys evenly");
    assert_ne!(window, Some(0), "a token sees itself");
    let token_values = heads * head_size;
    let tokens: usize = sessions.iter().map(|session| session.tokens).sum();
    assert_eq!(queries.len(), tokens * token_values, "the queries are those of the sessions");
    assert_eq!(queries.len(), output.len(), "there is an output for each query");
    let (mut queries, mut output, mut work) = (queries, output, 0);
    let mut tiles = Vec::new();
    for &Attending { pages, position, tokens } in sessions {
        let (of_session, rest) = queries.split_at(tokens * token_values);
        let (outputs, rest_of_output) = output.split_at_mut(tokens * token_values);
        (queries, output) = (rest, rest_of_output);
        let seen = (position + tokens).min(window.unwrap_or(usize::MAX));
        work += 2 * seen * of_session.len();
        let kernel = Kernel { set, shape, queries: of_session, position, pages };
        cut(outputs, kernel, &mut tiles);
    }
    if work > PARALLEL_WORK_MIN {
        parallel::for_each(tiles, |tile| tile.kernel.attend(tile.outputs, tile.place));
    } else {
        tiles.into_iter().for_each(|tile| tile.kernel.attend(tile.outputs, tile.place));
    }
}

/// A few tokens of a session and one head of keys and values: the work that one thread takes at a
/// time.
struct Tile<'a, P> {
    kernel: Kernel<'a, P>,
    place: Place,
    /// For each token, the outputs of the heads that share the head of keys.
    outputs: Vec<&'a mut [f32]>,
}

/// Where a tile lies among the tokens and heads of its session.
#[derive(Clone, Copy)]
struct Place {
    first_token: usize,
    kv_head: usize,
}

/// Cuts the `output` of one session into tiles.
fn cut<'a, P>(output: &'a mut [f32], kernel: Kernel<'a, P>, tiles: &mut Vec<Tile<'a, P>>) {
    let shape = kernel.shape;
    let token_values = shape.heads * shape.head_size;
    let group_values = token_values / shape.kv_heads;
    for (index, tokens) in output.chunks_mut(TILE_TOKENS * token_values).enumerate() {
        let first_tile = tiles.len();
        let (first_token, count) = (index * TILE_TOKENS, tokens.len() / token_values);
        tiles.extend((0..shape.kv_heads).map(|kv_head| Tile {
            kernel,
            place: Place { first_token, kv_head },
            outputs: Vec::with_capacity(count),
        }));
        for token in tokens.chunks_exact_mut(token_values) {
            let groups = token.chunks_exact_mut(group_values);
            tiles[first_tile..].iter_mut().zip(groups).for_each(|(tile, group)| {
                tile.outputs.push(group);
            });
        }
    }
}

/// What all tiles of a session share.
struct Kernel<'a, P> {
    set: InstructionSet,
    shape: AttentionShape,
    queries: &'a [f32],
    position: usize,
    pages: &'a P,
}

// Derived, they would ask for a copy of the pages.
impl<P> Clone for Kernel<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Kernel<'_, P> {}

impl<P: KvPages> Kernel<'_, P> {
    /// Fills the outputs of a tile, which hold the weighted sums of values on the way.
    fn attend(self, mut outputs: Vec<&mut [f32]>, place: Place) {
        let head_size = self.shape.head_size;
        let group = self.shape.heads / self.shape.kv_heads;
        let mut softmaxes = vec![Softmax::default(); outputs.len() * group];
        outputs.iter_mut().for_each(|output| output.fill(0.0));
        let (first, last) = (place.first_token, place.first_token + outputs.len() - 1);
        let pages = self.seen(first).start / PAGE_TOKENS..self.seen(last).end.div_ceil(PAGE_TOKENS);
        let page_head = place.kv_head * PAGE_TOKENS * head_size..;
        for page in pages {
            let keys = &self.pages.keys(page)[page_head.clone()][..PAGE_TOKENS * head_size];
            let values = &self.pages.values(page)[page_head.clone()][..PAGE_TOKENS * head_size];
            let tokens = outputs.iter_mut().zip(softmaxes.chunks_exact_mut(group));
            for (token, (output, softmaxes)) in (first..).zip(tokens) {
                let slots = slots(self.seen(token), page);
                if slots.is_empty() {
                    continue;
                }
                let first_head = token * self.shape.heads + place.kv_head * group;
                let queries = &self.queries[first_head * head_size..][..group * head_size];
                let heads = queries.chunks_exact(head_size).zip(output.chunks_exact_mut(head_size));
                for ((query, sum), softmax) in heads.zip(softmaxes) {
                    let query = PageQuery { query, keys, values, slots: slots.clone() };
                    self.attend_page(query, softmax, sum);
                }
            }
        }
        for (output, softmaxes) in outputs.iter_mut().zip(softmaxes.chunks_exact(group)) {
            for (sum, softmax) in output.chunks_exact_mut(head_size).zip(softmaxes) {
                sum.iter_mut().for_each(|value| *value /= softmax.total);
            }
        }
    }

    /// The positions that a token of this pass attends to.
    fn seen(&self, token: usize) -> Range<usize> {
        let end = self.position + token + 1;
        end.saturating_sub(self.shape.window.unwrap_or(end))..end
    }

    fn attend_page(&self, query: PageQuery<'_>, softmax: &mut Softmax, sum: &mut [f32]) {
        // Heads that fill no registers are in no model that we know of.
        let fills_registers = sum.len().is_multiple_of(LANES);
        #[cfg(target_arch = "x86_64")]
        let fills_wide_registers = sum.len().is_multiple_of(2 * LANES);
        match self.set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(avx512) if fills_wide_registers => {
                avx512.attend(query, softmax, sum);
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2(avx2) if fills_registers => avx2.attend(query, softmax, sum),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(avx512) if fills_registers => {
                avx512.avx2().attend(query, softmax, sum);
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2(_) | InstructionSet::Avx512(_) => {
                portable::attention::attend(query, softmax, sum);
            }
            InstructionSet::Portable => portable::attention::attend(query, softmax, sum),
        }
    }
}

/// The places in page `page` of the positions in `seen`.
fn slots(seen: Range<usize>, page: usize) -> Range<usize> {
    let start = page * PAGE_TOKENS;
    let slot = |position: usize| position.saturating_sub(start).min(PAGE_TOKENS);
    slot(seen.start)..slot(seen.end)
}

/// One head of one token, and what it may see of one page.
pub(super) struct PageQuery<'a> {
    pub(super) query: &'a [f32],
    /// `[PAGE_TOKENS, head_size]`.
    pub(super) keys: &'a [f32],
    /// `[PAGE_TOKENS, head_size]`.
    pub(super) values: &'a [f32],
    /// The places that it sees; never empty.
    pub(super) slots: Range<usize>,
}

/// The running sums of one softmax.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    /// The largest score so far.
    maximum: f32,
    /// The sum of the weights so far, relative to `maximum`.
    pub(super) total: f32,
}

impl Default for Softmax {
    fn default() -> Self {
        Self { maximum: f32::NEG_INFINITY, total: 0.0 }
    }
}

impl Softmax {
    /// Takes the dot products of one page and returns the weights of its places, relative to the
    /// largest score so far, and the factor by which earlier weights have to shrink.
    ///
    /// Places outside of `slots` weigh nothing.
    #[inline(always)]
    pub(super) fn update(
        &mut self,
        dots: [f32; PAGE_TOKENS],
        slots: &Range<usize>,
        head_size: usize,
    ) -> ([f32; PAGE_TOKENS], f32) {
        let scale = 1.0 / (head_size as f32).sqrt();
        let mut scores = [f32::NEG_INFINITY; PAGE_TOKENS];
        for slot in slots.clone() {
            scores[slot] = dots[slot] * scale;
        }
        let maximum = scores.iter().copied().fold(self.maximum, f32::max);
        // At the first page nothing has been summed, and the difference may be of two infinities.
        let factor = if self.total == 0.0 { 0.0 } else { exponential(self.maximum - maximum) };
        let mut weights = [0.0; PAGE_TOKENS];
        for (weight, score) in weights.iter_mut().zip(scores) {
            *weight = exponential(score - maximum);
        }
        let mut sums: [f32; LANES] =
            std::array::from_fn(|lane| weights[lane] + weights[lane + LANES]);
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        self.total = self.total * factor + sums[0];
        self.maximum = maximum;
        (weights, factor)
    }
}

#[cfg(test)]
mod tests;
