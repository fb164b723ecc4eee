//! The final norm and the head of a model in a device's memory.
//!
//! Rows are rounded as before every other matrix: to bfloat16, and not at all where the head is in
//! binary32.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use umbel_shard::Weight;

use super::driver::{Buffer, CudaError, Pinned};
use super::gpu::Gpu;
use super::matrix::{
    FEW_TOKENS, Input, Matrix, Order, Target, ToRows, activation_bytes, are_plain, int,
};
use super::norm::Norm;

/// Rows that are multiplied together: as many as go through the kernels that read a matrix as it is.
pub(crate) const ROWS_TOGETHER: usize = FEW_TOKENS;

/// A norm and the matrix behind it. A clone shares both.
#[derive(Clone)]
pub(crate) struct HeadOnGpu {
    shared: Arc<Shared>,
}

struct Shared {
    gpu: Gpu,
    norm: Norm,
    matrix: Matrix,
    plain: bool,
    /// Taken only by who has the device's workspace, too.
    rooms: Mutex<Rooms>,
}

/// Memory for as many rows as are multiplied together: it is there from the beginning, so that no pass
/// fails for lack of it.
struct Rooms {
    staged: Pinned,
    rows: Buffer,
    normed: Buffer,
    logits: Buffer,
}

impl HeadOnGpu {
    pub(crate) fn load(
        gpu: &Gpu,
        (norm, epsilon): (&[f32], f32),
        head: &Weight,
    ) -> Result<Self, CudaError> {
        let (vocabulary_size, hidden_size) = (head.rows(), head.columns());
        let plain = are_plain([head]);
        let room = |values: usize| Buffer::zeroed(gpu.context(), ROWS_TOGETHER * values * 4);
        let rooms = Rooms {
            staged: Pinned::new(
                gpu.context(),
                ROWS_TOGETHER * hidden_size.max(vocabulary_size) * size_of::<f32>(),
            )?,
            rows: room(hidden_size)?,
            normed: Buffer::zeroed(
                gpu.context(),
                activation_bytes(plain, ROWS_TOGETHER, hidden_size),
            )?,
            logits: room(vocabulary_size)?,
        };
        let norm = Norm { weight: Buffer::of(gpu.context(), norm)?, epsilon, size: hidden_size };
        let rows: Vec<_> = (0..vocabulary_size).map(|row| Some((head, row))).collect();
        let matrix = Matrix::load(gpu, &rows, hidden_size, plain)?;
        let rooms = Mutex::new(rooms);
        Ok(Self { shared: Arc::new(Shared { gpu: gpu.clone(), norm, matrix, plain, rooms }) })
    }

    /// Values of a row.
    pub(crate) fn hidden_size(&self) -> usize {
        self.shared.matrix.columns()
    }

    /// The logits of each row of `hidden`, `[tokens, hidden]`. The bits of one depend on no other.
    pub(crate) fn logits(&self, hidden: &[f32]) -> Result<Vec<Vec<f32>>, CudaError> {
        let together = ROWS_TOGETHER * self.hidden_size();
        let mut logits = Vec::with_capacity(hidden.len() / self.hidden_size());
        for rows in hidden.chunks(together) {
            self.append_logits(rows, &mut logits)?;
        }
        Ok(logits)
    }

    fn append_logits(&self, hidden: &[f32], logits: &mut Vec<Vec<f32>>) -> Result<(), CudaError> {
        let gpu = &self.shared.gpu;
        let _computing = gpu.workspace();
        gpu.context().bind()?;
        let mut rooms = self.shared.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        gpu.stream().whole(|| self.append_logits_in(&mut rooms, hidden, logits))
    }

    /// As `append_logits`, for who has the rooms; where it fails, kernels may be under way.
    fn append_logits_in(
        &self,
        rooms: &mut Rooms,
        hidden: &[f32],
        logits: &mut Vec<Vec<f32>>,
    ) -> Result<(), CudaError> {
        let Shared { gpu, norm, matrix, plain, .. } = &*self.shared;
        let tokens = hidden.len() / matrix.columns();
        let bytes: &[u8] = bytemuck::cast_slice(hidden);
        rooms.staged.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        gpu.stream().upload(&rooms.staged, bytes.len(), &rooms.rows)?;
        norm.launch(gpu, (rooms.rows.address(), tokens), (&rooms.normed, *plain, Order::Lanes))?;
        let to = ToRows {
            output: rooms.logits.address(),
            bias: 0,
            residual: 0,
            stride: int(matrix.rows()),
            first_row: 0,
        };
        let input = Input { values: &rooms.normed, tokens, order: Order::Lanes };
        matrix.multiply(gpu, input, Target::Rows(to))?;
        let bytes = tokens * matrix.rows() * size_of::<f32>();
        let Rooms { staged, logits: computed, .. } = rooms;
        gpu.stream().download(computed, bytes, staged)?;
        gpu.stream().synchronize()?;
        let rows = bytemuck::cast_slice::<u8, f32>(&staged.as_slice()[..bytes]);
        logits.extend(rows.chunks_exact(matrix.rows()).map(<[f32]>::to_vec));
        Ok(())
    }
}

impl fmt::Debug for HeadOnGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { gpu, matrix, .. } = &*self.shared;
        write!(f, "HeadOnGpu({} tokens on {gpu:?})", matrix.rows())
    }
}
