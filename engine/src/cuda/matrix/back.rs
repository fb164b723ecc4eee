//! Gradients times a matrix itself: the gradient of a product's input.

use super::{CELL_TOKENS, Matrix, Part, int};
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
    /// Adds `gradient` times the matrix to `output`, `[tokens, columns]`.
    pub(in crate::cuda) fn add_back(
        &self,
        gpu: &Gpu,
        gradient: Gradient,
        output: &Buffer,
    ) -> Result<(), CudaError> {
        self.in_parts(gpu, |part| self.launch_back(gpu, part, gradient, output))
    }

    fn launch_back(
        &self,
        gpu: &Gpu,
        Part { address, rows, plain }: Part,
        gradient: Gradient,
        output: &Buffer,
    ) -> Result<(), CudaError> {
        const THREADS: usize = 128;
        let name = if plain { "back_f32" } else { "back_cells" };
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
