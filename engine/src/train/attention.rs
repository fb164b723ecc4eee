//! Attention over whole sequences, and its gradients.
//!
//! There is no cache: a sequence is here from its first token to its last. Scores are computed again
//! for the gradients, one query's at a time, so that memory grows with the tokens and not with their
//! square.

use std::ops::Range;

use crate::kernel::parallel::{for_each, thread_count};
use crate::kernel::{AttentionShape, exponential};

use super::dense::{add_scaled, dot};

/// Tokens of the sequences between two pauses, or one longer sequence: enough work for some threads.
const PAUSE_TOKENS: usize = 256;

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
        let parts = self.parts(|part| part.forward(), pause);
        let mut output = vec![0.0; self.queries.len()];
        for (part, heads) in &parts {
            for (head, values) in part.query_heads().zip(heads) {
                part.scatter(values, self.shape.heads, head, &mut output);
            }
        }
        output
    }

    /// From the gradient of what the queries saw.
    pub(super) fn backward(self, gradient: &[f32], pause: &dyn Fn()) -> Gradients {
        let parts = self.parts(|part| part.backward(gradient), pause);
        let mut gradients = Gradients {
            queries: vec![0.0; self.queries.len()],
            keys: vec![0.0; self.keys.len()],
            values: vec![0.0; self.values.len()],
        };
        let AttentionShape { heads, kv_heads, .. } = self.shape;
        for (part, (queries, keys, values)) in &parts {
            for (head, queries) in part.query_heads().zip(queries) {
                part.scatter(queries, heads, head, &mut gradients.queries);
            }
            part.scatter(keys, kv_heads, part.kv_head, &mut gradients.keys);
            part.scatter(values, kv_heads, part.kv_head, &mut gradients.values);
        }
        gradients
    }

    /// What `work` gives for each sequence and head of keys, on all threads.
    fn parts<R: Send>(
        &self,
        work: impl Fn(&Part<'_>) -> R + Sync + Send,
        pause: &dyn Fn(),
    ) -> Vec<(Part<'_>, R)> {
        let mut start = 0;
        let mut parts: Vec<(Part<'_>, Option<R>)> = Vec::new();
        for &length in self.lengths {
            let rows = start..start + length;
            start = rows.end;
            let part = |kv_head| Part { of: *self, rows: rows.clone(), kv_head };
            parts.extend((0..self.shape.kv_heads).map(|kv_head| (part(kv_head), None)));
        }
        let longest = self.lengths.iter().copied().max().unwrap_or(1);
        // Of a long sequence no more heads at once than there are threads.
        let together = match PAUSE_TOKENS / longest {
            0 => thread_count(),
            sequences => sequences * self.shape.kv_heads,
        };
        for parts in parts.chunks_mut(together) {
            for_each(parts.iter_mut(), |(part, result)| *result = Some(work(part)));
            pause();
        }
        let done = |result: Option<R>| result.expect("each part was computed");
        parts.into_iter().map(|(part, result)| (part, done(result))).collect()
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

    /// For each head of queries `[tokens, head_size]`.
    fn forward(&self) -> Vec<Vec<f32>> {
        let AttentionShape { heads, head_size, .. } = self.of.shape;
        let [keys, values] = self.keys_and_values();
        let mut weights = Vec::new();
        let attend = |head| {
            let queries = self.gather(self.of.queries, heads, head);
            let mut output = vec![0.0; queries.len()];
            let rows = output.chunks_exact_mut(head_size).zip(queries.chunks_exact(head_size));
            for (index, (output, query)) in rows.enumerate() {
                self.weights(index, query, &keys, &mut weights);
                let seen = values.chunks_exact(head_size).skip(self.seen(index).start);
                for (&weight, value) in weights.iter().zip(seen) {
                    add_scaled(output, weight, value);
                }
            }
            output
        };
        self.query_heads().map(attend).collect()
    }

    /// Gradients of each head of queries, of the keys, and of the values.
    ///
    /// With weights `p = softmax(s)` and `g` the gradient of `sum p v`, that of `p` is `g . v`, and
    /// that of `s` is `p (g . v - sum p (g . v))`.
    fn backward(&self, gradient: &[f32]) -> (Vec<Vec<f32>>, Vec<f32>, Vec<f32>) {
        let AttentionShape { heads, head_size, .. } = self.of.shape;
        let [keys, values] = self.keys_and_values();
        let (mut of_keys, mut of_values) = (vec![0.0; keys.len()], vec![0.0; values.len()]);
        let (mut weights, mut of_weights) = (Vec::new(), Vec::new());
        let scale = self.scale();
        let of_head = |head| {
            let queries = self.gather(self.of.queries, heads, head);
            let gradients = self.gather(gradient, heads, head);
            let mut of_queries = vec![0.0; queries.len()];
            for index in 0..self.rows.len() {
                let row = index * head_size..(index + 1) * head_size;
                let (query, gradient) = (&queries[row.clone()], &gradients[row.clone()]);
                self.weights(index, query, &keys, &mut weights);
                let seen = self.seen(index);
                let seen = seen.start * head_size..seen.end * head_size;
                let seen_values = values[seen.clone()].chunks_exact(head_size);
                of_weights.clear();
                of_weights.extend(seen_values.map(|value| dot(gradient, value)));
                let mean = dot(&weights, &of_weights);
                let of_query = &mut of_queries[row];
                let seen_keys = keys[seen.clone()].chunks_exact(head_size);
                let to_keys = of_keys[seen.clone()].chunks_exact_mut(head_size);
                let to_values = of_values[seen].chunks_exact_mut(head_size);
                let places = seen_keys.zip(to_keys).zip(to_values);
                for ((weight, of_weight), place) in weights.iter().zip(&of_weights).zip(places) {
                    let ((key, of_key), of_value) = place;
                    let of_score = weight * (of_weight - mean) * scale;
                    add_scaled(of_query, of_score, key);
                    add_scaled(of_key, of_score, query);
                    add_scaled(of_value, *weight, gradient);
                }
            }
            of_queries
        };
        let of_queries = self.query_heads().map(of_head).collect();
        (of_queries, of_keys, of_values)
    }
}
