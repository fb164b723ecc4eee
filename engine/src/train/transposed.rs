//! The gradient of a matrix product's input: rows of gradients times the matrix itself.
//!
//! Threads share the columns, so that each output is summed by one of them: within a panel from its
//! first row to its last, and then panel by panel. No bit depends on how many threads or on which
//! other tokens there are.

use std::ops::Range;

use crate::kernel::PackedMatrix;
use crate::kernel::packed::unpack::{TILE_COLUMNS, TILE_ROWS, WeightTile};
use crate::kernel::parallel::for_each;

/// Adds `gradient * matrix` to `output`: from `[tokens, rows]` to `[tokens, columns]`.
///
/// # Panics
/// Where the sizes do not fit each other.
pub(super) fn add_transposed(matrix: &PackedMatrix, gradient: &[f32], output: &mut [f32]) {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let tokens = gradient.len() / rows;
    assert_eq!(gradient.len(), tokens * rows, "a gradient for each row of the matrix");
    assert_eq!(output.len(), tokens * columns, "a gradient for each of its columns");
    let mut strips: Vec<Vec<Sums>> = vec![Vec::new(); columns.div_ceil(TILE_COLUMNS)];
    for_each(strips.iter_mut().enumerate(), |(index, strip)| {
        *strip = strip_of(matrix, index, gradient, tokens);
    });
    for (start, strip) in (0..columns).step_by(TILE_COLUMNS).zip(&strips) {
        let place = start..columns.min(start + TILE_COLUMNS);
        for (output, sums) in output.chunks_exact_mut(columns).zip(strip) {
            output[place.clone()].iter_mut().zip(sums).for_each(|(output, sum)| *output += sum);
        }
    }
}

/// What a token's gradient comes to in the columns of a tile.
type Sums = [f32; TILE_COLUMNS];

/// The sums of all tokens in the columns of the tile `index`.
fn strip_of(matrix: &PackedMatrix, index: usize, gradient: &[f32], tokens: usize) -> Vec<Sums> {
    let mut totals = vec![[0.0; TILE_COLUMNS]; tokens];
    let mut tile = [[0.0; TILE_COLUMNS]; TILE_ROWS];
    for panel in 0..matrix.panel_count() {
        matrix.unpack(panel, index, &mut tile);
        add_panel(&tile, matrix.rows_of_panel(panel), matrix.rows(), gradient, &mut totals);
    }
    totals
}

/// Adds what the rows `panel` of the matrix give for each token.
fn add_panel(
    tile: &WeightTile,
    panel: Range<usize>,
    rows: usize,
    gradient: &[f32],
    totals: &mut [Sums],
) {
    for (total, gradient) in totals.iter_mut().zip(gradient.chunks_exact(rows)) {
        let mut sums = [0.0; TILE_COLUMNS];
        for (weights, gradient) in tile.iter().zip(&gradient[panel.clone()]) {
            sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += gradient * weight);
        }
        total.iter_mut().zip(&sums).for_each(|(total, sum)| *total += sum);
    }
}
