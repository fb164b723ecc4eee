//! Panels of integers back in binary32.

use std::ops::Range;

use half::f16;
use umbel_shard::WeightType;

use super::layout::{self, Form, HalfLine, STRIP_ROWS, STRIPS, SUPER_BLOCKS};
use super::{Panel, QuantizedMatrix};
use crate::kernel::format::{BLOCK_VALUES, GROUP_VALUES, SUPER_VALUES};
use crate::kernel::packed::unpack::WeightTile;

impl QuantizedMatrix {
    /// Writes `columns` of the panel `index`, which are whole blocks, to the beginning of the rows of
    /// `tile`.
    pub(in crate::kernel::packed) fn unpack(
        &self,
        index: usize,
        columns: Range<usize>,
        tile: &mut WeightTile,
    ) {
        let panel = self.panel(index);
        for block in columns.start / BLOCK_VALUES..columns.end / BLOCK_VALUES {
            let column = block * BLOCK_VALUES - columns.start;
            for (strip, rows) in tile.chunks_mut(STRIP_ROWS).take(STRIPS).enumerate() {
                let strip = Strip::of(panel, block, strip);
                for (row, values) in rows.iter_mut().enumerate() {
                    strip.unpack(row, &mut values[column..column + BLOCK_VALUES]);
                }
            }
        }
    }
}

/// 16 rows of a block.
struct Strip<'a> {
    kind: WeightType,
    quads: layout::Quads,
    factors: &'a [HalfLine],
    supers: &'a [HalfLine],
}

impl<'a> Strip<'a> {
    fn of(panel: Panel<'a>, block: usize, strip: usize) -> Self {
        // Of 256 columns in both strips, so that no type has a fraction.
        let [lines, factors, supers] = Form::of(panel.kind).panel_sizes(SUPER_VALUES);
        let (lines, factors) = (lines / SUPER_BLOCKS / STRIPS, factors / SUPER_BLOCKS / STRIPS);
        let (supers, place) = (supers / STRIPS, block * STRIPS + strip);
        Self {
            kind: panel.kind,
            quads: layout::quads(panel.kind, &panel.quants[place * lines..][..lines]),
            factors: &panel.factors[place * factors..][..factors],
            supers: &panel.supers[(block / SUPER_BLOCKS * STRIPS + strip) * supers..][..supers],
        }
    }

    /// Each value as [`dequantize_row`](crate::kernel::dequantize_row) computes it.
    fn unpack(&self, row: usize, output: &mut [f32]) {
        let zero = f32::from(Form::of(self.kind).zero);
        let integers = self.quads.iter().flat_map(|quad| &quad[row * 4..row * 4 + 4]);
        let integers = integers.map(|&integer| f32::from(integer) - zero);
        for (column, (output, integer)) in output.iter_mut().zip(integers).enumerate() {
            *output = match (self.factors, self.supers) {
                ([scale], []) => binary16(scale, row) * integer,
                ([scale, minimum], []) => binary16(scale, row) * integer + binary16(minimum, row),
                ([small], [scale, minimum]) => {
                    let [scales, minimums] = small.halves().map(|half| signed(half[row]));
                    binary16(scale, row) * scales * integer - binary16(minimum, row) * minimums
                }
                ([small], [scale]) => {
                    let scales = small.halves()[column / GROUP_VALUES][row];
                    binary16(scale, row) * signed(scales) * integer
                }
                (_, _) => unreachable!("no type has other factors"),
            };
        }
    }
}

fn binary16(factors: &HalfLine, row: usize) -> f32 {
    f16::from_le_bytes([factors.0[row * 2], factors.0[row * 2 + 1]]).to_f32()
}

fn signed(byte: u8) -> f32 {
    f32::from(byte.cast_signed())
}
