//! The matrices of a block's experts, one behind the other, and their products.

use bytemuck::{Pod, Zeroable};

use super::{CELL_TOKENS, Few, Layout, PARTS, ToGated, format_of, int, plain_rows};
use crate::cuda::cells::{self, CELL_COLUMNS, CELL_ROWS, Format, Source};
use crate::cuda::driver::{Buffer, CudaError, Launch};
use crate::cuda::gpu::Gpu;

/// Matrices `[rows, columns]`, one of each expert and all of one type.
#[derive(Debug)]
pub(in crate::cuda) struct Stacked {
    layout: Layout,
    rows: usize,
    columns: usize,
    data: Buffer,
}

/// What follows from the logits of a pass: `Routes` of `cuda/experts.cu`, which says what is at the
/// addresses.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cuda) struct Routes {
    pub(in crate::cuda) tiles: u64,
    pub(in crate::cuda) tokens: u64,
    pub(in crate::cuda) experts: u64,
    pub(in crate::cuda) rows: u64,
    pub(in crate::cuda) weights: u64,
    pub(in crate::cuda) tiles_max: i32,
    pub(in crate::cuda) count: i32,
}

/// How the rows of a pass are cut into tiles of one expert each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cuda) struct Tiling {
    /// Whether there is one token, so that each tile has one row.
    pub(in crate::cuda) alone: bool,
    /// The most rows of a tile.
    pub(in crate::cuda) rows: usize,
}

/// What the matrices of experts are multiplied with, and where the products go.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) enum OfExperts<'a> {
    /// With rows of tokens, in cells to gated features.
    Gated(&'a Buffer, ToGated),
    /// With rows of tokens, to rows of binary32.
    Tokens(&'a Buffer, &'a Buffer),
    /// With a row for each pair of a token and an expert, to rows of binary32.
    Pairs(&'a Buffer, &'a Buffer),
}

impl Stacked {
    /// Puts the rows of `count` experts, which `rows_of` gives by their number, into the memory of `gpu`.
    pub(in crate::cuda) fn load<'a>(
        gpu: &Gpu,
        count: usize,
        plain: bool,
        rows_of: impl Fn(usize) -> Vec<Source<'a>>,
    ) -> Result<Self, CudaError> {
        let first = rows_of(0);
        let columns = first.iter().flatten().next().map_or(0, |(weight, _)| weight.columns());
        let rows = first.len();
        let layout = if plain {
            Layout::Plain
        } else {
            let mut formats = (0..count).map(|index| format_of(&rows_of(index)));
            let format = format_of(&first);
            let same = formats.all(|of_other| of_other == format);
            Layout::Cells(if same { format } else { Format::Bf16 })
        };
        let bytes = match layout {
            Layout::Plain => rows * columns * size_of::<f32>(),
            Layout::Cells(format) => cells::packed_bytes(format, rows, columns),
        };
        let data = Buffer::new(gpu.context(), count * bytes)?;
        for index in 0..count {
            let own = rows_of(index);
            let packed = match layout {
                Layout::Plain => plain_rows(&own, columns),
                Layout::Cells(format) => cells::pack(format, &own, columns),
            };
            data.write(index * bytes, &packed)?;
        }
        Ok(Self { layout, rows, columns, data })
    }

    /// Enqueues the products of all rows that `routes` has.
    pub(in crate::cuda) fn multiply(
        &self,
        gpu: &Gpu,
        (routes, tiling, pairs): (&Routes, Tiling, usize),
        of: OfExperts<'_>,
    ) -> Result<(), CudaError> {
        match self.layout {
            Layout::Plain => self.multiply_plain(gpu, routes, pairs, of),
            Layout::Cells(format) => self.multiply_tiles(gpu, format, (routes, tiling), of),
        }
    }

    fn multiply_tiles(
        &self,
        gpu: &Gpu,
        format: Format,
        (routes, tiling): (&Routes, Tiling),
        of: OfExperts<'_>,
    ) -> Result<(), CudaError> {
        const THREADS: usize = PARTS * 32;
        let (input, output, gated) = match of {
            OfExperts::Gated(input, gated) => (input, 0, gated),
            OfExperts::Pairs(input, output) => (input, output.address(), ToGated::zeroed()),
            OfExperts::Tokens(..) => unreachable!("what is in cells is gated at once"),
        };
        let few = tiling.few();
        let shared_bytes = few.shared_bytes(format);
        let kernel = gpu.program().experts_few(format, few.size(), shared_bytes)?;
        let tiles = usize::try_from(routes.tiles_max).expect("tiles are counted from 0");
        let grid = [tiles, self.rows.div_ceil(CELL_ROWS * few.row_tiles), 1];
        let launch = Launch::new(kernel, grid, THREADS)
            .shared(shared_bytes)
            .with(self.data.address())
            .with(input.address())
            .with(int(self.columns.div_ceil(CELL_COLUMNS)))
            .with(int(self.rows))
            .with(routes.tiles)
            .with(routes.tokens)
            .with(output)
            .with(gated);
        gpu.stream().launch(launch)
    }

    fn multiply_plain(
        &self,
        gpu: &Gpu,
        routes: &Routes,
        pairs: usize,
        of: OfExperts<'_>,
    ) -> Result<(), CudaError> {
        const WARPS: usize = 8;
        let (input, tokens, output) = match of {
            OfExperts::Tokens(input, output) => (input, routes.tokens, output),
            OfExperts::Pairs(input, output) => (input, 0, output),
            OfExperts::Gated(..) => unreachable!("plain features are gated by themselves"),
        };
        let kernel = gpu.program().kernel("experts", "experts_linear_f32", 0)?;
        let grid = [pairs, self.rows.div_ceil(WARPS), 1];
        let launch = Launch::new(kernel, grid, WARPS * 32)
            .with(self.data.address())
            .with(input.address())
            .with(int(self.columns))
            .with(int(self.rows))
            .with(routes.experts)
            .with(tokens)
            .with(output.address());
        gpu.stream().launch(launch)
    }
}

impl Tiling {
    /// For `pairs` of `tokens` with `experts`: most tiles have all rows of their expert where these are about
    /// as many for each.
    pub(in crate::cuda) fn of(tokens: usize, pairs: usize, experts: usize) -> Self {
        // A third of room for experts that more tokens go through than through others.
        let usual = (pairs.div_ceil(experts.min(pairs).max(1)) * 4).div_ceil(3);
        let sizes = [CELL_TOKENS, 4 * CELL_TOKENS, 8 * CELL_TOKENS];
        let rows = sizes.into_iter().find(|&rows| rows >= usual).unwrap_or(sizes[2]);
        let alone = tokens == 1;
        Self { alone, rows: if alone { CELL_TOKENS } else { rows } }
    }

    /// The most tiles that `pairs` with `experts` can make: one for each expert that has any, and beyond that
    /// only full ones.
    pub(in crate::cuda) fn tiles_max(self, pairs: usize, experts: usize) -> usize {
        tiles_max(self.rows, pairs, experts)
    }

    fn few(self) -> Few {
        Few {
            alone: self.alone,
            token_tiles: self.rows / CELL_TOKENS,
            row_tiles: if self.rows < 4 * CELL_TOKENS { 1 } else { 2 },
        }
    }
}

/// As [`Tiling::tiles_max`], of so many rows each.
pub(in crate::cuda) fn tiles_max(rows: usize, pairs: usize, experts: usize) -> usize {
    let busy = experts.min(pairs);
    busy + (pairs - busy) / rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of each of so many experts, as a seed spreads them.
    fn spread(pairs: usize, experts: usize, seed: usize) -> Vec<usize> {
        let mut rows = vec![0; experts];
        let mut state = seed as u64 + 1;
        for _ in 0..pairs {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Some seeds prefer a few experts.
            let among = (experts >> (seed % 4)).max(1);
            rows[usize::try_from(state >> 40).unwrap() % among] += 1;
        }
        rows
    }

    #[test]
    fn there_are_never_more_tiles_than_there_is_room_for() {
        for rows in [8, 32, 64] {
            for (pairs, experts) in [(1, 1), (8, 128), (9, 4), (64, 8), (130, 2), (512, 128)] {
                let most = tiles_max(rows, pairs, experts);
                let mut found = 0;
                for seed in 0..50 {
                    let own = spread(pairs, experts, seed);
                    assert_eq!(own.iter().sum::<usize>(), pairs);
                    found = found.max(own.iter().map(|own| own.div_ceil(rows)).sum());
                }
                assert!(found <= most, "{pairs} pairs, {experts} experts: {found} above {most}");
                // One row for each, and all others for the first, make as many.
                let busy = experts.min(pairs);
                let first = (pairs - busy + 1).div_ceil(rows);
                assert!(first + busy > most, "{pairs} pairs, {experts} experts");
            }
        }
    }

    #[test]
    fn tiles_are_as_large_as_experts_have_rows() {
        let rows = |tokens: usize, per_token, experts| {
            Tiling::of(tokens, tokens * per_token, experts).rows
        };
        // A session's token, some sessions, and a prompt of a model with few experts, and of one with many.
        assert_eq!([rows(1, 2, 8), rows(16, 2, 8), rows(1024, 2, 8)], [8, 8, 64]);
        assert_eq!([rows(1, 8, 128), rows(64, 8, 128), rows(1024, 8, 128)], [8, 8, 64]);
        assert_eq!([rows(64, 2, 8), rows(300, 8, 128)], [32, 32]);
        let alone = Tiling::of(1, 8, 128);
        assert!(alone.alone && alone.tiles_max(8, 128) == 8, "none is for nobody");
        assert_eq!((alone.few().size(), Tiling::of(2, 16, 128).few().size()), ("alone", "1"));
    }
}
