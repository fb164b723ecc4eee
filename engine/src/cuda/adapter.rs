//! Adapters in a device's memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use umbel_protocol::Span;

use super::adapt::{Scales, Side};
use super::block::{GpuBlock, Module};
use super::driver::{Buffer, CudaError};
use super::gpu::Gpu;
use super::pass::Geometry;
use super::span::GpuSpan;
use crate::train::adapter::LoraMatrices;
use crate::train::{Adapter, TargetModule};

/// A name that no other adapter of this process has or had on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AdapterId(u64);

impl AdapterId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What an adapter adds in some blocks.
#[derive(Debug)]
pub(crate) struct GpuAdapter {
    id: AdapterId,
    scale: f32,
    pairs: BTreeMap<(u32, TargetModule), Pair>,
    /// Vectors that a block adds to the first tokens, `[tokens, hidden]`.
    prompts: BTreeMap<u32, Buffer>,
}

impl GpuAdapter {
    fn load(span: &GpuSpan, blocks: Span, adapter: &Adapter) -> Result<Self, CudaError> {
        let (gpu, scale) = (span.gpu(), adapter.config().scale());
        let _computing = gpu.workspace();
        gpu.context().bind()?;
        let (mut pairs, mut prompts) = (BTreeMap::new(), BTreeMap::new());
        for (index, block) in blocks.blocks().zip(span.blocks(blocks)) {
            for module in TargetModule::ALL {
                if let Some(matrices) = adapter.parameters().at(index, module) {
                    let pair = Pair::load(gpu, (block, span.geometry()), module, matrices, scale)?;
                    pairs.insert((index, module), pair);
                }
            }
            if let Some(prompt) = adapter.parameters().prompt_of(index) {
                prompts.insert(index, Buffer::of(gpu.context(), prompt)?);
            }
        }
        gpu.stream().synchronize()?;
        Ok(Self { id: AdapterId::next(), scale, pairs, prompts })
    }

    pub(super) const fn id(&self) -> AdapterId {
        self.id
    }

    /// What the product of B and A is multiplied by.
    pub(super) const fn scale(&self) -> f32 {
        self.scale
    }

    pub(super) fn pair(&self, block: u32, module: TargetModule) -> Option<&Pair> {
        self.pairs.get(&(block, module))
    }

    pub(super) fn prompt(&self, block: u32) -> Option<&Buffer> {
        self.prompts.get(&block)
    }
}

/// The matrices of one module of one block.
#[derive(Debug)]
pub(super) struct Pair {
    /// `[rank, columns]`.
    pub(super) a: Side,
    /// Transposed: `[rank, rows]`.
    pub(super) b: Side,
    /// Magnitudes, and norms of rows, where there are any.
    scales: Option<[Buffer; 2]>,
}

impl Pair {
    pub(super) fn load(
        gpu: &Gpu,
        (block, geometry): (&GpuBlock, &Geometry),
        module: TargetModule,
        matrices: &LoraMatrices,
        scale: f32,
    ) -> Result<Self, CudaError> {
        let rank = matrices.rank();
        let a = Side::of(gpu, matrices.a(), rank)?;
        let b = Side::transposed(gpu, matrices.b(), rank)?;
        let scales = if matrices.magnitudes().is_empty() {
            None
        } else {
            let Module { matrix, rows, .. } = block.module(geometry, module);
            let norms = matrix.row_norms(gpu, rows, Some((&a, &b, scale)))?;
            Some([Buffer::of(gpu.context(), matrices.magnitudes())?, norms])
        };
        Ok(Self { a, b, scales })
    }

    pub(super) fn scales(&self) -> Option<Scales> {
        let [magnitudes, norms] = self.scales.as_ref()?;
        Some(Scales { magnitudes: magnitudes.address(), norms: norms.address() })
    }
}

/// The adapters that sessions on some blocks have on the device: each is there once, as long as a session
/// uses it.
#[derive(Debug, Default)]
pub(super) struct Adapters(Mutex<Vec<(Weak<Adapter>, Weak<GpuAdapter>)>>);

impl Adapters {
    /// The adapter on the device of `span`, with what it has for all of its blocks.
    pub(super) fn of(
        &self,
        span: &GpuSpan,
        blocks: Span,
        adapter: &Arc<Adapter>,
    ) -> Result<Arc<GpuAdapter>, CudaError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(_, on_device)| on_device.strong_count() > 0);
        let found = held.iter().find(|(of, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(adapter)));
        if let Some(found) = found.and_then(|(_, on_device)| on_device.upgrade()) {
            return Ok(found);
        }
        let loaded = Arc::new(GpuAdapter::load(span, blocks, adapter)?);
        held.push((Arc::downgrade(adapter), Arc::downgrade(&loaded)));
        Ok(loaded)
    }
}
