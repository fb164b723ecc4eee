//! Attention over whole sequences, and its gradients.
//!
//! There is no cache: a sequence is here from its first token to its last. Scores are computed again
//! for the gradients, one query's at a time, so that memory grows with the tokens and not with their
//! square.

use std::ops::Range;

use crate::kernel::parallel::{for_each, thread_count};
use crate::kernel::{AttentionShape, exponential};

use super::dense::{add_scaled, dot};

/// Tokens of the sequences that are begun together: enough work for some threads.
const TOGETHER_TOKENS: usize = 256;

/// Pairs of a query and a key that a thread takes between two pauses: a few milliseconds of the way back,
/// in which each pair has five products of a head's size. A sequence of 256 tokens has as many in one head.
const PAUSE_PAIRS: usize = 1 << 15;

/// Rotated queries `[tokens, heads * head_size]`, rotated keys and values
/// `[tokens, kv_heads * head_size]` of one sequence after the other.
#[derive(Clone, Copy)]
pub(super) struct Attended<'a> {
    pub(super) shape: AttentionShape,
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// The tokens of each sequence.
    pub(super) lengths: &'a [usize],
}

/// The gradients of queries, keys and values, in their shapes.
pub(super) struct Gradients {
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl Attended<'_> {
    /// What each query sees, in the shape of the queries.
    pub(super) fn forward(self, pause: &dyn Fn()) -> Vec<f32> {
        let parts = self.parts(Onward::begin, pause);
        let mut output = vec![0.0; self.queries.len()];
        for Onward { part, output: heads, .. } in &parts {
            for (head, values) in part.query_heads().zip(heads) {
                part.scatter(values, self.shape.heads, head, &mut output);
            }
        }
        output
    }

    /// From the gradient of what the queries saw.
    pub(super) fn backward(self, gradient: &[f32], pause: &dyn Fn()) -> Gradients {
        let parts = self.parts(|part| Back::begin(part, gradient), pause);
        let mut gradients = Gradients {
            queries: vec![0.0; self.queries.len()],
            keys: vec![0.0; self.keys.len()],
            values: vec![0.0; self.values.len()],
        };
        let AttentionShape { heads, kv_heads, .. } = self.shape;
        for Back { part, of_queries, of_keys, of_values, .. } in &parts {
            for (head, queries) in part.query_heads().zip(of_queries) {
                part.scatter(queries, heads, head, &mut gradients.queries);
            }
            part.scatter(of_keys, kv_heads, part.kv_head, &mut gradients.keys);
            part.scatter(of_values, kv_heads, part.kv_head, &mut gradients.values);
        }
        gradients
    }

    /// The work that `begin` begins for each sequence and head of keys, done on all threads.
    fn parts<'a, W: Work + Send>(
        &'a self,
        begin: impl Fn(Part<'a>) -> W + Sync + Send,
        pause: &dyn Fn(),
    ) -> Vec<W> {
        let mut start = 0;
        let mut parts: Vec<Part<'a>> = Vec::new();
        for &length in self.lengths {
            let rows = start..start + length;
            start = rows.end;
            let part = |kv_head| Part { of: *self, rows: rows.clone(), kv_head };
            parts.extend((0..self.shape.kv_heads).map(part));
        }
        let longest = self.lengths.iter().copied().max().unwrap_or(1);
        // Of a long sequence no more heads at once than there are threads.
        let together = match TOGETHER_TOKENS / longest {
            0 => thread_count(),
            sequences => sequences * self.shape.kv_heads,
        };
        let mut done = Vec::with_capacity(parts.len());
        let mut parts = parts.into_iter();
        loop {
            let begun = parts.by_ref().take(together).map(|part| (Some(part), None));
            let mut begun: Vec<(Option<Part<'a>>, Option<W>)> = begun.collect();
            if begun.is_empty() {
                return done;
            }
            let mut goes_on = true;
            while goes_on {
                for_each(begun.iter_mut(), |(part, work)| {
                    if let Some(part) = part.take() {
                        *work = Some(begin(part));
                    }
                    let mut pairs = 0;
                    while pairs < PAUSE_PAIRS
                        && let Some(taken) = work.as_mut().and_then(W::next_row)
                    {
                        pairs += taken;
                    }
                });
                pause();
                goes_on = begun.iter().any(|(_, work)| work.as_ref().is_some_and(W::goes_on));
            }
            done.extend(begun.into_iter().filter_map(|(_, work)| work));
        }
    }
}

/// What is done for one part of the attention, a query after the other: all of one head, then all of the
/// next, so that what is added up has one order.
trait Work {
    /// Does the next one, and says how many keys it saw; `None` behind the last.
    fn next_row(&mut self) -> Option<usize>;

    /// Whether there is a next one.
    fn goes_on(&self) -> bool;
}

/// The place of a query: the head among those of the part, and the token of the sequence.
#[derive(Clone, Copy)]
struct Cursor {
    head: usize,
    row: usize,
}

impl Cursor {
    const FIRST: Self = Self { head: 0, row: 0 };

    const fn next(self, rows: usize) -> Self {
        let Self { head, row } = self;
        if row + 1 < rows { Self { head, row: row + 1 } } else { Self { head: head + 1, row: 0 } }
    }
}

/// One sequence in one head of keys and values, with the heads of queries that share it.
struct Part<'a> {
    of: Attended<'a>,
    rows: Range<usize>,
    kv_head: usize,
}

impl Part<'_> {
    fn query_heads(&self) -> Range<usize> {
        let group = self.of.shape.heads / self.of.shape.kv_heads;
        self.kv_head * group..(self.kv_head + 1) * group
    }

    /// The rows of this sequence in one of `heads` heads, `[tokens, head_size]`.
    fn gather(&self, values: &[f32], heads: usize, head: usize) -> Vec<f32> {
        let size = self.of.shape.head_size;
        let row = |row| &values[(row * heads + head) * size..][..size];
        self.rows.clone().flat_map(row).copied().collect()
    }

    /// The reverse of [`Self::gather`].
    fn scatter(&self, part: &[f32], heads: usize, head: usize, values: &mut [f32]) {
        let size = self.of.shape.head_size;
        for (row, part) in self.rows.clone().zip(part.chunks_exact(size)) {
            values[(row * heads + head) * size..][..size].copy_from_slice(part);
        }
    }

    /// The rows of this sequence in each of its heads of queries.
    fn gather_heads(&self, values: &[f32]) -> Vec<Vec<f32>> {
        self.query_heads().map(|head| self.gather(values, self.of.shape.heads, head)).collect()
    }

    fn keys_and_values(&self) -> [Vec<f32>; 2] {
        let kv_heads = self.of.shape.kv_heads;
        [self.of.keys, self.of.values].map(|all| self.gather(all, kv_heads, self.kv_head))
    }

    /// The tokens that the token `index` of the sequence sees.
    fn seen(&self, index: usize) -> Range<usize> {
        let window = self.of.shape.window.unwrap_or(usize::MAX);
        (index + 1).saturating_sub(window)..index + 1
    }

    /// How much the token `index` takes of each that it sees.
    fn weights(&self, index: usize, query: &[f32], keys: &[f32], weights: &mut Vec<f32>) {
        let size = self.of.shape.head_size;
        let scale = self.scale();
        let seen = self.seen(index);
        weights.clear();
        let keys = &keys[seen.start * size..seen.end * size];
        weights.extend(keys.chunks_exact(size).map(|key| dot(query, key) * scale));
        let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|weight| *weight = exponential(*weight - largest));
        let total: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }

    fn scale(&self) -> f32 {
        1.0 / (self.of.shape.head_size as f32).sqrt()
    }
}

/// What the queries of a part see.
struct Onward<'a> {
    part: Part<'a>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Of each head, `[tokens, head_size]`: the queries until what they see takes their place.
    output: Vec<Vec<f32>>,
    weights: Vec<f32>,
    next: Cursor,
}

impl<'a> Onward<'a> {
    fn begin(part: Part<'a>) -> Self {
        let [keys, values] = part.keys_and_values();
        let output = part.gather_heads(part.of.queries);
        Self { part, keys, values, output, weights: Vec::new(), next: Cursor::FIRST }
    }
}

impl Work for Onward<'_> {
    fn next_row(&mut self) -> Option<usize> {
        let Self { part, keys, values, output, weights, next } = self;
        let size = part.of.shape.head_size;
        let query = &mut output.get_mut(next.head)?[next.row * size..][..size];
        part.weights(next.row, query, keys, weights);
        query.fill(0.0);
        let seen = values.chunks_exact(size).skip(part.seen(next.row).start);
        for (&weight, value) in weights.iter().zip(seen) {
            add_scaled(query, weight, value);
        }
        *next = next.next(part.rows.len());
        Some(weights.len())
    }

    fn goes_on(&self) -> bool {
        self.next.head < self.output.len()
    }
}

/// Gradients of each head of queries, of the keys, and of the values of a part.
///
/// With weights `p = softmax(s)` and `g` the gradient of `sum p v`, that of `p` is `g . v`, and
/// that of `s` is `p (g . v - sum p (g . v))`.
struct Back<'a> {
    part: Part<'a>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Of each head, `[tokens, head_size]`.
    queries: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    of_queries: Vec<Vec<f32>>,
    of_keys: Vec<f32>,
    of_values: Vec<f32>,
    weights: Vec<f32>,
    of_weights: Vec<f32>,
    next: Cursor,
}

impl<'a> Back<'a> {
    fn begin(part: Part<'a>, gradient: &[f32]) -> Self {
        let [keys, values] = part.keys_and_values();
        let queries = part.gather_heads(part.of.queries);
        Self {
            gradients: part.gather_heads(gradient),
            of_queries: queries.iter().map(|head| vec![0.0; head.len()]).collect(),
            of_keys: vec![0.0; keys.len()],
            of_values: vec![0.0; values.len()],
            weights: Vec::new(),
            of_weights: Vec::new(),
            next: Cursor::FIRST,
            part,
            keys,
            values,
            queries,
        }
    }
}

impl Work for Back<'_> {
    fn next_row(&mut self) -> Option<usize> {
        let Cursor { head, row: index } = self.next;
        let Self { part, keys, values, weights, of_weights, .. } = self;
        let (size, scale) = (part.of.shape.head_size, part.scale());
        let row = index * size..(index + 1) * size;
        let query = &self.queries.get(head)?[row.clone()];
        let gradient = &self.gradients[head][row.clone()];
        part.weights(index, query, keys, weights);
        let seen = part.seen(index);
        let seen = seen.start * size..seen.end * size;
        of_weights.clear();
        of_weights
            .extend(values[seen.clone()].chunks_exact(size).map(|value| dot(gradient, value)));
        let mean = dot(weights, of_weights);
        let of_query = &mut self.of_queries[head][row];
        let seen_keys = keys[seen.clone()].chunks_exact(size);
        let to_keys = self.of_keys[seen.clone()].chunks_exact_mut(size);
        let to_values = self.of_values[seen].chunks_exact_mut(size);
        let places = seen_keys.zip(to_keys).zip(to_values);
        for ((weight, of_weight), place) in weights.iter().zip(&*of_weights).zip(places) {
            let ((key, of_key), of_value) = place;
            let of_score = weight * (of_weight - mean) * scale;
            add_scaled(of_query, of_score, key);
            add_scaled(of_key, of_score, query);
            add_scaled(of_value, *weight, gradient);
        }
        self.next = self.next.next(part.rows.len());
        Some(weights.len())
    }

    fn goes_on(&self) -> bool {
        self.next.head < self.queries.len()
    }
}

#[cfg(test)]
mod tests;
