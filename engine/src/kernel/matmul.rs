//! A weight matrix times rows of activations.
//!
//! Weights in floating point are multiplied in binary32. Quantized weights stay integers: the
//! activations are rounded to 8 bits once for each call, and blocks are multiplied as integers and
//! summed in binary32, as GGML does it. Nothing is widened but what a register holds.

use umbel_shard::{Weight, WeightType};

use super::activation::Activations;
use super::{InstructionSet, PARALLEL_WORK_MIN, parallel, portable};

/// Tokens that share the weights in a kernel's registers.
pub(super) const TILE_TOKENS: usize = 4;

/// Weights that stay in the second-level cache while all tokens pass over them: half of the 512 KiB
/// that Zen and the smaller cores of Intel have.
const PANEL_BYTES: usize = 256 * 1024;

/// Rows of a panel and of a thread's share are multiples of this, so that few tiles are cut short:
/// tiles have 1, 2, 3 or 4 rows.
const TILE_ROWS: usize = 12;

/// Shares of the rows for each thread: threads are rarely equally fast.
const SHARES_PER_THREAD: usize = 4;

/// A weight matrix as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    /// How the weights are written.
    pub kind: WeightType,
    /// `[rows, columns]` of them, at any alignment.
    pub bytes: &'a [u8],
    /// Values of an output row.
    pub rows: usize,
    /// Values of an input row.
    pub columns: usize,
}

impl<'a> WeightView<'a> {
    /// The matrix that `weight` is.
    #[must_use]
    pub fn of(weight: &'a Weight) -> Self {
        Self {
            kind: weight.weight_type(),
            bytes: weight.bytes(),
            rows: weight.rows(),
            columns: weight.columns(),
        }
    }

    fn row_bytes(&self) -> usize {
        assert_eq!(self.columns % self.kind.block_values(), 0, "a row has whole blocks");
        self.columns / self.kind.block_values() * self.kind.block_bytes()
    }
}

/// `output = input * weight^T`, from `[tokens, columns]` to `[tokens, rows]`.
///
/// # Panics
/// Where the sizes do not fit each other: weights are checked when they are loaded.
pub fn matmul(weight: WeightView<'_>, input: &[f32], output: &mut [f32]) {
    matmul_with(InstructionSet::detected(), weight, input, output);
}

/// As [`matmul`], with the instructions of `set`.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_with(set: InstructionSet, weight: WeightView<'_>, input: &[f32], output: &mut [f32]) {
    let (rows, columns, row_bytes) = (weight.rows, weight.columns, weight.row_bytes());
    assert!(rows > 0 && columns > 0, "a matrix has rows and columns");
    assert_eq!(weight.bytes.len(), rows * row_bytes, "the bytes hold the matrix");
    let tokens = input.len() / columns;
    assert_eq!(input.len(), tokens * columns, "the input has whole rows");
    assert_eq!(output.len(), tokens * rows, "the output has a row for each of the input");
    if tokens == 0 {
        return;
    }
    let activations = Activations::prepare(set, weight.kind, input, columns);
    let share_rows = share_rows(rows, columns * tokens);
    let share = |(bytes, mut outputs): (&[u8], Vec<&mut [f32]>)| {
        multiply_share(set, weight.kind, row_bytes, bytes, &activations, &mut outputs);
    };
    let shares =
        weight.bytes.chunks(share_rows * row_bytes).zip(columns_of(output, rows, share_rows));
    if share_rows < rows {
        parallel::for_each(shares, share);
    } else {
        shares.for_each(share);
    }
}

/// Consecutive rows of a matrix, and the tokens that a kernel multiplies them with.
///
/// There are at most [`TILE_TOKENS`] of these, each with an output of its own.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) kind: WeightType,
    pub(super) bytes: &'a [u8],
    pub(super) row_bytes: usize,
    /// Where the panel's first row is in each output.
    pub(super) first_row: usize,
    pub(super) activations: &'a Activations<'a>,
    /// Which of the activations the first output is for.
    pub(super) first_token: usize,
}

impl<'a> Panel<'a> {
    /// The bytes of each row, with its place in the outputs.
    pub(super) fn rows(self) -> impl Iterator<Item = (usize, &'a [u8])> {
        (self.first_row..).zip(self.bytes.chunks_exact(self.row_bytes))
    }
}

/// How many rows one thread takes at a time; `row_work` is the work for one of them.
fn share_rows(rows: usize, row_work: usize) -> usize {
    let enough = PARALLEL_WORK_MIN.div_ceil(row_work);
    let fair = rows.div_ceil(parallel::thread_count() * SHARES_PER_THREAD);
    enough.max(fair).next_multiple_of(TILE_ROWS)
}

/// Cuts `output`, `[tokens, rows]`, into shares of `share_rows` columns; each has a slice per token.
fn columns_of(
    output: &mut [f32],
    rows: usize,
    share_rows: usize,
) -> impl Iterator<Item = Vec<&mut [f32]>> {
    let tokens = output.len() / rows;
    let mut shares: Vec<_> =
        (0..rows.div_ceil(share_rows)).map(|_| Vec::with_capacity(tokens)).collect();
    for token in output.chunks_exact_mut(rows) {
        shares
            .iter_mut()
            .zip(token.chunks_mut(share_rows))
            .for_each(|(share, part)| share.push(part));
    }
    shares.into_iter()
}

/// All tokens times the rows of one share.
fn multiply_share(
    set: InstructionSet,
    kind: WeightType,
    row_bytes: usize,
    bytes: &[u8],
    activations: &Activations<'_>,
    outputs: &mut [&mut [f32]],
) {
    let panel_rows = (PANEL_BYTES / row_bytes).max(1).next_multiple_of(TILE_ROWS);
    for (panel, bytes) in bytes.chunks(panel_rows * row_bytes).enumerate() {
        for (tile, outputs) in outputs.chunks_mut(TILE_TOKENS).enumerate() {
            let (first_row, first_token) = (panel * panel_rows, tile * TILE_TOKENS);
            let panel = Panel { kind, bytes, row_bytes, first_row, activations, first_token };
            match set {
                InstructionSet::Portable => portable::multiply(panel, outputs),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2(avx2) => avx2.multiply(panel, outputs),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512(avx512) => avx512.avx2().multiply(panel, outputs),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Amx(amx) => amx.avx512().avx2().multiply(panel, outputs),
                #[cfg(target_arch = "aarch64")]
                InstructionSet::Neon(_) => portable::multiply(panel, outputs),
            }
        }
    }
}

#[cfg(test)]
mod tests;
