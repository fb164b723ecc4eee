//! Packed weights back in binary32, a tile at a time: what gradients are multiplied with.
//!
//! A product with the transposed matrix sums over rows, and the panels are written for sums over
//! columns. So a tile of a panel is unpacked, used and forgotten; a whole matrix in binary32 would be
//! up to seven times the weights.

use std::ops::Range;

use super::{Layout, PackedMatrix};

/// Columns of a tile: a multiple of the 32 in a block of any type, and few enough that a tile of 64
/// rows, 16 KiB, stays in the first-level cache with a gradient's row beside it.
pub(crate) const TILE_COLUMNS: usize = 64;

/// The most rows that a panel has.
pub(crate) const TILE_ROWS: usize = 64;

const _: () = assert!(
    TILE_ROWS >= super::dense::PANEL_ROWS && TILE_ROWS >= super::quantized::layout::PANEL_ROWS,
    "a panel fits in a tile"
);

/// Some rows and columns of a matrix; what lies beyond its edges is zero.
pub(crate) type WeightTile = [[f32; TILE_COLUMNS]; TILE_ROWS];

impl PackedMatrix {
    /// Rows of each panel, but for the last one, which may have fewer.
    pub(crate) const fn panel_rows(&self) -> usize {
        match &self.layout {
            Layout::Dense(_) => super::dense::PANEL_ROWS,
            Layout::Quantized(_) => super::quantized::layout::PANEL_ROWS,
        }
    }

    /// The rows of the panel `index`.
    pub(crate) fn rows_of_panel(&self, index: usize) -> Range<usize> {
        let start = index * self.panel_rows();
        start..self.rows.min(start + self.panel_rows())
    }

    /// How many panels there are.
    pub(crate) fn panel_count(&self) -> usize {
        self.rows.div_ceil(self.panel_rows())
    }

    /// Writes to `tile` the weights of the panel `index` in [`TILE_COLUMNS`] columns, the first of
    /// which is `tile_index * TILE_COLUMNS`. The values are those of
    /// [`dequantize_row`](crate::kernel::dequantize_row).
    ///
    /// # Panics
    /// Where there is no such panel or column.
    pub(crate) fn unpack(&self, index: usize, tile_index: usize, tile: &mut WeightTile) {
        let start = tile_index * TILE_COLUMNS;
        let columns = start..self.columns.min(start + TILE_COLUMNS);
        assert!(!columns.is_empty() && index < self.panel_count(), "the tile is in the matrix");
        tile.as_flattened_mut().fill(0.0);
        match &self.layout {
            Layout::Dense(dense) => dense.unpack(index, columns, tile),
            Layout::Quantized(quantized) => quantized.unpack(index, columns, tile),
        }
    }
}

#[cfg(test)]
mod tests {
    use umbel_shard::{Weight, WeightType};

    use super::*;
    use crate::kernel::specimen::{ALL_TYPES, Numbers, weights};
    use crate::kernel::{InstructionSet, dequantize_row};

    #[test]
    fn every_type_is_unpacked_to_what_its_file_says() {
        let mut numbers = Numbers(5);
        for kind in ALL_TYPES {
            let columns = if kind.is_float() { 129 } else { kind.block_values() * 3 };
            for rows in [1, 31, 70, 130] {
                let bytes = weights(kind, rows * columns, &mut numbers);
                let mut expected = vec![0.0; rows * columns];
                dequantize_row(kind, &bytes, &mut expected);
                for set in InstructionSet::all() {
                    let weight = Weight::new(kind, vec![rows, columns], &bytes[..]).unwrap();
                    let matrix = PackedMatrix::pack_for(set, &weight);
                    assert_eq!(unpacked(&matrix), expected, "{kind}, {rows} rows");
                }
            }
        }
        assert_eq!(ALL_TYPES.len(), WeightType::ALL.len());
    }

    fn unpacked(matrix: &PackedMatrix) -> Vec<f32> {
        let columns = matrix.columns();
        let mut all = vec![f32::NAN; matrix.rows() * columns];
        let mut tile = [[f32::NAN; TILE_COLUMNS]; TILE_ROWS];
        for panel in 0..matrix.panel_count() {
            for tile_index in 0..columns.div_ceil(TILE_COLUMNS) {
                matrix.unpack(panel, tile_index, &mut tile);
                for (row, values) in matrix.rows_of_panel(panel).zip(&tile) {
                    let start = tile_index * TILE_COLUMNS;
                    let count = TILE_COLUMNS.min(columns - start);
                    all[row * columns + start..][..count].copy_from_slice(&values[..count]);
                    assert!(values[count..].iter().all(|value| *value == 0.0));
                }
            }
        }
        all
    }
}
