//! Rotary positions (Su et al. 2021, <https://arxiv.org/abs/2104.09864>).
//!
//! Everything is in binary32 and in the order of transformers (`modeling_rope_utils.py`): inverse
//! frequencies, angles as their products with the position, then cosines and sines.

use std::borrow::Cow;
use std::f32::consts::PI;
use std::sync::OnceLock;

use umbel_shard::{Rope, RopeScaling};

use super::{PARALLEL_WORK_MIN, parallel};

/// Positions whose cosines and sines are computed together.
const SEGMENT_POSITIONS: usize = 256;

/// Segments that are kept once computed: the first 16,384 positions, which for heads of 128 values
/// are 8 MiB. What lies beyond is computed each time: two thousand nanoseconds for a token.
const SEGMENTS_KEPT: usize = 64;

/// How far each pair of a head turns at each position.
#[derive(Debug)]
pub struct RopeTable {
    /// Radians from one position to the next, one for each pair.
    inverse_frequency: Vec<f32>,
    /// What cosines and sines are multiplied by.
    attention_factor: f32,
    segments: [OnceLock<Box<[Turn]>>; SEGMENTS_KEPT],
}

/// Cosine and sine of an angle.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    cosine: f32,
    sine: f32,
}

impl RopeTable {
    /// The turns of heads of `head_size` values, as `rope` asks for them.
    ///
    /// # Panics
    /// Where `head_size` is odd, or there is another number of factors than of pairs: the
    /// configuration is checked when it is read.
    #[must_use]
    pub fn new(rope: &Rope, head_size: usize) -> Self {
        assert_eq!(head_size % 2, 0, "values turn in pairs");
        let inverse_frequency: Vec<f32> =
            (0..head_size / 2).map(|pair| plain(rope.theta, pair, head_size)).collect();
        let (inverse_frequency, attention_factor) = scaled(rope, inverse_frequency);
        let segments = [const { OnceLock::new() }; SEGMENTS_KEPT];
        Self { inverse_frequency, attention_factor, segments }
    }

    /// Values of a head.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.inverse_frequency.len() * 2
    }

    /// Cosine and sine of each pair at `position`, added to `turns`.
    pub(crate) fn append_turns(&self, position: usize, turns: &mut Vec<[f32; 2]>) {
        turns.extend(self.turns(position).iter().map(|turn| [turn.cosine, turn.sine]));
    }

    /// The turns of `position`, one for each pair.
    fn turns(&self, position: usize) -> Cow<'_, [Turn]> {
        let (segment, pairs) = (position / SEGMENT_POSITIONS, self.inverse_frequency.len());
        let Some(kept) = self.segments.get(segment) else {
            return Cow::Owned(self.computed(position).collect());
        };
        let turns = kept.get_or_init(|| {
            let start = segment * SEGMENT_POSITIONS;
            (start..start + SEGMENT_POSITIONS)
                .flat_map(|position| self.computed(position))
                .collect()
        });
        Cow::Borrowed(&turns[position % SEGMENT_POSITIONS * pairs..][..pairs])
    }

    fn computed(&self, position: usize) -> impl Iterator<Item = Turn> {
        self.inverse_frequency.iter().map(move |inverse_frequency| {
            let (sine, cosine) = (position as f32 * inverse_frequency).sin_cos();
            let factor = self.attention_factor;
            Turn { cosine: cosine * factor, sine: sine * factor }
        })
    }
}

/// Turns the heads in `values`, `[tokens, heads, head_size]`, whose first token is at `position`.
///
/// The layout is that of Hugging Face: value `i` of a head turns with value `i + head_size / 2`.
///
/// # Panics
/// Where `values` has not whole tokens.
pub fn rope(table: &RopeTable, values: &mut [f32], heads: usize, position: usize) {
    let tokens = values.len() / (table.head_size() * heads).max(1);
    let positions: Vec<usize> = (position..position + tokens).collect();
    rope_at(table, values, heads, &positions);
}

/// As [`rope`], with a position for each token: those of several sessions turn together.
///
/// # Panics
/// Where `values` has not a token for each position.
pub fn rope_at(table: &RopeTable, values: &mut [f32], heads: usize, positions: &[usize]) {
    let (head_size, token_values) = (table.head_size(), table.head_size() * heads);
    assert!(token_values > 0, "a token has heads, and they have values");
    assert_eq!(values.len(), token_values * positions.len(), "each token has a position");
    let share = (PARALLEL_WORK_MIN / token_values).max(1);
    let shares = values.chunks_mut(share * token_values).zip(positions.chunks(share));
    parallel::for_each(shares, |(tokens, positions)| {
        for (&position, token) in positions.iter().zip(tokens.chunks_exact_mut(token_values)) {
            let turns = table.turns(position);
            token.chunks_exact_mut(head_size).for_each(|head| turn(head, &turns));
        }
    });
}

fn turn(head: &mut [f32], turns: &[Turn]) {
    let (first, second) = head.split_at_mut(turns.len());
    for ((first, second), turn) in first.iter_mut().zip(second).zip(turns) {
        let (x, y) = (*first, *second);
        *first = x * turn.cosine - y * turn.sine;
        *second = y * turn.cosine + x * turn.sine;
    }
}

/// `theta^(-2 pair / head_size)`: the exponent and the quotient are rounded to binary32, as
/// transformers does; the power between them is correctly rounded, as no vector library promises.
fn plain(theta: f32, pair: usize, head_size: usize) -> f32 {
    let exponent = (2 * pair) as f32 / head_size as f32;
    1.0 / narrow(f64::from(theta).powf(exponent.into()))
}

/// The inverse frequencies after scaling, and the factor of cosines and sines.
fn scaled(rope: &Rope, mut plain: Vec<f32>) -> (Vec<f32>, f32) {
    let mut attention_factor = 1.0;
    match &rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => plain.iter_mut().for_each(|value| *value /= factor),
        RopeScaling::Factors(factors) => {
            assert_eq!(plain.len(), factors.len(), "there is a factor for each pair");
            plain.iter_mut().zip(factors).for_each(|(value, factor)| *value /= factor);
        }
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context_tokens,
        } => {
            let context = original_context_tokens as f32;
            for value in &mut plain {
                let wavelength = 2.0 * PI / *value;
                if wavelength > context / low {
                    *value /= factor;
                } else if wavelength >= context / high {
                    let smooth = (context / wavelength - low) / (high - low);
                    *value = (1.0 - smooth) * *value / factor + smooth * *value;
                }
            }
        }
        &RopeScaling::Yarn {
            factor,
            original_context_tokens,
            beta_fast,
            beta_slow,
            attention_factor: given,
            truncate,
        } => {
            attention_factor = given;
            let head_size = plain.len() * 2;
            let ends = [beta_fast, beta_slow].map(|turns| {
                let context = original_context_tokens as f64;
                pair_that_turns(turns.into(), context, rope.theta.into(), head_size as f64)
            });
            let ramp = Ramp::new(ends, truncate, head_size);
            for (pair, value) in plain.iter_mut().enumerate() {
                let stretched = ramp.at(pair);
                *value = *value / factor * stretched + *value * (1.0 - stretched);
            }
        }
    }
    (plain, attention_factor)
}

/// The pair, with a fraction, that turns `turns` times within `context` positions.
fn pair_that_turns(turns: f64, context: f64, theta: f64, head_size: f64) -> f64 {
    let turn = 2.0 * std::f64::consts::PI;
    head_size * (context / (turns * turn)).ln() / (2.0 * theta.ln())
}

/// From 0 at the pairs that are not stretched to 1 at those that are stretched wholly.
struct Ramp {
    start: f32,
    width: f32,
}

impl Ramp {
    fn new([start, end]: [f64; 2], truncate: bool, head_size: usize) -> Self {
        let (start, end) = if truncate { (start.floor(), end.ceil()) } else { (start, end) };
        let (start, end) = (start.max(0.0), end.min(head_size as f64 - 1.0));
        // Transformers' own guard against a ramp without width.
        let end = if start == end { end + 0.001 } else { end };
        Self { start: narrow(start), width: narrow(end - start) }
    }

    fn at(&self, pair: usize) -> f32 {
        ((pair as f32 - self.start) / self.width).clamp(0.0, 1.0)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "binary32 is what transformers computes in")]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests;
