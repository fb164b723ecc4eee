//! Attention to the keys and values of a paged cache.
//!
//! One pass over the pages with a running maximum (Milakov and Gimelshein 2018,
//! <https://arxiv.org/abs/1805.02867>; Dao et al. 2022, <https://arxiv.org/abs/2205.14135>): no row of
//! scores is stored and no page is copied. The steps of the pass are the pages, which are cut at fixed
//! positions, so the order of a token's sums depends on its own position and window alone.

mod page;

use std::ops::Range;

use super::exponential::exponential;
use super::{InstructionSet, LANES, PARALLEL_WORK_MIN, parallel, portable};
use page::Room;
#[cfg(target_arch = "x86_64")]
pub(super) use page::Widening;
pub use page::{BLOCK_VALUES, KvPage, Side};

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
    /// Page `index`.
    fn page(&self, index: usize) -> KvPage<'_>;
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
    fn attend(self, outputs: Vec<&mut [f32]>, place: Place) {
        let head_size = self.shape.head_size;
        let group = self.shape.heads / self.shape.kv_heads;
        let tokens = place.first_token..place.first_token + outputs.len();
        let mut rows = Vec::with_capacity(outputs.len() * group);
        for (token, output) in tokens.clone().zip(outputs) {
            let first_head = token * self.shape.heads + place.kv_head * group;
            let queries = &self.queries[first_head * head_size..][..group * head_size];
            let heads = queries.chunks_exact(head_size).zip(output.chunks_exact_mut(head_size));
            rows.extend(heads.map(|(query, sum)| Row::new(query, sum)));
        }
        let last = self.seen(tokens.end - 1);
        let pages = self.seen(tokens.start).start / PAGE_TOKENS..last.end.div_ceil(PAGE_TOKENS);
        let mut room = Room::default();
        for page in pages.clone() {
            self.attend_page(page, page + 1 < pages.end, place, &mut rows, &mut room);
        }
        rows.into_iter().for_each(Row::finish);
    }

    /// Lets the rows of a tile attend to a page: those that see the same of it together.
    fn attend_page(
        &self,
        index: usize,
        has_next: bool,
        place: Place,
        rows: &mut [Row<'_>],
        room: &mut Room,
    ) {
        let group = self.shape.heads / self.shape.kv_heads;
        let head = |index| self.pages.page(index).head(place.kv_head, self.shape.head_size);
        let next = if has_next { head(index + 1).binary32() } else { None }.unwrap_or_default();
        let (keys, values) = head(index).widened(self.set, room);
        let mut page = PageHead { keys, values, next };
        let slots_of = |row: usize| slots(self.seen(place.first_token + row / group), index);
        let mut start = 0;
        while start < rows.len() {
            let slots = slots_of(start);
            let mut end = start + group;
            while end < rows.len() && slots_of(end) == slots {
                end += group;
            }
            if !slots.is_empty() {
                self.attend_rows(page, slots, &mut rows[start..end]);
                page.next = Default::default();
            }
            start = end;
        }
    }

    /// The positions that a token of this pass attends to.
    fn seen(&self, token: usize) -> Range<usize> {
        let end = self.position + token + 1;
        end.saturating_sub(self.shape.window.unwrap_or(end))..end
    }

    fn attend_rows(&self, page: PageHead<'_>, slots: Range<usize>, rows: &mut [Row<'_>]) {
        // Heads that fill no registers are in no model that we know of.
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let fills = |lanes: usize| self.shape.head_size.is_multiple_of(lanes);
        match self.set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(avx512) if fills(LANES) => avx512.attend(page, slots, rows),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx(amx) if fills(LANES) => amx.avx512().attend(page, slots, rows),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2(avx2) if fills(LANES) => avx2.attend(page, slots, rows),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon(neon) if fills(LANES / 2) => neon.attend(page, slots, rows),
            _ => portable::attention::attend(page, &slots, rows),
        }
    }
}

/// The places in page `page` of the positions in `seen`.
fn slots(seen: Range<usize>, page: usize) -> Range<usize> {
    let start = page * PAGE_TOKENS;
    let slot = |position: usize| position.saturating_sub(start).min(PAGE_TOKENS);
    slot(seen.start)..slot(seen.end)
}

/// One head of keys and values of a page.
#[derive(Clone, Copy)]
pub(super) struct PageHead<'a> {
    /// `[head_size, PAGE_TOKENS]`.
    pub(super) keys: &'a [f32],
    /// `[PAGE_TOKENS, head_size]`.
    pub(super) values: &'a [f32],
    /// The keys and values that come next, to be fetched meanwhile; may be empty.
    pub(super) next: (&'a [f32], &'a [f32]),
}

/// One head of one token, on its way over the pages.
pub(super) struct Row<'a> {
    pub(super) query: &'a [f32],
    /// The weighted values so far.
    pub(super) sum: &'a mut [f32],
    pub(super) softmax: Softmax,
}

impl<'a> Row<'a> {
    fn new(query: &'a [f32], sum: &'a mut [f32]) -> Self {
        sum.fill(0.0);
        Self { query, sum, softmax: Softmax::default() }
    }

    fn finish(self) {
        let total = add_up(self.softmax.totals);
        self.sum.iter_mut().for_each(|value| *value /= total);
    }
}

/// The running sums of one softmax.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    /// The largest score so far.
    maximum: f32,
    /// The sums of the weights so far, relative to `maximum`: one for each place of a page.
    totals: [f32; PAGE_TOKENS],
}

impl Default for Softmax {
    fn default() -> Self {
        Self { maximum: f32::NEG_INFINITY, totals: [0.0; PAGE_TOKENS] }
    }
}

impl Softmax {
    /// Takes the dot products of one page and returns the weights of its places, relative to the
    /// largest score so far, and the factor by which earlier weights have to shrink, if they have to.
    ///
    /// Places outside of `slots` weigh nothing.
    #[inline(always)]
    pub(super) fn update(
        &mut self,
        dots: [f32; PAGE_TOKENS],
        slots: &Range<usize>,
        head_size: usize,
    ) -> ([f32; PAGE_TOKENS], Option<f32>) {
        let scale = 1.0 / (head_size as f32).sqrt();
        // Loops, since closures would be compiled on their own, without the caller's instructions.
        let mut scores = [f32::NEG_INFINITY; PAGE_TOKENS];
        for (slot, (score, dot)) in scores.iter_mut().zip(dots).enumerate() {
            let is_seen = (slot >= slots.start) & (slot < slots.end);
            *score = if is_seen { dot * scale } else { f32::NEG_INFINITY };
        }
        // Without a branch for each place, which would be dearer than all of them.
        let mut is_exceeded = false;
        for score in scores {
            is_exceeded |= score > self.maximum;
        }
        let mut factor = None;
        if is_exceeded {
            let maximum = greatest(scores).max(self.maximum);
            // Before the first page it is minus infinity, which makes the factor zero.
            let shrink = exponential(self.maximum - maximum);
            for total in &mut self.totals {
                *total *= shrink;
            }
            self.maximum = maximum;
            factor = Some(shrink);
        }
        let mut weights = [0.0; PAGE_TOKENS];
        for ((weight, total), score) in weights.iter_mut().zip(&mut self.totals).zip(scores) {
            *weight = exponential(score - self.maximum);
            *total += *weight;
        }
        (weights, factor)
    }
}

/// The largest of the numbers.
#[inline(always)]
fn greatest(mut lanes: [f32; PAGE_TOKENS]) -> f32 {
    let mut width = PAGE_TOKENS / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = lanes[lane].max(lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum: halves are added, then quarters, and so on.
#[inline(always)]
fn add_up(mut lanes: [f32; PAGE_TOKENS]) -> f32 {
    let mut width = PAGE_TOKENS / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests;
