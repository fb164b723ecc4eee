//! The paged cache of keys and values in a device's memory.
//!
//! All pages of a server are one allocation that is made when it starts, so what an arena promises is
//! there. A page has 16 positions of one block, or in 8 bits those of several, as `cuda/cache.cuh` says.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use umbel_protocol::keeping::SharedPages;
use umbel_protocol::{DType, Span};

use super::adapter::GpuAdapter;
use super::driver::{Buffer, CudaError, Pinned};
use super::gpu::Gpu;
use super::matrix::int;
use crate::kernel::{KV_BLOCK_VALUES, PAGE_TOKENS};
use crate::kv::table::PageShape;

/// Values to a multiple of which heads are padded in bfloat16.
pub(super) const HEAD_PADDING: usize = 32;

/// The pages of a server.
#[derive(Debug)]
pub(crate) struct PagePool {
    gpu: Gpu,
    memory: Buffer,
    keeping: SharedPages,
    page_bytes: usize,
    /// By what they held last.
    free: Mutex<[Vec<u32>; 3]>,
}

/// What a page holds. Where a token has yet to be written, attention counts on numbers, so a page is
/// cleared before it holds another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Keys and values of a block.
    Native,
    /// Integers of 8 bits.
    Quants,
    /// Their scales.
    Scales,
}

const KINDS: [Kind; 3] = [Kind::Native, Kind::Quants, Kind::Scales];

impl PagePool {
    /// As many pages as fit into `bytes`, each for keys and values of `dtype`: binary32 or bfloat16.
    /// Sessions may keep 8 bits as well.
    pub(crate) fn new(
        gpu: &Gpu,
        shape: PageShape,
        dtype: DType,
        bytes: usize,
    ) -> Result<Arc<Self>, CudaError> {
        let page_bytes = page_bytes(shape, dtype);
        let count = u32::try_from(bytes / page_bytes).unwrap_or(u32::MAX);
        // Padding and keys that no token has yet are zeros; attention counts on numbers there.
        let memory = Buffer::zeroed(gpu.context(), count as usize * page_bytes)?;
        let free = Mutex::new([(0..count).rev().collect(), Vec::new(), Vec::new()]);
        let keeping = keeping(shape, dtype);
        Ok(Arc::new(Self { gpu: gpu.clone(), memory, keeping, page_bytes, free }))
    }

    pub(crate) const fn keeping(&self) -> SharedPages {
        self.keeping
    }

    pub(super) const fn memory(&self) -> &Buffer {
        &self.memory
    }

    /// A page that holds `kind`, if possible one that did before.
    fn take(self: &Arc<Self>, kind: Kind) -> Result<Arc<DevicePage>, PrepareError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let others = KINDS.into_iter().filter(|&other| other != kind);
        let mut found = std::iter::once(kind).chain(others);
        let found = found.find_map(|former| Some((former, free[former as usize].pop()?)));
        drop(free);
        let (former, id) = found.ok_or(NoPage)?;
        let page = Arc::new(DevicePage { pool: Arc::clone(self), id, kind });
        if former != kind {
            let start = id as usize * self.page_bytes;
            self.gpu.stream().clear(&self.memory, start, self.page_bytes)?;
        }
        Ok(page)
    }

    fn copy(&self, from: &DevicePage, to: &DevicePage) -> Result<(), CudaError> {
        let place = |page: &DevicePage| page.id as usize * self.page_bytes;
        self.gpu.stream().copy_within(&self.memory, place(from), place(to), self.page_bytes)
    }
}

/// What a page takes: heads are padded in bfloat16.
pub(crate) fn page_bytes(shape: PageShape, dtype: DType) -> usize {
    let (size, bytes) = match dtype {
        DType::F32 => (shape.head_size, 4),
        DType::BF16 | DType::F16 | DType::Q8 | DType::Id => {
            (shape.head_size.next_multiple_of(HEAD_PADDING), 2)
        }
    };
    2 * shape.kv_heads * PAGE_TOKENS * size * bytes
}

/// What a token takes of the pages that a pool has for it: a budget counts values in binary32, and there are
/// twice as many pages of bfloat16 for it.
pub(super) fn token_bytes(shape: PageShape, plain: bool) -> usize {
    let pages =
        if plain { page_bytes(shape, DType::F32) } else { 2 * page_bytes(shape, DType::BF16) };
    pages / PAGE_TOKENS
}

/// How many blocks share a page where sessions keep 8 bits: `BytePage` of `cuda/cache.cuh`.
fn keeping(shape: PageShape, native: DType) -> SharedPages {
    let (size, quants_together) = match native {
        DType::F32 => (shape.head_size, 4),
        DType::BF16 | DType::F16 | DType::Q8 | DType::Id => {
            (shape.head_size.next_multiple_of(HEAD_PADDING), 2)
        }
    };
    let scale_bytes = 2 * shape.kv_heads * PAGE_TOKENS * size.div_ceil(KV_BLOCK_VALUES) * 2;
    let scales_together = page_bytes(shape, native) / scale_bytes;
    let scales_together = u32::try_from(scales_together).expect("a head has some hundred values");
    SharedPages { native, quants_together, scales_together }
}

/// A page; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct DevicePage {
    pool: Arc<PagePool>,
    id: u32,
    kind: Kind,
}

impl Drop for DevicePage {
    fn drop(&mut self) {
        // Passes are waited for, so nobody reads it any more.
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free[self.kind as usize].push(self.id);
    }
}

/// The pages of a pool ran out, which were promised: a bug of ours.
#[derive(Debug, thiserror::Error)]
#[error("the device has no page left, although room was promised")]
pub(crate) struct NoPage;

/// The pages of one session.
#[derive(Debug)]
pub(crate) struct DeviceCache {
    pool: Arc<PagePool>,
    blocks: Span,
    /// What each of the pages of 16 positions holds.
    kinds: Vec<Kind>,
    /// For each 16 positions, the pages of all blocks.
    pages: Vec<Vec<Arc<DevicePage>>>,
    /// Their numbers, on the device, and here before they are copied there.
    table: Buffer,
    staged: Pinned,
    /// The pages whose numbers the device has not been told.
    unsaid: Range<usize>,
    /// What is added to the products from which keys and values come.
    adapter: Option<Arc<GpuAdapter>>,
}

impl DeviceCache {
    /// For so many tokens in each of `blocks`, kept in `kept`.
    pub(crate) fn new(
        pool: &Arc<PagePool>,
        (blocks, kept): (Span, DType),
        tokens: usize,
    ) -> Result<Self, CudaError> {
        let (count, keeping) = (blocks.block_count(), pool.keeping);
        let quants = if kept == DType::Q8 { keeping.quant_pages(count) } else { 0 };
        let rest = if kept == DType::Q8 { Kind::Scales } else { Kind::Native };
        let kind = |index| if index < quants { Kind::Quants } else { rest };
        let kinds: Vec<Kind> = (0..keeping.pages(kept, count)).map(kind).collect();
        let bytes = tokens.div_ceil(PAGE_TOKENS) * kinds.len() * size_of::<u32>();
        let (context, pages) = (pool.gpu.context(), Vec::new());
        let (table, staged) = (Buffer::new(context, bytes)?, Pinned::new(context, bytes)?);
        let (pool, unsaid, adapter) = (Arc::clone(pool), 0..0, None);
        Ok(Self { pool, blocks, kinds, pages, table, staged, unsaid, adapter })
    }

    pub(super) const fn pool(&self) -> &Arc<PagePool> {
        &self.pool
    }

    pub(super) const fn adapter(&self) -> Option<&Arc<GpuAdapter>> {
        self.adapter.as_ref()
    }

    pub(crate) fn set_adapter(&mut self, adapter: Arc<GpuAdapter>) {
        self.adapter = Some(adapter);
    }

    /// How many pages are held.
    pub(crate) fn page_count(&self) -> usize {
        self.pages.len() * self.kinds.len()
    }

    /// Whether keys and values are kept in 8 bits.
    pub(super) fn is_in_bytes(&self) -> bool {
        self.kinds.contains(&Kind::Scales)
    }

    pub(crate) fn truncate(&mut self, pages: usize) {
        self.pages.truncate(pages);
    }

    /// The pages of 16 positions, to be kept.
    pub(crate) fn page(&self, index: usize) -> Vec<Arc<DevicePage>> {
        self.pages[index].clone()
    }

    /// Holds these pages, where it held none.
    pub(crate) fn begin_with(&mut self, pages: impl Iterator<Item = Vec<Arc<DevicePage>>>) {
        assert!(self.pages.is_empty(), "only an empty table begins with pages");
        self.pages.extend(pages);
        let count = self.pages.len();
        self.stage(0..count);
    }

    /// Makes room for so many tokens from `position` on, in pages that nobody else holds.
    pub(super) fn prepare(&mut self, position: usize, tokens: usize) -> Result<(), PrepareError> {
        let (first, end) = (position / PAGE_TOKENS, (position + tokens).div_ceil(PAGE_TOKENS));
        for index in first..end {
            if index >= self.pages.len() {
                let pages = self.kinds.iter().map(|&kind| self.pool.take(kind));
                self.pages.push(pages.collect::<Result<_, _>>()?);
                self.stage(index..index + 1);
            } else if self.pages[index].iter().any(|page| Arc::strong_count(page) > 1) {
                for page in &mut self.pages[index] {
                    let own = self.pool.take(page.kind)?;
                    self.pool.copy(page, &own)?;
                    *page = own;
                }
                self.stage(index..index + 1);
            }
        }
        self.upload()?;
        Ok(())
    }

    /// Writes the numbers of pages down, to be copied to the device.
    fn stage(&mut self, changed: Range<usize>) {
        let each = self.kinds.len();
        let numbers: &mut [u32] = bytemuck::cast_slice_mut(self.staged.as_mut_slice());
        for index in changed.clone() {
            for (number, page) in numbers[index * each..].iter_mut().zip(&self.pages[index]) {
                *number = page.id;
            }
        }
        self.unsaid = if self.unsaid.is_empty() {
            changed
        } else {
            self.unsaid.start.min(changed.start)..self.unsaid.end.max(changed.end)
        };
    }

    /// Tells the device what was written down since the last time.
    fn upload(&mut self) -> Result<(), CudaError> {
        if self.unsaid.is_empty() {
            return Ok(());
        }
        let bytes = self.kinds.len() * size_of::<u32>();
        let range = self.unsaid.start * bytes..self.unsaid.end * bytes;
        let start = range.start;
        self.pool.gpu.stream().upload_part(&self.staged, range, &self.table, start)?;
        self.unsaid = 0..0;
        Ok(())
    }

    /// The tokens that a pass brings, for the kernels.
    pub(super) fn sequence(&self, position: usize, tokens: usize, first_row: usize) -> Sequence {
        let number = |number: u32| i32::try_from(number).expect("blocks are counted in hundreds");
        Sequence {
            pages: self.table.address(),
            position: int(position),
            tokens: int(tokens),
            first_row: int(first_row),
            first_block: number(self.blocks.start()),
            blocks: number(self.blocks.block_count()),
            page_count: int(self.kinds.len()),
        }
    }
}

/// `Sequence` of `cuda/cache.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Sequence {
    pages: u64,
    position: i32,
    tokens: i32,
    first_row: i32,
    first_block: i32,
    blocks: i32,
    page_count: i32,
}

/// Why there is no room for a session's tokens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    NoPage(#[from] NoPage),
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl PrepareError {
    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Cuda(error) if error.is_out_of_memory())
    }
}
