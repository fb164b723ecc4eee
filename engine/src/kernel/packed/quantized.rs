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
//! | [`tokens`] | the activations, as integers of 8 or 16 bits |
//!
//! # Rounding
//!
//! The products within a block are summed as integers, so exactly and in any order. From block to
//! block they are multiplied by the scales of both sides and added in binary32, each product rounded
//! together with its sum, in the order of the columns. So the instruction sets agree in every bit.

pub(in crate::kernel) mod layout;
pub(in crate::kernel) mod tokens;
mod unpack;

use std::ops::Range;

use umbel_shard::{Weight, WeightType};

use super::outputs::Outputs;
use super::pages::Paged;
use super::{Arithmetic, Product, for_each_panels};
use crate::kernel::parallel::for_each;
use crate::kernel::{InstructionSet, portable};
use layout::{Form, HalfLine, Line, PANEL_ROWS, STRIP_ROWS, STRIPS, SUPER_BLOCKS};
use tokens::{TILE_TOKENS, TokenTile, Tokens};

/// Packed weights that stay in the second-level cache while all tokens pass over them, beside the
/// activations of a tile: a quarter of the 1 MiB that Zen 4 has, half of what Zen 2 has.
const GROUP_BYTES: usize = 256 * 1024;

/// A quantized matrix in panels.
pub(super) struct QuantizedMatrix {
    set: InstructionSet,
    kind: WeightType,
    rows: usize,
    columns: usize,
    quants: Paged<Line>,
    factors: Paged<HalfLine>,
    supers: Paged<HalfLine>,
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
            quants: Paged::zeroed(panels * quants),
            factors: Paged::zeroed(panels * factors),
            supers: Paged::zeroed(panels * supers),
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

    /// Whether what is prepared of an input for one of the matrices does for the other.
    pub(super) fn shares_tokens(&self, other: &Self) -> bool {
        (self.set, self.kind, self.columns) == (other.set, other.kind, other.columns)
    }

    /// All tokens times some panels.
    fn multiply_panels(&self, panels: Range<usize>, tokens: &Tokens<'_>, outputs: &Outputs<'_>) {
        let group_panels = group_panels(self.kind, self.columns);
        let mut sums = [Sums::ZERO; TILE_TOKENS];
        for group in panels.clone().step_by(group_panels) {
            for first in (0..tokens.count()).step_by(TILE_TOKENS) {
                let tile = tokens.tile(first / TILE_TOKENS);
                let sums = &mut sums[..TILE_TOKENS.min(tokens.count() - first)];
                for panel in group..(group + group_panels).min(panels.end) {
                    multiply_tile(self.set, self.panel(panel), tile, sums);
                    for (token, sums) in (first..).zip(sums.iter()) {
                        #[allow(
                            unsafe_code,
                            reason = "threads write to one slice in places that interleave"
                        )]
                        // SAFETY: each panel is in one range of one thread, and its rows are in no other.
                        unsafe {
                            outputs.write(token, panel * PANEL_ROWS, sums.0.as_flattened());
                        }
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

/// Panels that all tokens pass over before the next ones.
fn group_panels(kind: WeightType, columns: usize) -> usize {
    let [quants, ..] = Form::of(kind).panel_sizes(columns);
    (GROUP_BYTES / (quants * size_of::<Line>())).max(1)
}

/// Writes the outputs of each of `products`; what is prepared of an input does for all of them.
pub(super) fn multiply(
    products: &[Product<'_, QuantizedMatrix>],
    inputs: &[&[f32]],
    arithmetic: Arithmetic,
) {
    let Some(Product { matrix: QuantizedMatrix { set, kind, columns, .. }, .. }) = products.first()
    else {
        return;
    };
    let tokens =
        inputs.iter().map(|&input| Tokens::prepare(*set, *kind, arithmetic, input, *columns));
    let tokens: Vec<_> = tokens.collect();
    let panels = products.iter().map(|product| match tokens[product.input].count() {
        0 => 0,
        _ => product.matrix.rows.div_ceil(PANEL_ROWS),
    });
    let panels: Vec<_> = panels.collect();
    let rows_of_all = panels
        .iter()
        .zip(products)
        .map(|(panels, product)| panels * PANEL_ROWS * tokens[product.input].count());
    let work = rows_of_all.sum::<usize>() * columns;
    // A lone tile reads each panel once, so few of them are taken at a time: nobody waits long for the last.
    let tiles = tokens.iter().any(|tokens| tokens.count() > TILE_TOKENS);
    let together = if tiles { group_panels(*kind, *columns) } else { 2 };
    for_each_panels(&panels, work, together, |product, panels| {
        let Product { matrix, input, outputs } = products[product];
        matrix.multiply_panels(panels, &tokens[input], outputs);
    });
}

/// One panel times one tile of tokens; there is a place for the sums of each.
fn multiply_tile(set: InstructionSet, panel: Panel<'_>, tile: TokenTile<'_>, sums: &mut [Sums]) {
    match set {
        InstructionSet::Portable => portable::packed_quantized::multiply(panel, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(avx2) => avx2.multiply_panel(panel, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(avx512) => avx512.multiply_panel(panel, tile, sums),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx(amx) => amx.multiply_panel(panel, tile, sums),
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(neon) => neon.multiply_panel(panel, tile, sums),
    }
}

#[cfg(test)]
mod tests;
