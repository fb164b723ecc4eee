//! The norms of a matrix's rows, with what an adapter adds to them.

use super::{Layout, Matrix, int};
use crate::cuda::adapt::{Place, Side};
use crate::cuda::cells::{CELL_ROWS, Format};
use crate::cuda::driver::{Buffer, CudaError, Launch};
use crate::cuda::gpu::Gpu;

/// What an adapter adds to a matrix: A and B, and what their product is multiplied by.
pub(in crate::cuda) type Added<'a> = (&'a Side, &'a Side, f32);

/// Which rows of a matrix are a module's.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct ModuleRows {
    /// The column of the products that the matrix's first row makes.
    pub(in crate::cuda) start: usize,
    /// Where the module's features stand among them.
    pub(in crate::cuda) place: Place,
    /// How many they are.
    pub(in crate::cuda) size: usize,
}

impl Matrix {
    /// The norms of a module's rows. Quantized matrices are unpacked some rows at a time, to the values
    /// that they are multiplied with.
    pub(in crate::cuda) fn row_norms(
        &self,
        gpu: &Gpu,
        rows: ModuleRows,
        added: Option<Added<'_>>,
    ) -> Result<Buffer, CudaError> {
        let norms = Buffer::zeroed(gpu.context(), rows.size * size_of::<f32>())?;
        let part = |name: &str, address, from, count| {
            let rows = ModuleRows { start: rows.start + from, ..rows };
            self.launch_norms(gpu, (name, address, count), rows, added, &norms)
        };
        match self.layout {
            Layout::Plain => part("adapt_norms_f32", self.data.address(), 0, self.rows)?,
            Layout::Cells(Format::Bf16) => {
                part("adapt_norms_cells", self.data.address(), 0, self.rows)?;
            }
            Layout::Cells(format) => {
                let unpacked = gpu.unpacked();
                let row_bytes = self.cells() * Format::Bf16.cell_bytes();
                let together = (unpacked.bytes() / row_bytes).max(1);
                for start in (0..self.row_tiles()).step_by(together) {
                    let tiles = start..self.row_tiles().min(start + together);
                    self.unpack(gpu, format, &tiles, unpacked)?;
                    let first = tiles.start * CELL_ROWS;
                    let count = self.rows.min(tiles.end * CELL_ROWS) - first;
                    part("adapt_norms_cells", unpacked.address(), first, count)?;
                }
            }
        }
        Ok(norms)
    }

    fn launch_norms(
        &self,
        gpu: &Gpu,
        (name, address, count): (&str, u64, usize),
        rows: ModuleRows,
        added: Option<Added<'_>>,
        norms: &Buffer,
    ) -> Result<(), CudaError> {
        // `NORM_LANES` and `NORM_ROWS` of `cuda/adapt.cu`.
        const LANES: usize = 8;
        const ROWS: usize = 32;
        let kernel = gpu.program().kernel("adapt", name, 0)?;
        let (a, b, rank, scale) = added.map_or((0, 0, 0, 0.0), |(a, b, scale)| {
            (a.values.address(), b.values.address(), a.rank, scale)
        });
        let launch = Launch::new(kernel, [count.div_ceil(ROWS), 1, 1], ROWS * LANES)
            .with(address)
            .with(int(rows.start))
            .with(int(count))
            .with(int(self.columns))
            .with(rows.place)
            .with(int(rows.size))
            .with(a)
            .with(b)
            .with(int(rank))
            .with(scale)
            .with(norms.address());
        gpu.stream().launch(launch)
    }
}
