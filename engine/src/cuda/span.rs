//! The blocks of a span in a device's memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use umbel_protocol::{DType, Span};
use umbel_shard::ModelConfig;

use super::adapter::{AdapterId, Adapters, GpuAdapter};
use super::block::{GpuBlock, LoadGpuBlockError, Module, is_plain};
use super::cache::PrepareError;
use super::driver::{Buffer, CudaError, Pinned};
use super::gpu::Gpu;
use super::pass::{self, Geometry, HEAD_SIZE_MAX, SessionRows};
use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::kernel::RopeTable;
use crate::train::{Adapter, TargetModule};

/// What sessions share that go through a pass together: the first and the end of their blocks, the pool
/// that their pages are of, whether these are in 8 bits, and what is added to the products.
type Lot = (u32, u32, usize, bool, Option<AdapterId>);

/// Consecutive blocks on a device. A clone shares the weights.
#[derive(Clone)]
pub(crate) struct GpuSpan {
    gpu: Gpu,
    geometry: Geometry,
    first: u32,
    blocks: Vec<Arc<GpuBlock>>,
    /// Those of its sessions.
    adapters: Arc<Adapters>,
}

impl GpuSpan {
    /// Takes the blocks of `span` out of a checkpoint; those that one of `held` has are shared.
    pub(crate) fn load(
        gpu: &Gpu,
        held: &[&Self],
        checkpoint: Checkpoint<'_>,
        span: Span,
        rope: &Arc<RopeTable>,
    ) -> Result<Self, LoadGpuSpanError> {
        let config = checkpoint.config;
        let plain = plain(checkpoint, span)?;
        if !plain && config.head_size > HEAD_SIZE_MAX {
            return Err(LoadGpuSpanError::HeadSize { found: config.head_size });
        }
        let held = |index| {
            let beside =
                held.iter().filter(|held| held.gpu.is(gpu) && held.geometry.plain == plain);
            beside.into_iter().find_map(|held| held.block(index)).map(Arc::clone)
        };
        let load = |index| match held(index) {
            Some(block) => Ok(block),
            None => GpuBlock::load(gpu, checkpoint, index, plain).map(Arc::new),
        };
        let blocks = span.blocks().map(load).collect::<Result<_, LoadGpuBlockError>>()?;
        let geometry = geometry(config, rope, plain);
        let (gpu, adapters) = (gpu.clone(), Arc::default());
        Ok(Self { gpu, geometry, first: span.start(), blocks, adapters })
    }

    fn block(&self, index: u32) -> Option<&Arc<GpuBlock>> {
        self.blocks.get(index.checked_sub(self.first)? as usize)
    }

    /// The blocks of `span`, which are all here.
    pub(crate) fn part(&self, span: Span) -> Self {
        let blocks = span.blocks().filter_map(|index| self.block(index)).map(Arc::clone).collect();
        Self { first: span.start(), blocks, adapters: Arc::default(), ..self.clone() }
    }

    /// What an adapter adds in those of its blocks that are here, on the device.
    pub(crate) fn adapter(&self, adapter: &Arc<Adapter>) -> Result<Arc<GpuAdapter>, CudaError> {
        let end = self.first + u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let here = Span::new(self.first, end).ok();
        let both = here.and_then(|here| here.intersection(adapter.blocks()));
        // Whoever adapts a session has seen that the adapter has the blocks of that.
        let blocks = both.expect("the adapter has some of the blocks");
        self.adapters.of(self, blocks, adapter)
    }

    pub(crate) const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Values of a head.
    pub(crate) const fn head_size(&self) -> usize {
        self.geometry.head_size
    }

    /// Whether the blocks have experts.
    pub(crate) const fn has_experts(&self) -> bool {
        self.geometry.experts.is_some()
    }

    /// Rows and columns of a module's matrix; `None` where experts stand in its place.
    pub(crate) fn module_shape(&self, module: TargetModule) -> Option<[usize; 2]> {
        self.geometry.module_shape(module)
    }

    /// The norm of each row of a module's matrix in a block, which is here and has the module.
    pub(crate) fn row_norms(
        &self,
        block: u32,
        module: TargetModule,
    ) -> Result<Vec<f32>, CudaError> {
        let block = self.block(block).expect("the block is here");
        let _computing = self.gpu.workspace();
        self.gpu.context().bind()?;
        let Module { matrix, rows, .. } = block.module(&self.geometry, module);
        download(&self.gpu, &matrix.row_norms(&self.gpu, rows, None)?)
    }

    pub(super) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Those of `span`, which are all here.
    pub(super) fn blocks(&self, span: Span) -> Vec<&GpuBlock> {
        span.blocks().filter_map(|index| self.block(index)).map(|block| &**block).collect()
    }

    /// How keys and values are kept, unless a session asks for 8 bits.
    pub(crate) const fn cache_type(&self) -> DType {
        if self.geometry.plain { DType::F32 } else { DType::BF16 }
    }

    /// Takes each session's rows through its blocks: sessions with the same ones in one pass.
    pub(crate) fn forward(
        &self,
        stretches: Vec<(Span, SessionRows<'_>)>,
    ) -> Vec<Result<Vec<f32>, Arc<PrepareError>>> {
        let mut results: Vec<_> = stretches.iter().map(|_| None).collect();
        let mut lots: BTreeMap<Lot, Vec<(usize, SessionRows<'_>)>> = BTreeMap::new();
        for (index, (span, stretch)) in stretches.into_iter().enumerate() {
            // Pages of one pass are of one pool, and all in 8 bits or none.
            let cache = stretch.table.device_cache();
            let pool = Arc::as_ptr(cache.pool()).addr();
            let adapter = cache.adapter().map(|adapter| adapter.id());
            let lot = (span.start(), span.end(), pool, cache.is_in_bytes(), adapter);
            lots.entry(lot).or_default().push((index, stretch));
        }
        for ((start, end, _, _, _), lot) in lots {
            let (indices, mut stretches): (Vec<_>, Vec<_>) = lot.into_iter().unzip();
            let range = (start - self.first) as usize..(end - self.first) as usize;
            let rows = self.pass(start, &self.blocks[range], &mut stretches);
            for (index, rows) in indices.into_iter().zip(rows) {
                results[index] = Some(rows);
            }
        }
        results.into_iter().map(|result| result.expect("every session is in a lot")).collect()
    }

    /// One pass for all; where the device has no memory for it, one for each, so that who asks for
    /// much fails alone.
    fn pass(
        &self,
        first: u32,
        blocks: &[Arc<GpuBlock>],
        sessions: &mut [SessionRows<'_>],
    ) -> Vec<Result<Vec<f32>, Arc<PrepareError>>> {
        match pass::run(&self.gpu, &self.geometry, (first, blocks), sessions) {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(error) if error.is_out_of_memory() && sessions.len() > 1 => {
                let alone = sessions.chunks_mut(1);
                alone.flat_map(|session| self.pass(first, blocks, session)).collect()
            }
            Err(error) => {
                let error = Arc::new(error);
                sessions.iter().map(|_| Err(Arc::clone(&error))).collect()
            }
        }
    }
}

/// The values in a device's memory, once it has computed them.
pub(super) fn download(gpu: &Gpu, values: &Buffer) -> Result<Vec<f32>, CudaError> {
    let mut staged = Pinned::new(gpu.context(), values.bytes())?;
    gpu.stream().download(values, values.bytes(), &mut staged)?;
    gpu.stream().synchronize()?;
    Ok(bytemuck::cast_slice::<u8, f32>(&staged.as_slice()[..values.bytes()]).to_vec())
}

/// Whether all matrices of a span are in binary32.
fn plain(checkpoint: Checkpoint<'_>, span: Span) -> Result<bool, LoadTensorError> {
    for index in span.blocks() {
        if !is_plain(checkpoint, index)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn geometry(config: &ModelConfig, rope: &Arc<RopeTable>, plain: bool) -> Geometry {
    Geometry {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        experts: config.experts,
        heads: config.head_count,
        kv_heads: config.kv_head_count,
        head_size: config.head_size,
        epsilon: config.rms_norm_eps,
        rope: Arc::clone(rope),
        plain,
    }
}

impl fmt::Debug for GpuSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuSpan({} blocks from {} on {:?})", self.blocks.len(), self.first, self.gpu)
    }
}

/// Blocks that are not on the device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadGpuSpanError {
    /// A tensor is missing or has another shape.
    #[error(transparent)]
    Tensor(#[from] LoadTensorError),
    /// The device refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// Heads for which there is no kernel.
    #[error(
        "the model's heads have {found} values, and the GPU's kernels take at most {HEAD_SIZE_MAX}; \
         serve it on the CPU"
    )]
    HeadSize {
        /// Values of a head.
        found: usize,
    },
}

impl From<LoadGpuBlockError> for LoadGpuSpanError {
    fn from(error: LoadGpuBlockError) -> Self {
        match error {
            LoadGpuBlockError::Tensor(error) => Self::Tensor(error),
            LoadGpuBlockError::Cuda(error) => Self::Cuda(error),
        }
    }
}
