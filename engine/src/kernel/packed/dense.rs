//! Weights in floating point, in panels.
//!
//! # The layout
//!
//! A panel is [`PANEL_ROWS`] rows of the matrix, the last one filled up with rows of zeros. It is
//! written step by step: a step is what its rows have in one column, or in bfloat16 in two, row after
//! row. So a kernel reads a panel from its first byte to its last, and one load of 64 bytes holds 16
//! rows in binary32, or 16 rows of two columns in bfloat16 as VDPBF16PS multiplies them.
//!
//! # The order of sums
//!
//! Each output has a lane of its own, to which its products are added from the first column to the
//! last, by tiles of AMX 32 columns at a time. How many tokens are side by side decides how lanes share
//! registers and loads, and nothing else: a sum that leaves its register between two blocks of columns
//! comes back as it was. So one row and many rows give the same bits by construction.

mod format;
mod inputs;
mod pack;
mod unpack;

use std::ops::Range;

use umbel_shard::Weight;

#[cfg(target_arch = "x86_64")]
use self::format::AMX_TOKENS;
pub(in crate::kernel) use self::format::{Format, TILE_STEPS};
use self::inputs::Inputs;
#[cfg(any(target_arch = "x86_64", test))]
pub(in crate::kernel) use self::inputs::round_pairs;
use super::outputs::Outputs;
use super::pages::Pages;
use super::{Arithmetic, InstructionSet, Product, for_each_panels};
use crate::kernel::portable;

/// Rows of a panel: 4 registers of AVX-512, which with 6 tokens make 24 sums, and 8 of the 32
/// registers stay for weights and inputs. The matrices of models have multiples of 64 rows.
pub(in crate::kernel) const PANEL_ROWS: usize = 64;

/// Bytes of a panel over which all tokens pass before the next ones are read. With the block that is
/// being fetched it is half of the 256 KiB of second-level cache that the smallest cores have.
const BLOCK_BYTES: usize = 64 * 1024;

/// The sums of a panel's rows for one token.
pub(in crate::kernel) type Sums = [f32; PANEL_ROWS];

/// Some steps of a panel, and the tokens that a kernel multiplies them with.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Tile<'a> {
    /// `[steps, rows of a panel]`.
    pub(in crate::kernel) weights: &'a [u8],
    /// `[steps, words of a step, tokens]`, or for tiles of AMX `[steps / 16, tokens, 16]`.
    pub(in crate::kernel) inputs: &'a [u32],
    /// What to fetch into the cache meanwhile.
    pub(in crate::kernel) ahead: &'a [u8],
}

/// A matrix `[rows, columns]` in panels.
pub(super) struct DenseMatrix {
    set: InstructionSet,
    format: Format,
    rows: usize,
    columns: usize,
    panels: Pages,
}

impl DenseMatrix {
    /// Packs `weight`; `None` where it is not in floating point, or empty.
    pub(super) fn pack(set: InstructionSet, weight: &Weight) -> Option<Self> {
        let format = Format::of(weight.weight_type())?;
        let (rows, columns) = (weight.rows(), weight.columns());
        if rows == 0 || columns == 0 {
            return None;
        }
        let panels = pack::panels(format, weight.bytes(), rows, columns);
        Some(Self { set, format, rows, columns, panels })
    }

    /// Whether what is prepared of an input for one of the matrices does for the other.
    pub(super) fn shares_inputs(&self, other: &Self) -> bool {
        (self.set, self.format, self.columns) == (other.set, other.format, other.columns)
    }

    fn panel_count(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// How weights and inputs are multiplied: only AVX-512 and AMX have a unit for pairs of bfloat16, and
    /// binary32 is no slower elsewhere.
    fn format(&self, arithmetic: Arithmetic) -> Format {
        match (self.set, self.format, arithmetic) {
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512(_), Format::Bfloat16, Arithmetic::Usual) => {
                Format::Bfloat16Pairs
            }
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Amx(_), Format::Bfloat16, Arithmetic::Usual) => Format::Bfloat16Tiles,
            (_, format, _) => format,
        }
    }

    fn multiply_panels(&self, panels: Range<usize>, inputs: &Inputs, outputs: &Outputs<'_>) {
        let panel_bytes =
            self.columns.div_ceil(self.format.step_columns()) * self.format.step_bytes();
        let bytes = &self.panels.bytes()[..self.panel_count() * panel_bytes];
        let mut sums = Vec::with_capacity(inputs.tokens());
        for panel in panels {
            sums.clear();
            sums.resize(inputs.tokens(), [0.0; PANEL_ROWS]);
            self.multiply_panel(&bytes[panel * panel_bytes..], panel_bytes, inputs, &mut sums);
            for (token, sums) in sums.iter().enumerate() {
                #[allow(
                    unsafe_code,
                    reason = "threads write to one slice in places that interleave"
                )]
                // SAFETY: each panel is in one range of one thread, and its rows are in no other.
                unsafe {
                    outputs.write(token, panel * PANEL_ROWS, sums);
                }
            }
        }
    }

    /// Adds to `sums` what the panel gives that is the first `panel_bytes` of `bytes`.
    fn multiply_panel(&self, bytes: &[u8], panel_bytes: usize, inputs: &Inputs, sums: &mut [Sums]) {
        let format = inputs.format();
        let block_steps = BLOCK_BYTES / format.step_bytes();
        for (block, weights) in bytes[..panel_bytes].chunks(BLOCK_BYTES).enumerate() {
            let end = block * BLOCK_BYTES + weights.len();
            let ahead_bytes = if self.reads_in_order(inputs) { 0 } else { BLOCK_BYTES };
            let ahead = &bytes[end..bytes.len().min(end + ahead_bytes)];
            let mut ahead = ahead.chunks(BLOCK_BYTES.div_ceil(inputs.tile_count()));
            let steps =
                block * block_steps..block * block_steps + weights.len() / format.step_bytes();
            for (tokens, words) in inputs.tiles() {
                let [start, end] =
                    [steps.start, steps.end].map(|steps| format.words_until(steps) * tokens.len());
                let inputs = &words[start..end];
                let tile = Tile { weights, inputs, ahead: ahead.next().unwrap_or_default() };
                multiply_tile(self.set, format, tile, &mut sums[tokens]);
            }
        }
    }

    /// Whether each byte is read once, in order: then it comes in time by itself.
    fn reads_in_order(&self, inputs: &Inputs) -> bool {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(_) => inputs.tile_count() == 1,
            // One tile of tokens takes all rows at once, two take half of them.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx(_) => inputs.tokens() <= AMX_TOKENS / 2,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2(_) => inputs.tokens() == 1,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon(_) => inputs.tokens() == 1,
            InstructionSet::Portable => true,
        }
    }
}

/// Writes the outputs of each of `products`; what is prepared of an input does for all of them.
pub(super) fn multiply(
    products: &[Product<'_, DenseMatrix>],
    inputs: &[&[f32]],
    arithmetic: Arithmetic,
) {
    let Some(Product { matrix: DenseMatrix { set, columns, .. }, .. }) = products.first() else {
        return;
    };
    let format = products[0].matrix.format(arithmetic);
    let prepare = |input: &&[f32]| Inputs::prepare(*set, format, input, *columns);
    let inputs: Vec<_> = inputs.iter().map(prepare).collect();
    let panels = products.iter().map(|product| match inputs[product.input].tokens() {
        0 => 0,
        _ => product.matrix.panel_count(),
    });
    let panels: Vec<_> = panels.collect();
    let rows_of_all = products
        .iter()
        .map(|product| product.matrix.panel_count() * PANEL_ROWS * inputs[product.input].tokens());
    let work = rows_of_all.sum::<usize>() * columns;
    for_each_panels(&panels, work, 1, |product, panels| {
        let Product { matrix, input, outputs } = products[product];
        matrix.multiply_panels(panels, &inputs[input], outputs);
    });
}

/// Adds the products of `tile` to the sums of its tokens.
fn multiply_tile(set: InstructionSet, format: Format, tile: Tile<'_>, sums: &mut [Sums]) {
    match set {
        InstructionSet::Portable => portable::multiply_tile(format, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(avx2) => avx2.multiply_tile(format, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(avx512) => avx512.multiply_tile(format, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx(amx) => amx.multiply_tile(format, tile, sums),
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(neon) => neon.multiply_tile(format, tile, sums),
    }
}

#[cfg(test)]
mod tests;
