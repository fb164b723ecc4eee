//! The budget of cache memory that the sessions of one server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use umbel_protocol::keeping::SharedPages;
use umbel_protocol::{DType, Span};
use umbel_shard::ModelConfig;

use super::PAGE_TOKENS;
use super::page::Page;
use super::slots::Slots;
use super::table::{KvTable, PageShape};
use crate::cuda::{CudaError, DeviceCache, Gpu, PagePool, page_bytes};

/// Cache memory for the blocks of one span.
///
/// It promises memory, and allocates none: a table allocates its pages as tokens fill them. What
/// was promised at [`KvArena::open`] is there when it is needed, so a session that is open never
/// fails for lack of room. A clone gives out the same room.
#[derive(Debug, Clone)]
pub struct KvArena {
    hosted: Span,
    context_tokens: usize,
    page: PageShape,
    budget: Arc<Budget>,
    /// Where pages are in the processor's memory.
    slots: Arc<Slots>,
    /// Where pages are in a device's memory.
    pool: Option<Arc<PagePool>>,
}

impl KvArena {
    /// Room for `tokens_max` tokens in binary32, over all sessions, in each block of `hosted`.
    ///
    /// Pages are not split, so the budget is rounded up to whole ones, and so is each session.
    #[must_use]
    pub fn new(config: &ModelConfig, hosted: Span, tokens_max: usize) -> Self {
        let (context_tokens, page) = (config.context_tokens, PageShape::of(config));
        let bytes = bytes(page, DType::F32, hosted, tokens_max);
        let budget = Arc::new(Budget { free: AtomicUsize::new(bytes) });
        Self { hosted, context_tokens, page, budget, slots: Arc::default(), pool: None }
    }

    /// As [`KvArena::new`], in the memory of `gpu`, where all sessions keep what is of `dtype`.
    pub(crate) fn on_device(
        gpu: &Gpu,
        config: &ModelConfig,
        hosted: Span,
        tokens_max: usize,
        dtype: DType,
    ) -> Result<Self, CudaError> {
        let this = Self::new(config, hosted, tokens_max);
        // The budget counts heads as they are, and the device pads them.
        let pages = this.budget.free_bytes() / Page::bytes(this.page, dtype).max(1);
        let pool = PagePool::new(gpu, this.page, dtype, pages * page_bytes(this.page, dtype))?;
        Ok(Self { pool: Some(pool), ..this })
    }

    /// An arena for `hosted`, other blocks of the same model, that gives out the same room: what is
    /// open in one is missing in the other.
    #[must_use]
    pub fn beside(&self, hosted: Span) -> Self {
        Self { hosted, ..self.clone() }
    }

    /// A table with room for `tokens` tokens in each of `blocks`, empty at first, that keeps them as
    /// they were computed.
    ///
    /// # Errors
    /// As [`KvArena::open_as`].
    pub fn open(&self, blocks: Span, tokens: usize) -> Result<KvTable, OpenTableError> {
        self.open_as(DType::F32, blocks, tokens)
    }

    /// A table with room for `tokens` tokens in each of `blocks`, empty at first. What is narrower
    /// than binary32 takes less of the budget, and is rounded when it is written.
    ///
    /// The room is given back when the table is dropped.
    ///
    /// # Errors
    /// [`OpenTableError`]: another server, a shorter session or, where the arena is full, a later
    /// attempt may do.
    pub fn open_as(
        &self,
        dtype: DType,
        blocks: Span,
        tokens: usize,
    ) -> Result<KvTable, OpenTableError> {
        if !self.hosted.covers(blocks) {
            return Err(OpenTableError::NotHosted { blocks, hosted: self.hosted });
        }
        if tokens > self.context_tokens {
            return Err(OpenTableError::TooLong { tokens, context_tokens: self.context_tokens });
        }
        // A device keeps what it computes with, or 8 bits.
        let dtype = self.shared_pages().map_or(dtype, |pages| pages.kept(dtype));
        let of_page = self.page_bytes(dtype);
        // Saturates only where a configuration claims an absurd context, and nobody has that room.
        let pages = tokens.div_ceil(PAGE_TOKENS).saturating_mul(self.pages(dtype, blocks));
        let bytes = pages.saturating_mul(of_page);
        let Some(reservation) = Reservation::take(&self.budget, bytes) else {
            let free_tokens = self.free_tokens_as(dtype, blocks);
            return Err(OpenTableError::Full { tokens, free_tokens });
        };
        let Some(pool) = &self.pool else {
            return Ok(KvTable::new(blocks, tokens, self.page, dtype, (reservation, &self.slots)));
        };
        let cache = DeviceCache::new(pool, (blocks, dtype), tokens)?;
        let kept = (dtype, of_page);
        Ok(KvTable::on_device(tokens, self.page, (blocks, cache), kept, reservation))
    }

    /// The blocks whose caches live here.
    #[must_use]
    pub const fn hosted(&self) -> Span {
        self.hosted
    }

    /// Tokens for which a session through all the hosted blocks could be opened now.
    #[must_use]
    pub fn free_tokens(&self) -> usize {
        self.free_tokens_as(DType::F32, self.hosted)
    }

    /// The pages that all sessions share, where they are in a device's memory.
    #[must_use]
    pub fn shared_pages(&self) -> Option<SharedPages> {
        self.pool.as_ref().map(|pool| pool.keeping())
    }

    /// Bytes of the budget for a page of a session that is kept in `dtype`.
    fn page_bytes(&self, dtype: DType) -> usize {
        Page::bytes(self.page, self.shared_pages().map_or(dtype, |pages| pages.native))
    }

    /// Pages that 16 positions of such a session take.
    fn pages(&self, dtype: DType, blocks: Span) -> usize {
        let count = blocks.block_count();
        self.shared_pages().map_or(count, |pages| pages.pages(dtype, count)) as usize
    }

    pub(super) fn reserve(&self, bytes: usize) -> Option<Reservation> {
        Reservation::take(&self.budget, bytes)
    }

    fn free_tokens_as(&self, dtype: DType, blocks: Span) -> usize {
        let pages = self.budget.free_bytes() / self.page_bytes(dtype).max(1);
        pages / self.pages(dtype, blocks).max(1) * PAGE_TOKENS
    }
}

#[cfg(test)]
impl KvArena {
    pub(super) fn of_pages(hosted: Span, page: PageShape, tokens_max: usize) -> Self {
        let bytes = bytes(page, DType::F32, hosted, tokens_max);
        let budget = Arc::new(Budget { free: AtomicUsize::new(bytes) });
        Self { hosted, context_tokens: 400, page, budget, slots: Arc::default(), pool: None }
    }
}

/// What the pages for so many tokens take.
fn bytes(page: PageShape, dtype: DType, blocks: Span, tokens: usize) -> usize {
    let pages = tokens.div_ceil(PAGE_TOKENS).saturating_mul(block_count(blocks));
    pages.saturating_mul(Page::bytes(page, dtype))
}

/// How many bytes nobody was promised yet.
#[derive(Debug)]
struct Budget {
    free: AtomicUsize,
}

impl Budget {
    fn free_bytes(&self) -> usize {
        self.free.load(Ordering::Acquire)
    }
}

/// Bytes that were promised to one table or one page that is kept; dropping it gives them back.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    fn take(budget: &Arc<Budget>, bytes: usize) -> Option<Self> {
        budget
            .free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(bytes))
            .ok()?;
        Some(Self { budget: Arc::clone(budget), bytes })
    }

    /// How many were promised.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.free.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

fn block_count(span: Span) -> usize {
    span.block_count() as usize
}

/// A table that was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenTableError {
    /// Blocks that are not here: ask the server that has them.
    #[error("blocks {blocks} are not among the hosted blocks {hosted}")]
    NotHosted {
        /// The blocks asked for.
        blocks: Span,
        /// The blocks that are here.
        hosted: Span,
    },
    /// More tokens than the model can attend to.
    #[error("{tokens} tokens exceed the model's context of {context_tokens}; ask for fewer")]
    TooLong {
        /// Tokens asked for.
        tokens: usize,
        /// The most that the model can attend to.
        context_tokens: usize,
    },
    /// Other sessions have the room: ask for less, later, or elsewhere.
    #[error("no room for {tokens} tokens in the KV cache, only for {free_tokens}")]
    Full {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens for which there is room in these blocks now.
        free_tokens: usize,
    },
    /// The device has no memory for the session's list of pages, or is lost.
    #[error("no session can be opened on the GPU")]
    Gpu(#[from] CudaError),
}

#[cfg(test)]
mod tests;
