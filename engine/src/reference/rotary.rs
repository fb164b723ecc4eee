//! Rotary positions and their scalings, after `modeling_rope_utils.py` of transformers.

use std::f64::consts::PI;

use candle_core::{D, Device, Result, Tensor};
use umbel_shard::{Rope, RopeScaling};

/// Turns heads `[heads, tokens, head_size]` whose first token stands at position 0.
///
/// A pair is a value of the first half of a head and the one at its place in the second half.
pub(super) fn turn(rope: &Rope, heads: &Tensor) -> Result<Tensor> {
    let (_, tokens, head_size) = heads.dims3()?;
    let angles = (0..tokens).flat_map(|position| {
        let frequencies = inverse_frequencies(rope, head_size);
        frequencies.into_iter().map(move |frequency| position as f64 * frequency)
    });
    let angles: Vec<f64> = angles.collect();
    let scale = attention_factor(&rope.scaling);
    let of = |function: fn(f64) -> f64| {
        let values = angles.iter().map(|&angle| narrow(function(angle) * scale));
        Tensor::from_iter(values, &Device::Cpu)?.reshape((tokens, head_size / 2))
    };
    let (cosine, sine) = (of(f64::cos)?, of(f64::sin)?);
    let first = heads.narrow(D::Minus1, 0, head_size / 2)?;
    let second = heads.narrow(D::Minus1, head_size / 2, head_size / 2)?;
    let turned_first = (first.broadcast_mul(&cosine)? - second.broadcast_mul(&sine)?)?;
    let turned_second = (second.broadcast_mul(&cosine)? + first.broadcast_mul(&sine)?)?;
    Tensor::cat(&[turned_first, turned_second], D::Minus1)
}

/// How far each pair of a head turns from one position to the next, in radians.
fn inverse_frequencies(rope: &Rope, head_size: usize) -> Vec<f64> {
    let pairs = head_size / 2;
    let plain = |pair: usize| f64::from(rope.theta).powf(-(2.0 * pair as f64) / head_size as f64);
    let scaled = |pair: usize| match &rope.scaling {
        RopeScaling::None => plain(pair),
        RopeScaling::Linear { factor } => plain(pair) / f64::from(*factor),
        RopeScaling::Factors(factors) => plain(pair) / f64::from(factors[pair]),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context_tokens,
        } => {
            let turns = *original_context_tokens as f64 * plain(pair) / (2.0 * PI);
            let (low, high) = (f64::from(*low), f64::from(*high));
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            plain(pair) * (smooth + (1.0 - smooth) / f64::from(*factor))
        }
        RopeScaling::Yarn {
            factor,
            original_context_tokens,
            beta_fast,
            beta_slow,
            attention_factor: _,
            truncate,
        } => {
            let pair_with_turns = |turns: f64| {
                let context = *original_context_tokens as f64;
                head_size as f64 * (context / (turns * 2.0 * PI)).ln()
                    / (2.0 * f64::from(rope.theta).ln())
            };
            let (mut low, mut high) =
                (pair_with_turns((*beta_fast).into()), pair_with_turns((*beta_slow).into()));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, high) = (low.max(0.0), high.min(head_size as f64 - 1.0));
            let width = if low == high { 0.001 } else { high - low };
            let stretched = ((pair as f64 - low) / width).clamp(0.0, 1.0);
            plain(pair) * (1.0 - stretched + stretched / f64::from(*factor))
        }
    };
    (0..pairs).map(scaled).collect()
}

/// What cosine and sine are multiplied by.
fn attention_factor(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Yarn { attention_factor, .. } => (*attention_factor).into(),
        RopeScaling::None
        | RopeScaling::Linear { .. }
        | RopeScaling::Llama3 { .. }
        | RopeScaling::Factors(_) => 1.0,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "binary32 is what the model computes in")]
fn narrow(value: f64) -> f32 {
    value as f32
}
