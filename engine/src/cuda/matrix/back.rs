//! Gradients times a matrix itself: the gradient of a product's input.

use super::{CELL_TOKENS, Layout, Matrix, int};
use crate::cuda::cells::{CELL_ROWS, Format};
use crate::cuda::driver::{Buffer, CudaError, Launch};
use crate::cuda::gpu::Gpu;

/// Gradients of a product, in rows of binary32 on the device.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Gradient {
    /// Of the matrix's first row, for the first token.
    pub(in crate::cuda) address: u64,
    /// Values from token to token.
    pub(in crate::cuda) stride: usize,
    pub(in crate::cuda) tokens: usize,
}

impl Matrix {
    /// Adds `gradient` times the matrix to `output`, `[tokens, columns]`. Quantized matrices are unpacked
    /// some rows at a time, to the values that they are multiplied with forward.
    pub(in crate::cuda) fn add_back(
        &self,
        gpu: &Gpu,
        gradient: Gradient,
        output: &Buffer,
    ) -> Result<(), CudaError> {
        match self.layout {
            Layout::Plain => self.launch_back(
                gpu,
                "back_f32",
                (self.data.address(), 0..self.rows),
                gradient,
                output,
            ),
            Layout::Cells(Format::Bf16) => {
                let all = (self.data.address(), 0..self.rows);
                self.launch_back(gpu, "back_cells", all, gradient, output)
            }
            Layout::Cells(format) => {
                let unpacked = gpu.unpacked();
                let row_bytes = self.cells() * Format::Bf16.cell_bytes();
                let together = (unpacked.bytes() / row_bytes).max(1);
                for start in (0..self.row_tiles()).step_by(together) {
                    let tiles = start..self.row_tiles().min(start + together);
                    self.unpack(gpu, format, &tiles, unpacked)?;
                    let rows = tiles.start * CELL_ROWS..self.rows.min(tiles.end * CELL_ROWS);
                    let part = (unpacked.address(), rows);
                    self.launch_back(gpu, "back_cells", part, gradient, output)?;
                }
                Ok(())
            }
        }
    }

    /// For some rows of the matrix, which are at an address.
    fn launch_back(
        &self,
        gpu: &Gpu,
        name: &str,
        (address, rows): (u64, std::ops::Range<usize>),
        gradient: Gradient,
        output: &Buffer,
    ) -> Result<(), CudaError> {
        const THREADS: usize = 128;
        let kernel = gpu.program().kernel("train", name, 0)?;
        let grid = [self.columns.div_ceil(THREADS), gradient.tokens.div_ceil(CELL_TOKENS), 1];
        let launch = Launch::new(kernel, grid, THREADS)
            .with(address)
            .with(gradient.address + (rows.start * size_of::<f32>()) as u64)
            .with(int(gradient.stride))
            .with(int(rows.len()))
            .with(int(self.columns))
            .with(int(gradient.tokens))
            .with(output.address());
        gpu.stream().launch(launch)
    }
}
