//! The norm before a matrix.

use super::driver::{Buffer, CudaError, Launch};
use super::gpu::Gpu;
use super::matrix::{Order, ToActivations, int};

/// A norm by the root mean square, over so many values.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Buffer,
    pub(super) epsilon: f32,
    pub(super) size: usize,
}

impl Norm {
    /// Enqueues the norm of rows at an address, so many of them, as [`launch`].
    pub(super) fn launch(
        &self,
        gpu: &Gpu,
        rows: (u64, usize),
        to: (&Buffer, bool, Order),
    ) -> Result<(), CudaError> {
        launch(gpu, (&self.weight, self.epsilon, self.size), rows, to)
    }
}

/// Enqueues the norm of rows of binary32 at an address: to activations of the next matrix, or where they
/// are `plain` to rows of binary32.
pub(super) fn launch(
    gpu: &Gpu,
    (weight, epsilon, size): (&Buffer, f32, usize),
    (rows, tokens): (u64, usize),
    (to, plain, order): (&Buffer, bool, Order),
) -> Result<(), CudaError> {
    const THREADS: usize = 512;
    let name = if plain { "rms_norm_f32" } else { "rms_norm" };
    let kernel = gpu.program().kernel("rotary", name, 0)?;
    let launch = Launch::new(kernel, [tokens, 1, 1], THREADS)
        .with(rows)
        .with(weight.address())
        .with(epsilon)
        .with(int(size));
    gpu.stream().launch(if plain {
        launch.with(to.address())
    } else {
        launch.with(ToActivations::new(to, size, order))
    })
}
