//! Weight matrices in a device's memory, and their products with activations.

mod back;
mod norms;
mod stacked;

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

pub(super) use back::Gradient;
pub(super) use norms::ModuleRows;
pub(super) use stacked::{OfExperts, Routes, Stacked, Tiling, tiles_max};
use umbel_shard::{Weight, WeightType};

use super::cells::{self, CELL_COLUMNS, CELL_ROWS, Format, Source};
use super::driver::{Buffer, CudaError, Launch};
use super::gpu::Gpu;
use crate::kernel::dequantize_row;

/// Tokens of a cell of activations.
pub(super) const CELL_TOKENS: usize = 8;

/// The most tokens for which a matrix is read as it is; more go through the matrix units by way of
/// shared memory.
pub(super) const FEW_TOKENS: usize = 64;

/// Parts of a row that are summed up by themselves, and then in their order: `PARTS` of
/// `cuda/layout.cuh`.
const PARTS: usize = 4;

/// Cells of a stage, where those of few tokens go by shared memory, the largest of which there are three
/// stages, and the bytes of an activation's cell for one token: `Ring` of `cuda/few.cuh`.
const RING_STAGE_CELLS: usize = 8;
const RING_SMALL_CELL_BYTES: usize = 384;
const RING_INPUT_BYTES: usize = CELL_COLUMNS * 2;

/// Columns of a stage of the units that four warps use together: what passes through them has a
/// multiple of these.
pub(super) const STAGE_COLUMNS: usize = 4 * CELL_COLUMNS;

/// What a quantized matrix is unpacked into, some rows at a time: enough for a few waves of blocks,
/// and most of it stays in the second-level cache until it is read.
pub(super) const UNPACKED_BYTES: usize = 64 << 20;

/// Where the rows of a product go: `ToRows` of `cuda/epilogue.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ToRows {
    pub(super) output: u64,
    pub(super) bias: u64,
    pub(super) residual: u64,
    pub(super) stride: i32,
    pub(super) first_row: i32,
}

/// Activations that a kernel writes: `Activations` of `cuda/layout.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ToActivations {
    words: u64,
    cells: i32,
    cores: i32,
}

impl ToActivations {
    /// Of `columns` features, in an order.
    pub(super) fn new(output: &Buffer, columns: usize, order: Order) -> Self {
        let cells = int(columns.div_ceil(CELL_COLUMNS));
        Self { words: output.address(), cells, cores: i32::from(order == Order::Cores) }
    }
}

/// How the activations of a cell lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Lane by lane, as a warp takes them.
    Lanes,
    /// In core matrices, as the units take them that four warps use together.
    Cores,
}

/// Activations that a matrix is multiplied with; in binary32 they are plain rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) values: &'a Buffer,
    pub(super) tokens: usize,
    pub(super) order: Order,
}

/// Where gated features go: `ToGated` of `cuda/epilogue.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ToGated {
    pub(super) output: ToActivations,
    pub(super) bias: u64,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Rows(ToRows),
    Gated(ToGated),
}

/// A matrix `[rows, columns]`.
#[derive(Debug)]
pub(super) struct Matrix {
    layout: Layout,
    rows: usize,
    columns: usize,
    data: Buffer,
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    /// Row by row in binary32.
    Plain,
    Cells(Format),
}

/// Some rows of a matrix, and where they lie in binary32 or in cells of bfloat16.
struct Part {
    address: u64,
    rows: Range<usize>,
    /// Whether they are in binary32.
    plain: bool,
}

/// The format that the rows of a matrix have; that of bfloat16 where they have several.
fn format_of(rows: &[Source<'_>]) -> Format {
    let mut formats = rows.iter().flatten().map(|(weight, _)| Format::of(weight.weight_type()));
    let first = formats.next().expect("a matrix has rows");
    if formats.all(|format| format == first) { first } else { Format::Bf16 }
}

impl Matrix {
    /// Puts rows of weights, with `columns` values each, into the memory of `gpu`.
    pub(super) fn load(
        gpu: &Gpu,
        rows: &[Source<'_>],
        columns: usize,
        plain: bool,
    ) -> Result<Self, CudaError> {
        let (layout, bytes) = if plain {
            (Layout::Plain, plain_rows(rows, columns))
        } else {
            let format = format_of(rows);
            (Layout::Cells(format), cells::pack(format, rows, columns))
        };
        let data = Buffer::of(gpu.context(), &bytes)?;
        Ok(Self { layout, rows: rows.len(), columns, data })
    }

    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    pub(super) const fn columns(&self) -> usize {
        self.columns
    }

    /// Enqueues the product with `input`, which is in cells or in plain rows as the matrix is.
    pub(super) fn multiply(
        &self,
        gpu: &Gpu,
        input: Input<'_>,
        target: Target,
    ) -> Result<(), CudaError> {
        match (self.layout, target) {
            (Layout::Plain, Target::Rows(to)) => self.multiply_plain(gpu, input, to),
            (Layout::Plain, Target::Gated(_)) => {
                unreachable!("plain features are gated by themselves")
            }
            (Layout::Cells(format), target) if input.tokens <= FEW_TOKENS => {
                self.multiply_few(gpu, format, input, target)
            }
            (Layout::Cells(format), target) => self.multiply_many(gpu, format, input, target),
        }
    }

    fn multiply_plain(&self, gpu: &Gpu, input: Input<'_>, to: ToRows) -> Result<(), CudaError> {
        const WARPS: usize = 8;
        let kernel = gpu.program().kernel("plain", "linear_f32", 0)?;
        let grid = [self.rows.div_ceil(WARPS), input.tokens.div_ceil(CELL_TOKENS), 1];
        let launch = Launch::new(kernel, grid, WARPS * 32)
            .with(self.data.address())
            .with(input.values.address())
            .with(int(self.columns))
            .with(int(input.tokens))
            .with(int(self.rows))
            .with(to);
        gpu.stream().launch(launch)
    }

    fn multiply_few(
        &self,
        gpu: &Gpu,
        format: Format,
        input: Input<'_>,
        target: Target,
    ) -> Result<(), CudaError> {
        assert_eq!(input.order, Order::Lanes, "few tokens are multiplied by warps");
        let few = Few::of(input.tokens);
        let shared_bytes = few.shared_bytes(format);
        let kernel = gpu.program().linear_few(format, few.size(), shared_bytes)?;
        let grid = [self.row_tiles().div_ceil(few.row_tiles), 1, 1];
        let (to, gated) = match target {
            Target::Rows(to) => (to, ToGated::zeroed()),
            Target::Gated(gated) => (ToRows::zeroed(), gated),
        };
        let launch = Launch::new(kernel, grid, PARTS * 32)
            .shared(shared_bytes)
            .with(self.data.address())
            .with(input.values.address())
            .with(int(self.cells()))
            .with(int(input.tokens))
            .with(int(self.rows))
            .with(to)
            .with(gated);
        gpu.stream().launch(launch)
    }

    fn multiply_many(
        &self,
        gpu: &Gpu,
        format: Format,
        input: Input<'_>,
        target: Target,
    ) -> Result<(), CudaError> {
        // Whole cells of gated features, which are four tiles.
        self.in_cells(gpu, format, 4, |address, tiles| {
            self.multiply_tiles(gpu, address, tiles, input, target)
        })
    }

    /// Hands all rows to `launch` as kernels can read them whose products are not divided by tiles.
    fn in_parts(
        &self,
        gpu: &Gpu,
        mut launch: impl FnMut(Part) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        match self.layout {
            Layout::Plain => {
                launch(Part { address: self.data.address(), rows: 0..self.rows, plain: true })
            }
            Layout::Cells(format) => self.in_cells(gpu, format, 1, |address, tiles| {
                let rows = tiles.start * CELL_ROWS..self.rows.min(tiles.end * CELL_ROWS);
                launch(Part { address, rows, plain: false })
            }),
        }
    }

    /// Hands the tiles of rows to `launch` as cells of bfloat16, with their address: all of them where they
    /// are such cells, else a multiple of `multiple` at a time, unpacked to the values that they are
    /// multiplied with.
    fn in_cells(
        &self,
        gpu: &Gpu,
        format: Format,
        multiple: usize,
        mut launch: impl FnMut(u64, Range<usize>) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if format == Format::Bf16 {
            return launch(self.data.address(), 0..self.row_tiles());
        }
        let unpacked = gpu.unpacked();
        let row_bytes = self.cells() * Format::Bf16.cell_bytes();
        let together = (unpacked.bytes() / row_bytes / multiple).max(1) * multiple;
        for start in (0..self.row_tiles()).step_by(together) {
            let tiles = start..self.row_tiles().min(start + together);
            self.unpack(gpu, format, &tiles, unpacked)?;
            launch(unpacked.address(), tiles)?;
        }
        Ok(())
    }

    /// Makes cells of bfloat16 of some tiles of rows.
    fn unpack(
        &self,
        gpu: &Gpu,
        format: Format,
        tiles: &Range<usize>,
        to: &Buffer,
    ) -> Result<(), CudaError> {
        const WARPS: usize = 8;
        let name = format!("dequantize_{}", format.name());
        let kernel = gpu.program().kernel("linear_many", &name, 0)?;
        let cells = tiles.len() * self.cells();
        assert!(cells * Format::Bf16.cell_bytes() <= to.bytes(), "the rows fit where they go");
        let from = self.data.address() + (tiles.start * self.cells() * format.cell_bytes()) as u64;
        let launch = Launch::new(kernel, [cells.div_ceil(WARPS), 1, 1], WARPS * 32)
            .with(from)
            .with(to.address())
            .with(int(cells));
        gpu.stream().launch(launch)
    }

    /// The product of some tiles of rows, which are at `address` as cells of bfloat16.
    fn multiply_tiles(
        &self,
        gpu: &Gpu,
        address: u64,
        tiles: Range<usize>,
        input: Input<'_>,
        target: Target,
    ) -> Result<(), CudaError> {
        let many = match input.order {
            Order::Lanes => Many::of(tiles.len(), input.tokens, gpu.limits()),
            Order::Cores => Many::Hopper,
        };
        let kernel = gpu.program().kernel(
            many.file(),
            many.name(matches!(target, Target::Gated(_))),
            many.shared_bytes(),
        )?;
        let grid = [many.blocks(tiles.len(), input.tokens), 1, 1];
        let launch = Launch::new(kernel, grid, many.threads())
            .shared(many.shared_bytes())
            .with(address)
            .with(input.values.address())
            .with(int(self.cells()))
            .with(int(input.tokens));
        let launch = match target {
            Target::Rows(to) => {
                let first = tiles.start * CELL_ROWS;
                let rows = (self.rows - first).min(tiles.len() * CELL_ROWS);
                let first_row = to.first_row + int(first);
                launch.with(int(rows)).with(ToRows { first_row, ..to })
            }
            Target::Gated(to) => launch.with(int(tiles.len())).with(int(tiles.start)).with(to),
        };
        gpu.stream().launch(launch)
    }

    const fn cells(&self) -> usize {
        self.columns.div_ceil(CELL_COLUMNS)
    }

    const fn row_tiles(&self) -> usize {
        self.rows.div_ceil(CELL_ROWS)
    }
}

fn plain_rows(rows: &[Source<'_>], columns: usize) -> Vec<u8> {
    let mut values = vec![0.0_f32; rows.len() * columns];
    for (source, values) in rows.iter().zip(values.chunks_mut(columns)) {
        if let Some((weight, row)) = source {
            let bytes = &weight.bytes()[row * weight.row_bytes()..][..weight.row_bytes()];
            dequantize_row(weight.weight_type(), bytes, values);
        }
    }
    bytemuck::cast_slice(&values).to_vec()
}

/// Whether all of `weights` are in binary32: then a model is computed in it.
pub(super) fn are_plain<'a>(weights: impl IntoIterator<Item = &'a Weight>) -> bool {
    weights.into_iter().all(|weight| weight.weight_type() == WeightType::F32)
}

/// How the product for few tokens is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Few {
    /// Whether there is one token.
    alone: bool,
    token_tiles: usize,
    row_tiles: usize,
}

impl Few {
    fn of(tokens: usize) -> Self {
        let token_tiles = tokens.div_ceil(CELL_TOKENS).next_power_of_two();
        Self { alone: tokens == 1, token_tiles, row_tiles: if token_tiles < 4 { 1 } else { 2 } }
    }

    /// As the kernels of a format are called, behind its name.
    const fn size(self) -> &'static str {
        match self.token_tiles {
            1 if self.alone => "alone",
            1 => "1",
            2 => "2",
            4 => "4",
            _ => "8",
        }
    }

    /// For each part: cells that are on their way, where they go by shared memory, and in the end sums.
    fn shared_bytes(self, format: Format) -> usize {
        let of_sums = self.token_tiles * self.row_tiles * CELL_ROWS * CELL_TOKENS * 4;
        let is_shared = format.cell_bytes() < Format::Bf16.cell_bytes() && self.token_tiles <= 2;
        let stages = if format.cell_bytes() > RING_SMALL_CELL_BYTES { 2 } else { 3 };
        let cell_bytes = format.cell_bytes() + if self.alone { RING_INPUT_BYTES } else { 0 };
        let of_cells = if is_shared { stages * RING_STAGE_CELLS * cell_bytes } else { 0 };
        PARTS * of_sums.max(of_cells)
    }
}

/// What a device can do, as far as kernels are chosen by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) multiprocessors: usize,
    /// The most shared memory that a block can have.
    pub(super) shared_bytes: usize,
    /// Whether it has the units that four warps use together.
    pub(super) group_units: bool,
}

/// How the product for many tokens is divided: `Blocking` of `cuda/linear_many.cu`, or that of
/// `cuda/linear_hopper.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Many {
    /// Blocks of 256 rows and 128 tokens.
    Wide,
    /// Blocks of 128 rows and 128 tokens.
    Narrow,
    /// Blocks of 256 rows and 128 tokens, by the units that four warps use together.
    Hopper,
}

impl Many {
    const TOKENS: usize = 128;

    /// The one that is done first, if a wide block takes one and a half times as long as a narrow one
    /// for twice as much.
    fn of(row_tiles: usize, tokens: usize, limits: Limits) -> Self {
        if limits.shared_bytes < Self::Wide.shared_bytes() {
            return Self::Narrow;
        }
        let waves = |this: Self| this.blocks(row_tiles, tokens).div_ceil(limits.multiprocessors);
        if waves(Self::Wide) * 3 <= waves(Self::Narrow) * 2 { Self::Wide } else { Self::Narrow }
    }

    const fn rows(self) -> usize {
        match self {
            Self::Wide | Self::Hopper => 256,
            Self::Narrow => 128,
        }
    }

    const fn threads(self) -> usize {
        match self {
            Self::Hopper => 512,
            Self::Wide => 256,
            Self::Narrow => 128,
        }
    }

    /// The stages, and the sums of the parts before.
    const fn shared_bytes(self) -> usize {
        let cell = (self.rows() + Self::TOKENS) * CELL_COLUMNS * 2;
        let stages = match self {
            Self::Wide => 3 * cell,
            Self::Narrow => 2 * cell,
            Self::Hopper => 3 * Self::TOKENS * STAGE_COLUMNS * 2,
        };
        stages + self.rows() * Self::TOKENS * 4
    }

    const fn blocks(self, row_tiles: usize, tokens: usize) -> usize {
        (row_tiles * CELL_ROWS).div_ceil(self.rows()) * tokens.div_ceil(Self::TOKENS)
    }

    const fn file(self) -> &'static str {
        match self {
            Self::Wide | Self::Narrow => "linear_many",
            Self::Hopper => "linear_hopper",
        }
    }

    const fn name(self, gated: bool) -> &'static str {
        match (self, gated) {
            (Self::Wide, false) => "linear_many_wide",
            (Self::Narrow, false) => "linear_many_narrow",
            (Self::Wide, true) => "gated_many_wide",
            (Self::Narrow, true) => "gated_many_narrow",
            (Self::Hopper, false) => "linear_many_hopper",
            (Self::Hopper, true) => "gated_many_hopper",
        }
    }
}

/// Bytes of activations of so many tokens, in binary32 where they are `plain`.
pub(super) const fn activation_bytes(plain: bool, tokens: usize, columns: usize) -> usize {
    if plain {
        tokens * columns * 4
    } else {
        tokens.next_multiple_of(CELL_TOKENS) * columns.next_multiple_of(CELL_COLUMNS) * 2
    }
}

/// A size as the kernels take it.
pub(super) fn int(size: usize) -> i32 {
    i32::try_from(size).expect("no dimension of a model or a pass reaches two billion")
}

/// A device's memory with values in binary32, where there are some.
pub(super) fn optional(gpu: &Gpu, values: Option<&[f32]>) -> Result<Option<Buffer>, CudaError> {
    values.map(|values| Buffer::of(gpu.context(), values)).transpose()
}

/// The address of what may be missing; 0 stands for nothing.
pub(super) fn address(buffer: Option<&Buffer>) -> u64 {
    buffer.map_or(0, Buffer::address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tokens_fit_in_shared_memory() {
        for tokens in 1..=FEW_TOKENS {
            let few = Few::of(tokens);
            assert!(few.token_tiles * CELL_TOKENS >= tokens && few.token_tiles <= 8);
            // Every device that is served has 99 KiB for a block.
            for format in [Format::Bf16, Format::Q8, Format::Q4Affine] {
                assert!(few.shared_bytes(format) <= 64 * 1024, "{tokens} of {}", format.name());
            }
        }
    }

    #[test]
    fn blocks_for_many_tokens_suit_the_device() {
        let large = Limits { multiprocessors: 132, shared_bytes: 227 * 1024, group_units: true };
        assert!(Many::Hopper.shared_bytes() <= large.shared_bytes);
        assert_eq!(Many::of(256, 4096, large), Many::Wide);
        assert_eq!(Many::of(256, 512, large), Many::Narrow);
        let small = Limits { multiprocessors: 80, shared_bytes: 99 * 1024, group_units: false };
        assert_eq!(Many::of(256, 4096, small), Many::Narrow);
        assert!(Many::Narrow.shared_bytes() <= small.shared_bytes);
        assert_eq!(Many::Wide.blocks(17, 129), 4);
    }
}
