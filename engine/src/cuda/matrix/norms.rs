//! The norms of a matrix's rows, with what an adapter adds to them.

use super::{Matrix, Part, int};
use crate::cuda::adapt::{Place, Side};
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
    /// The norms of a module's rows.
    pub(in crate::cuda) fn row_norms(
        &self,
        gpu: &Gpu,
        rows: ModuleRows,
        added: Option<Added<'_>>,
    ) -> Result<Buffer, CudaError> {
        let norms = Buffer::zeroed(gpu.context(), rows.size * size_of::<f32>())?;
        self.in_parts(gpu, |part| self.launch_norms(gpu, part, rows, added, &norms))?;
        Ok(norms)
    }

    fn launch_norms(
        &self,
        gpu: &Gpu,
        part: Part,
        module: ModuleRows,
        added: Option<Added<'_>>,
        norms: &Buffer,
    ) -> Result<(), CudaError> {
        // `NORM_LANES` and `NORM_ROWS` of `cuda/adapt.cu`.
        const LANES: usize = 8;
        const ROWS: usize = 32;
        let name = if part.plain { "adapt_norms_f32" } else { "adapt_norms_cells" };
        let kernel = gpu.program().kernel("adapt", name, 0)?;
        let count = part.rows.len();
        let (a, b, rank, scale) = added.map_or((0, 0, 0, 0.0), |(a, b, scale)| {
            (a.values.address(), b.values.address(), a.rank, scale)
        });
        let launch = Launch::new(kernel, [count.div_ceil(ROWS), 1, 1], ROWS * LANES)
            .with(part.address)
            .with(int(module.start + part.rows.start))
            .with(int(count))
            .with(int(self.columns))
            .with(module.place)
            .with(int(module.size))
            .with(a)
            .with(b)
            .with(int(rank))
            .with(scale)
            .with(norms.address());
        gpu.stream().launch(launch)
    }
}
