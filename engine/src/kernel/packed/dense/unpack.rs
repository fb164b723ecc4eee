//! Panels in floating point back in binary32.

use std::ops::Range;

use half::{bf16, f16};

use super::{DenseMatrix, Format, PANEL_ROWS};
use crate::kernel::packed::unpack::WeightTile;

impl DenseMatrix {
    /// Writes `columns` of the panel `index`, the first of which is even, to the beginning of the
    /// rows of `tile`.
    pub(in crate::kernel::packed) fn unpack(
        &self,
        index: usize,
        columns: Range<usize>,
        tile: &mut WeightTile,
    ) {
        let step_columns = self.format.step_columns();
        let panel_bytes = self.columns.div_ceil(step_columns) * self.format.step_bytes();
        let panel = &self.panels.bytes()[index * panel_bytes..][..panel_bytes];
        let steps = columns.start / step_columns..columns.end.div_ceil(step_columns);
        for step in steps {
            let column = step * step_columns - columns.start;
            let words = &panel[step * self.format.step_bytes()..][..self.format.step_bytes()];
            let words = words.chunks_exact(self.format.row_bytes()).take(PANEL_ROWS);
            for (row, word) in tile.iter_mut().zip(words) {
                match (self.format, word) {
                    (Format::Binary32, &[a, b, c, d]) => {
                        row[column] = f32::from_le_bytes([a, b, c, d]);
                    }
                    (Format::Binary16, &[a, b]) => {
                        row[column] = f16::from_le_bytes([a, b]).to_f32()
                    }
                    (
                        Format::Bfloat16 | Format::Bfloat16Pairs | Format::Bfloat16Tiles,
                        &[a, b, c, d],
                    ) => {
                        // The second column of the last step of an odd number is a zero.
                        row[column] = bf16::from_le_bytes([a, b]).to_f32();
                        row[column + 1] = bf16::from_le_bytes([c, d]).to_f32();
                    }
                    (_, word) => unreachable!("{} bytes of a row in a step", word.len()),
                }
            }
        }
    }
}
