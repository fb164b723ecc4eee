//! From rows as a file has them to panels.

use rayon::prelude::*;

use super::{Format, PANEL_ROWS};
use crate::kernel::packed::pages::Pages;

/// Steps that are written for all rows before the next ones: 4 KiB of a panel, which stay in the
/// first-level cache.
const TURN_STEPS: usize = 16;

/// The panels of the matrix `[rows, columns]` in `bytes`.
pub(super) fn panels(format: Format, bytes: &[u8], rows: usize, columns: usize) -> Pages {
    let row_bytes = columns * format.row_bytes() / format.step_columns();
    assert_eq!(bytes.len(), rows * row_bytes, "the bytes hold the matrix");
    let panel_bytes = columns.div_ceil(format.step_columns()) * format.step_bytes();
    let mut pages = Pages::zeroed(rows.div_ceil(PANEL_ROWS) * panel_bytes);
    pages
        .bytes_mut()
        .par_chunks_exact_mut(panel_bytes)
        .zip(bytes.par_chunks(PANEL_ROWS * row_bytes))
        .for_each(|(panel, rows)| match format.row_bytes() {
            2 => write_panel::<2>(panel, rows, row_bytes),
            4 => write_panel::<4>(panel, rows, row_bytes),
            bytes => unreachable!("{bytes} bytes of a row in a step"),
        });
    pages
}

/// Writes the steps of `panel`, whose rows have `N` bytes in each. Where a row ends within a step,
/// zeros follow it.
fn write_panel<const N: usize>(panel: &mut [u8], rows: &[u8], row_bytes: usize) {
    let turns = panel.chunks_mut(TURN_STEPS * PANEL_ROWS * N);
    for (turn, steps) in turns.enumerate() {
        let steps = steps.as_chunks_mut::<N>().0;
        for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
            let start = turn * TURN_STEPS * N;
            let bytes = &bytes[start..row_bytes.min(start + TURN_STEPS * N)];
            let (whole, rest) = bytes.as_chunks::<N>();
            let mut places = steps[row..].iter_mut().step_by(PANEL_ROWS);
            for (bytes, place) in whole.iter().zip(&mut places) {
                *place = *bytes;
            }
            if let (false, Some(place)) = (rest.is_empty(), places.next()) {
                place[..rest.len()].copy_from_slice(rest);
            }
        }
    }
}
