//! Quantized weights in panels of 32 rows.
//!
//! 16 rows are the lanes of an AVX-512 register, so the sums of a panel are two registers for each
//! token and never have to be added across. A panel is cut into blocks of 32 columns. In each the
//! weights are integers from zero on; what they are above (8 steps in Q4_0) is taken from the product
//! by the sum of the activations, which is known once for all rows. Packed, a matrix takes as many
//! bytes as in its file, and 3% more in Q4_K and Q5_K.
//!
//! | module | what it holds |
//! |---|---|
//! | [`layout`] | where the bits of a panel are |
//! | [`tokens`] | the activations, as integers of 16 bits |
//!
//! # Rounding
//!
//! The products within a block are summed as integers, so exactly and in any order. From block to
//! block they are multiplied by the scales of both sides and added in binary32, each product and each
//! sum rounded on its own, in the order of the columns. So the instruction sets agree in every bit.

pub(in crate::kernel) mod layout;
pub(in crate::kernel) mod tokens;

use umbel_shard::{Weight, WeightType};

use super::Arithmetic;
use crate::kernel::parallel::{self, for_each, for_each_part};
use crate::kernel::{InstructionSet, PARALLEL_WORK_MIN, portable};
use layout::{Form, HalfLine, Line, PANEL_ROWS, STRIP_ROWS, STRIPS, SUPER_BLOCKS};
use tokens::{TILE_TOKENS, TokenTile, Tokens};

/// Packed weights that stay in the second-level cache while all tokens pass over them, beside the
/// activations of a tile: a quarter of the 1 MiB that Zen 4 has, half of what Zen 2 has.
const GROUP_BYTES: usize = 256 * 1024;

/// Shares of the panels for each thread: threads are rarely equally fast.
const SHARES_PER_THREAD: usize = 4;

/// A quantized matrix in panels.
pub(super) struct QuantizedMatrix {
    set: InstructionSet,
    kind: WeightType,
    rows: usize,
    columns: usize,
    quants: Vec<Line>,
    factors: Vec<HalfLine>,
    supers: Vec<HalfLine>,
}

/// 32 rows of a matrix.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Panel<'a> {
    pub(in crate::kernel) kind: WeightType,
    quants: &'a [Line],
    factors: &'a [HalfLine],
    supers: &'a [HalfLine],
}

/// What a panel's rows sum up to for one token.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(in crate::kernel) struct Sums(pub(in crate::kernel) [[f32; STRIP_ROWS]; STRIPS]);

impl Sums {
    pub(in crate::kernel) const ZERO: Self = Self([[0.0; STRIP_ROWS]; STRIPS]);
}

impl QuantizedMatrix {
    /// Packs `weight`, which is quantized, for the instructions of `set`.
    pub(super) fn pack(set: InstructionSet, weight: &Weight) -> Self {
        let (kind, rows, columns) = (weight.weight_type(), weight.rows(), weight.columns());
        let form = Form::of(kind);
        let [quants, factors, supers] = form.panel_sizes(columns);
        let panels = rows.div_ceil(PANEL_ROWS);
        let mut matrix = Self {
            set,
            kind,
            rows,
            columns,
            quants: vec![Line::ZERO; panels * quants],
            factors: vec![HalfLine::ZERO; panels * factors],
            supers: vec![HalfLine::ZERO; panels * supers],
        };
        let panel_bytes = PANEL_ROWS * (weight.bytes().len() / rows);
        // A type may have none of the factors of 256 columns, and parts without length are no chunks.
        let mut rest = &mut matrix.supers[..];
        let supers_of: Vec<&mut [HalfLine]> = (0..panels)
            .map(|_| rest.split_off_mut(..supers).expect("there are factors for each panel"))
            .collect();
        let panels = weight
            .bytes()
            .chunks(panel_bytes)
            .zip(matrix.quants.chunks_mut(quants))
            .zip(matrix.factors.chunks_mut(factors))
            .zip(supers_of);
        for_each(panels, |(((bytes, quants), factors), supers)| {
            let row_bytes = panel_bytes / PANEL_ROWS;
            layout::pack(kind, row_bytes, bytes, quants, factors, supers);
        });
        matrix
    }

    /// `output = input * self^T`, from `[tokens, columns]` to `[tokens, rows]`.
    pub(super) fn multiply(&self, arithmetic: Arithmetic, input: &[f32], output: &mut [f32]) {
        let tokens = input.len() / self.columns;
        assert_eq!(input.len(), tokens * self.columns, "the input has whole rows");
        assert_eq!(output.len(), tokens * self.rows, "the output has a row for each of the input");
        if tokens == 0 {
            return;
        }
        let tokens = Tokens::prepare(self.set, self.kind, arithmetic, input, self.columns);
        let share_panels = self.share_panels(tokens.count());
        let shares: Vec<_> = shares(output, self.rows, share_panels * PANEL_ROWS);
        for_each_part(shares, |share, mut outputs| {
            let first = share * share_panels;
            let last = (first + share_panels).min(self.rows.div_ceil(PANEL_ROWS));
            self.multiply_share(first, last, &tokens, &mut outputs);
        });
    }

    /// How many panels one thread takes at a time.
    fn share_panels(&self, tokens: usize) -> usize {
        let panels = self.rows.div_ceil(PANEL_ROWS);
        let enough = PARALLEL_WORK_MIN.div_ceil(PANEL_ROWS * self.columns * tokens);
        let fair = panels.div_ceil(parallel::thread_count() * SHARES_PER_THREAD);
        enough.max(fair)
    }

    /// All tokens times the panels from `first` to before `last`, whose rows `outputs` has for each.
    fn multiply_share(
        &self,
        first: usize,
        last: usize,
        tokens: &Tokens<'_>,
        outputs: &mut [&mut [f32]],
    ) {
        let [quants, ..] = Form::of(self.kind).panel_sizes(self.columns);
        let group_panels = (GROUP_BYTES / (quants * size_of::<Line>())).max(1);
        let mut sums = [Sums::ZERO; TILE_TOKENS];
        for group in (first..last).step_by(group_panels) {
            for (index, outputs) in outputs.chunks_mut(TILE_TOKENS).enumerate() {
                let tile = tokens.tile(index);
                for panel in group..(group + group_panels).min(last) {
                    let sums = &mut sums[..outputs.len()];
                    multiply_tile(self.set, self.panel(panel), tile, sums);
                    let start = (panel - first) * PANEL_ROWS;
                    for (output, sums) in outputs.iter_mut().zip(sums) {
                        let end = output.len().min(start + PANEL_ROWS);
                        output[start..end].copy_from_slice(&sums.0.as_flattened()[..end - start]);
                    }
                }
            }
        }
    }

    fn panel(&self, index: usize) -> Panel<'_> {
        let [quants, factors, supers] = Form::of(self.kind).panel_sizes(self.columns);
        Panel {
            kind: self.kind,
            quants: &self.quants[index * quants..][..quants],
            factors: &self.factors[index * factors..][..factors],
            supers: &self.supers[index * supers..][..supers],
        }
    }
}

impl<'a> Panel<'a> {
    /// What the packed integers are above those that they stand for.
    pub(in crate::kernel) const fn zero(self) -> u8 {
        Form::of(self.kind).zero
    }

    /// The quants of a block in a strip, where its type has `N` lines of them.
    #[inline(always)]
    pub(in crate::kernel) fn lines<const N: usize>(
        self,
        block: usize,
        strip: usize,
    ) -> &'a [Line; N] {
        &self.quants.as_chunks().0[block * STRIPS + strip]
    }

    /// The factors of a block in a strip.
    #[inline(always)]
    pub(in crate::kernel) fn factors<const N: usize>(
        self,
        block: usize,
        strip: usize,
    ) -> &'a [HalfLine; N] {
        &self.factors.as_chunks().0[block * STRIPS + strip]
    }

    /// The factors of the 256 columns that a block is among, in a strip.
    #[inline(always)]
    pub(in crate::kernel) fn supers<const N: usize>(
        self,
        block: usize,
        strip: usize,
    ) -> &'a [HalfLine; N] {
        &self.supers.as_chunks().0[block / SUPER_BLOCKS * STRIPS + strip]
    }
}

/// Cuts `output`, `[tokens, rows]`, into shares of `share_rows` columns; each has a slice per token.
fn shares(output: &mut [f32], rows: usize, share_rows: usize) -> Vec<Vec<&mut [f32]>> {
    let tokens = output.len() / rows;
    let mut shares: Vec<_> =
        (0..rows.div_ceil(share_rows)).map(|_| Vec::with_capacity(tokens)).collect();
    for token in output.chunks_exact_mut(rows) {
        let parts = token.chunks_mut(share_rows);
        shares.iter_mut().zip(parts).for_each(|(share, part)| share.push(part));
    }
    shares
}

/// One panel times one tile of tokens; there is a place for the sums of each.
fn multiply_tile(set: InstructionSet, panel: Panel<'_>, tile: TokenTile<'_>, sums: &mut [Sums]) {
    match set {
        InstructionSet::Portable => portable::packed_quantized::multiply(panel, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(avx2) => avx2.multiply_panel(panel, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(avx512) => avx512.multiply_panel(panel, tile, sums),
    }
}

#[cfg(test)]
mod tests;
