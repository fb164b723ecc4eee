//! A device, and what all spans on it share.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use umbel_shard::ModelConfig;
use umbel_shard::manifest::ManifestTensor;

use super::driver::{self, Buffer, Context, CudaError, OpenGpuError, Stream};
use super::matrix::{Limits, UNPACKED_BYTES};
use super::pass::Workspace;
use super::program::{Kernels, Program};
use super::{block, cache};
use crate::kv::table::PageShape;

/// An NVIDIA GPU that this process computes on. A clone is the same device.
///
/// Passes of all spans on it run one after the other, so they share their workspace.
#[derive(Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
}

struct Shared {
    // Fields are dropped in this order, and what lies on the device goes before the device.
    workspace: Mutex<Workspace>,
    unpacked: Buffer,
    program: Program,
    stream: Stream,
    name: String,
    limits: Limits,
    context: Arc<Context>,
}

impl Gpu {
    /// How many devices there are, of any age.
    ///
    /// # Errors
    /// [`OpenGpuError`] where there is no driver, or one that is too old.
    pub fn count() -> Result<usize, OpenGpuError> {
        driver::device_count()
    }

    /// Opens the device `ordinal`, from 0.
    ///
    /// # Errors
    /// [`OpenGpuError`], which says what to do.
    pub fn open(ordinal: usize) -> Result<Self, OpenGpuError> {
        Self::open_with(ordinal, Kernels::default())
    }

    /// As [`open`](Self::open), with other kernels than those that Umbel is built with.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(ordinal: usize, kernels: Kernels) -> Result<Self, OpenGpuError> {
        let context = Context::open(ordinal)?;
        let size = |value: i32| usize::try_from(value).unwrap_or(0);
        let limits = Limits {
            multiprocessors: size(
                context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            )
            .max(1),
            shared_bytes: size(
                context
                    .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            ),
            group_units: context.begins_early() && context.capability() == (9, 0),
        };
        let shared = Shared {
            workspace: Mutex::new(Workspace::default()),
            unpacked: Buffer::new(&context, UNPACKED_BYTES)?,
            program: Program::new(&context, kernels),
            stream: Stream::new(&context)?,
            name: context.name()?,
            limits,
            context,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What its maker calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its number on this machine, from 0.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.shared.context.ordinal()
    }

    /// Bytes of memory that are free now, and bytes in all.
    ///
    /// # Errors
    /// [`CudaError`] where the device is lost.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.shared.context.memory()
    }

    /// Bytes of a device's memory for tensors that are all of a block, or all of the head of a model.
    /// They may be more than those in files: of `Q4_K` 10 for 9, since cells have a scale and an offset
    /// of 16 bits for each 32 columns.
    #[must_use]
    pub fn weight_bytes(tensors: &[ManifestTensor]) -> u64 {
        block::bytes_of(tensors)
    }

    /// Bytes of a device's memory for the keys and values of one token in a block of these tensors, at most:
    /// what sessions keep in 8 bits takes less. Beside matrices that are not all in binary32, heads are
    /// padded.
    #[must_use]
    pub fn kv_token_bytes(config: &ModelConfig, tensors: &[ManifestTensor]) -> u64 {
        cache::token_bytes(PageShape::of(config), block::all_plain(tensors)) as u64
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.shared.context
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.shared.stream
    }

    pub(super) fn program(&self) -> &Program {
        &self.shared.program
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Where quantized matrices are unpacked.
    pub(super) fn unpacked(&self) -> &Buffer {
        &self.shared.unpacked
    }

    /// Whoever has this computes.
    pub(super) fn workspace(&self) -> MutexGuard<'_, Workspace> {
        self.shared.workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}: {})", self.ordinal(), self.name())
    }
}
