//! 4 rows of a block to their 8 quads and their factors.

#[allow(clippy::wildcard_imports, reason = "intrinsics are named as the manual names them")]
use std::arch::aarch64::*;

use umbel_shard::WeightType;

use super::load;
use crate::kernel::packed::quantized::Panel;
use crate::kernel::packed::quantized::layout::{HalfLine, Line, QUADS, STRIP_ROWS};

/// Values of a register.
pub(super) const LANES: usize = 4;

/// Registers for the rows of a strip.
pub(super) const PARTS: usize = STRIP_ROWS / LANES;

/// A block of 4 rows, a register for each quad.
pub(super) type Quads = [uint8x16_t; QUADS];

/// What the integers of a block stand for: `scales[half] * integer + minimum`, where the halves are
/// of 16 columns.
pub(super) struct Factors {
    pub(super) scales: [float32x4_t; 2],
    pub(super) minimum: float32x4_t,
}

/// 4 rows of a block.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) panel: Panel<'a>,
    pub(super) block: usize,
    pub(super) strip: usize,
    pub(super) part: usize,
}

impl Rows<'_> {
    /// The weights of a block.
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn quads(self) -> Quads {
        let Self { panel, block, strip, part } = self;
        let bytes = |line: &Line| load::bytes_16(&line.0.as_chunks().0[part]);
        match panel.kind {
            WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => {
                bits_4(panel.lines::<4>(block, strip).each_ref().map(bytes))
            }
            WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => {
                let [first @ .., fifth] = panel.lines::<5>(block, strip).each_ref().map(bytes);
                add_fifth(fifth, bits_4(first))
            }
            WeightType::Q6K => {
                let [first @ .., upper, last_upper] =
                    panel.lines::<6>(block, strip).each_ref().map(bytes);
                add_upper([upper, last_upper], bits_4(first))
            }
            WeightType::Q8_0 => panel.lines::<8>(block, strip).each_ref().map(bytes),
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                unreachable!("weights in floating point are not packed as integers")
            }
        }
    }

    /// The factors of a block.
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn factors(self) -> Factors {
        let Self { panel, block, strip, part } = self;
        let binary16 = |factors: &HalfLine| load::binary16(&factors.0.as_chunks().0[part]);
        let bytes = |half_line: &[u8; STRIP_ROWS]| half_line.as_chunks().0[part];
        let zero = vdupq_n_f32(0.0);
        match panel.kind {
            WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => {
                let [scale] = panel.factors::<1>(block, strip).each_ref().map(binary16);
                Factors { scales: [scale; 2], minimum: zero }
            }
            WeightType::Q4_1 | WeightType::Q5_1 => {
                let [scale, minimum] = panel.factors::<2>(block, strip).each_ref().map(binary16);
                Factors { scales: [scale; 2], minimum }
            }
            WeightType::Q4K | WeightType::Q5K => {
                let [scale, minimum] = panel.supers::<2>(block, strip).each_ref().map(binary16);
                let [factors] = panel.factors::<1>(block, strip);
                let [scales, minimums] = factors
                    .halves()
                    .map(|half_line| vcvtq_f32_u32(load::widened(bytes(half_line))));
                let minimum = vnegq_f32(vmulq_f32(minimum, minimums));
                Factors { scales: [vmulq_f32(scale, scales); 2], minimum }
            }
            WeightType::Q6K => {
                let [scale] = panel.supers::<1>(block, strip).each_ref().map(binary16);
                let [factors] = panel.factors::<1>(block, strip);
                let scales = factors.halves().map(|half_line| {
                    vmulq_f32(scale, vcvtq_f32_s32(load::widened_signed(bytes(half_line))))
                });
                Factors { scales, minimum: zero }
            }
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                unreachable!("weights in floating point are not packed as integers")
            }
        }
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn bits_4(lines: [uint8x16_t; 4]) -> Quads {
    let mut quads = [vdupq_n_u8(0); QUADS];
    for (quad, halves) in lines.into_iter().enumerate() {
        quads[quad] = vandq_u8(halves, vdupq_n_u8(0xf));
        quads[quad + 4] = vshrq_n_u8::<4>(halves);
    }
    quads
}

#[target_feature(enable = "neon")]
#[inline]
fn add_fifth(fifth: uint8x16_t, mut quads: Quads) -> Quads {
    let shifted = [
        vshlq_n_u8::<4>(fifth),
        vshlq_n_u8::<3>(fifth),
        vshlq_n_u8::<2>(fifth),
        vshlq_n_u8::<1>(fifth),
        fifth,
        vshrq_n_u8::<1>(fifth),
        vshrq_n_u8::<2>(fifth),
        vshrq_n_u8::<3>(fifth),
    ];
    for (quad, shifted) in quads.iter_mut().zip(shifted) {
        *quad = vorrq_u8(*quad, vandq_u8(shifted, vdupq_n_u8(0x10)));
    }
    quads
}

#[target_feature(enable = "neon")]
#[inline]
fn add_upper(lines: [uint8x16_t; 2], mut quads: Quads) -> Quads {
    for (quads, upper) in quads.as_chunks_mut::<4>().0.iter_mut().zip(lines) {
        let shifted =
            [vshlq_n_u8::<4>(upper), vshlq_n_u8::<2>(upper), upper, vshrq_n_u8::<2>(upper)];
        for (quad, shifted) in quads.iter_mut().zip(shifted) {
            *quad = vorrq_u8(*quad, vandq_u8(shifted, vdupq_n_u8(0x30)));
        }
    }
    quads
}
