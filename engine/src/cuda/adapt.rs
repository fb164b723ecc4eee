//! How the kernels of `cuda/adapt.cu` are launched: what adapters add to products, and their gradients.

use bytemuck::{Pod, Zeroable};

use super::driver::{Buffer, CudaError, Launch};
use super::gpu::Gpu;
use super::matrix::{CELL_TOKENS, ToActivations, int};

/// Threads of a block in which each has a feature.
const THREADS: usize = 256;

/// Rows of a gradient that a thread has: `RANKS_TOGETHER` of `cuda/adapt.cu`.
const RANKS_TOGETHER: usize = 8;

/// Where the features of a module stand in rows: `Place` of `cuda/adapt.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Place {
    stride: i32,
    first: i32,
    tiles: i32,
    unused: i32,
}

impl Place {
    /// From the column `first` of rows with `stride` values on.
    pub(super) fn new(stride: usize, first: usize) -> Self {
        Self { stride: int(stride), first: int(first), tiles: 0, unused: 0 }
    }

    /// Values of a row.
    pub(super) fn stride(&self) -> usize {
        usize::try_from(self.stride).expect("rows have values")
    }

    /// The first or the second 8 of every 16.
    pub(super) fn tiles(stride: usize, second: bool) -> Self {
        Self { stride: int(stride), first: if second { 8 } else { 0 }, tiles: 1, unused: 0 }
    }
}

/// Rows in binary32, and where in them a module's features stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) address: u64,
    pub(super) place: Place,
}

impl Rows {
    pub(super) const fn new(rows: &Buffer, place: Place) -> Self {
        Self { address: rows.address(), place }
    }

    /// Rows that have nothing beside the features.
    pub(super) fn whole(rows: &Buffer, size: usize) -> Self {
        Self::new(rows, Place::new(size, 0))
    }
}

/// What a matrix of an adapter is multiplied with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Features {
    Rows(Rows),
    /// As they were rounded for the frozen matrix.
    Cells(ToActivations),
}

/// Which inputs are dropped: `Dropping` of `cuda/adapt.cu`. Zeros drop nothing.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Dropping {
    /// Of the sequence of each token.
    pub(super) seeds: u64,
    pub(super) bounds: u64,
    pub(super) stream: u64,
    pub(super) threshold: f64,
    pub(super) kept: f32,
    pub(super) unused: i32,
}

impl Dropping {
    pub(super) fn nothing() -> Self {
        Self::zeroed()
    }

    pub(super) const fn is_nothing(&self) -> bool {
        self.seeds == 0
    }
}

/// What the rows of a matrix are scaled to: `Scales` of `cuda/adapt.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Scales {
    pub(super) magnitudes: u64,
    pub(super) norms: u64,
}

/// Products with a frozen matrix: `Products` of `cuda/adapt.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Products {
    /// With all inputs.
    pub(super) product: u64,
    /// With those that are left.
    pub(super) base: u64,
    /// What was added to both, at the columns of their rows.
    pub(super) bias: u64,
}

/// A matrix `[rank, size]` of an adapter on the device.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) values: Buffer,
    pub(super) rank: usize,
    pub(super) size: usize,
}

/// Inner products `[tokens, rank]`, at an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inner {
    pub(super) address: u64,
    pub(super) tokens: usize,
    /// What their products are multiplied by.
    pub(super) scale: f32,
}

fn kernel(gpu: &Gpu, name: &str, grid: [usize; 3], threads: usize) -> Result<Launch, CudaError> {
    Ok(Launch::new(gpu.program().kernel("adapt", name, 0)?, grid, threads))
}

impl Side {
    /// Takes up a matrix whose rows come one after the other.
    pub(super) fn of(gpu: &Gpu, values: &[f32], rank: usize) -> Result<Self, CudaError> {
        let size = values.len() / rank;
        Ok(Self { values: Buffer::of(gpu.context(), values)?, rank, size })
    }

    /// The same of its transpose `[size, rank]`.
    pub(super) fn transposed(gpu: &Gpu, values: &[f32], rank: usize) -> Result<Self, CudaError> {
        let (size, from) = (values.len() / rank, Buffer::of(gpu.context(), values)?);
        let to = Buffer::new(gpu.context(), from.bytes())?;
        let launch = kernel(gpu, "adapt_transposed", [size.div_ceil(THREADS), rank, 1], THREADS)?;
        let launch = launch.with(from.address()).with(int(size)).with(int(rank));
        gpu.stream().launch(launch.with(to.address()))?;
        gpu.stream().synchronize()?;
        Ok(Self { values: to, rank, size })
    }

    /// A thread for each feature of each token.
    fn features_grid(&self, tokens: usize) -> [usize; 3] {
        [self.size.div_ceil(THREADS), tokens, 1]
    }

    /// The matrix, its size and its rank, as most kernels begin.
    fn arguments(&self, launch: Launch) -> Launch {
        launch.with(self.values.address()).with(int(self.size)).with(int(self.rank))
    }

    /// The products of its rows with features of each token.
    pub(super) fn multiply(
        &self,
        gpu: &Gpu,
        features: Features,
        to: Inner,
    ) -> Result<(), CudaError> {
        let grid = [self.rank, to.tokens.div_ceil(CELL_TOKENS), 1];
        let launch = match features {
            Features::Rows(Rows { address, place }) => {
                let launch = kernel(gpu, "adapt_inner_rows", grid, THREADS)?;
                self.arguments(launch).with(address).with(place)
            }
            Features::Cells(cells) => {
                self.arguments(kernel(gpu, "adapt_inner_cells", grid, THREADS)?).with(cells)
            }
        };
        gpu.stream().launch(launch.with(int(to.tokens)).with(to.address))
    }

    /// Adds the sum of its rows, times inner products, to rows, or what is left of it.
    pub(super) fn add(
        &self,
        gpu: &Gpu,
        inner: Inner,
        dropping: Dropping,
        to: Rows,
    ) -> Result<(), CudaError> {
        let launch = kernel(gpu, "adapt_add", self.features_grid(inner.tokens), THREADS)?;
        let launch = self.arguments(launch).with(inner.address).with(inner.scale);
        gpu.stream().launch(launch.with(dropping).with(to.place).with(to.address))
    }

    /// As [`Side::add`] to the product of a frozen matrix, of which the sum is scaled. It is added to
    /// `to`, or takes its place.
    pub(super) fn scale(
        &self,
        gpu: &Gpu,
        inner: Inner,
        (scales, products): (Scales, Products),
        (to, adds): (Rows, bool),
    ) -> Result<(), CudaError> {
        let launch = kernel(gpu, "adapt_scaled", self.features_grid(inner.tokens), THREADS)?;
        let launch = self.arguments(launch).with(inner.address).with(inner.scale);
        let launch = launch.with(scales).with(products).with(to.place).with(i32::from(adds));
        gpu.stream().launch(launch.with(to.address))
    }

    /// The gradient of a matrix like this, from inner products and the rows that it was multiplied with.
    pub(super) fn gradient(
        &self,
        gpu: &Gpu,
        inner: Inner,
        from: Rows,
    ) -> Result<Buffer, CudaError> {
        let to = Buffer::new(gpu.context(), self.values.bytes())?;
        let grid = [self.size.div_ceil(THREADS), self.rank.div_ceil(RANKS_TOGETHER), 1];
        let launch = kernel(gpu, "adapt_gradient", grid, THREADS)?
            .with(inner.address)
            .with(int(self.rank))
            .with(inner.scale)
            .with(from.address)
            .with(from.place)
            .with(int(self.size))
            .with(int(inner.tokens))
            .with(to.address());
        gpu.stream().launch(launch)?;
        Ok(to)
    }

    /// The gradients of magnitudes, where this is B and `inner` the products with A.
    pub(super) fn of_magnitudes(
        &self,
        gpu: &Gpu,
        inner: Inner,
        (scales, products): (Scales, Products),
        gradient: Rows,
    ) -> Result<Buffer, CudaError> {
        let to = Buffer::new(gpu.context(), self.size * size_of::<f32>())?;
        let launch =
            kernel(gpu, "adapt_of_magnitudes", [self.size.div_ceil(THREADS), 1, 1], THREADS)?;
        let launch = self.arguments(launch).with(inner.address).with(inner.scale);
        let launch = launch.with(scales).with(products).with(gradient.place).with(gradient.address);
        gpu.stream().launch(launch.with(int(inner.tokens)).with(to.address()))?;
        Ok(to)
    }
}

/// What is left of rows `[tokens, size]`, added to others or in their place.
pub(super) fn drop_rows(
    gpu: &Gpu,
    (rows, size, tokens): (&Buffer, usize, usize),
    dropping: Dropping,
    (to, adds): (&Buffer, bool),
) -> Result<(), CudaError> {
    let launch = kernel(gpu, "adapt_drop", [size.div_ceil(THREADS), tokens, 1], THREADS)?;
    let launch = launch.with(rows.address()).with(int(size)).with(dropping);
    gpu.stream().launch(launch.with(i32::from(adds)).with(to.address()))
}

/// Gradients of `size` features times their factors, of which `less` is taken first, at the same places of
/// other rows or of the same.
pub(super) fn scale_gradient(
    gpu: &Gpu,
    (from, size, tokens): (Rows, usize, usize),
    (scales, less): (Scales, f32),
    to: &Buffer,
) -> Result<(), CudaError> {
    let launch = kernel(gpu, "adapt_of_sum", [size.div_ceil(THREADS), tokens, 1], THREADS)?;
    let launch = launch.with(from.address).with(int(size)).with(scales).with(less);
    gpu.stream().launch(launch.with(from.place).with(to.address()))
}

/// Gates of features in tiles, `[tokens, stride]`, as activations of the next matrix.
pub(super) fn gate(
    gpu: &Gpu,
    (gate_up, stride): (&Buffer, usize),
    (size, tokens, words): (usize, usize, usize),
    to: ToActivations,
) -> Result<(), CudaError> {
    let launch = kernel(gpu, "adapt_gate", [words.div_ceil(THREADS), tokens, 1], THREADS)?;
    let launch = launch.with(gate_up.address()).with(int(size)).with(int(stride));
    gpu.stream().launch(launch.with(to))
}

/// Adds learned vectors to the hidden states at an address of the first tokens of each session, which
/// `sequences` and the sequence of each row tell.
pub(super) fn add_prompt(
    gpu: &Gpu,
    (hidden, size, tokens): (u64, usize, usize),
    (sequences, rows): (u64, u64),
    prompt: &Buffer,
) -> Result<(), CudaError> {
    let launch = kernel(gpu, "adapt_prompt", [size.div_ceil(THREADS), tokens, 1], THREADS)?;
    let launch = launch.with(hidden).with(int(size)).with(sequences).with(rows);
    let count = prompt.bytes() / size_of::<f32>() / size;
    gpu.stream().launch(launch.with(prompt.address()).with(int(count)))
}
