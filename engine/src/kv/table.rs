//! The cache of one session: which positions are filled, and the pages that hold them.

use std::ops::Range;
use std::sync::Arc;

use umbel_protocol::{DType, Span};
use umbel_shard::ModelConfig;

use super::PAGE_TOKENS;
use super::arena::Reservation;
use super::page::Page;
use super::slots::Slots;
use crate::cuda::{DeviceCache, DevicePage};
#[cfg(test)]
use crate::kernel::Side;
use crate::kernel::{KvPage, KvPages};
use crate::train::Adapter;

/// Keys and values of one session in each block of its span.
///
/// Every block holds the same positions: those below [`KvTable::position`].
#[derive(Debug)]
pub struct KvTable {
    blocks: Span,
    position: usize,
    capacity: usize,
    shape: PageShape,
    dtype: DType,
    /// What a page takes of the budget.
    page_bytes: usize,
    storage: Storage,
    reservation: Reservation,
    /// What is added to the matrices from which its keys and values come.
    adapter: Option<Arc<Adapter>>,
}

/// Where the pages lie.
#[derive(Debug)]
enum Storage {
    /// In the processor's memory, block by block.
    Host(Vec<BlockCache>),
    /// In a device's memory.
    Device(Box<DeviceCache>),
}

impl KvTable {
    pub(super) fn new(
        blocks: Span,
        capacity: usize,
        shape: PageShape,
        dtype: DType,
        (reservation, slots): (Reservation, &Arc<Slots>),
    ) -> Self {
        let cache = |_| BlockCache { shape, dtype, pages: Vec::new(), slots: Arc::clone(slots) };
        let caches = blocks.blocks().map(cache).collect();
        let (storage, page_bytes) = (Storage::Host(caches), Page::bytes(shape, dtype));
        let (position, adapter) = (0, None);
        Self { blocks, position, capacity, shape, dtype, page_bytes, storage, reservation, adapter }
    }

    pub(super) fn on_device(
        capacity: usize,
        shape: PageShape,
        (blocks, cache): (Span, DeviceCache),
        (dtype, page_bytes): (DType, usize),
        reservation: Reservation,
    ) -> Self {
        let storage = Storage::Device(Box::new(cache));
        let (position, adapter) = (0, None);
        Self { blocks, position, capacity, shape, dtype, page_bytes, storage, reservation, adapter }
    }

    /// The adapter with which its tokens go through the blocks.
    pub(crate) const fn adapter(&self) -> Option<&Arc<Adapter>> {
        self.adapter.as_ref()
    }

    pub(crate) fn set_adapter(&mut self, adapter: Arc<Adapter>) {
        self.adapter = Some(adapter);
    }

    /// The blocks that the session goes through here.
    #[must_use]
    pub const fn blocks(&self) -> Span {
        self.blocks
    }

    /// Tokens whose keys and values are in the cache: the position of the next token.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    /// The most tokens that the session can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens for which there is still room.
    #[must_use]
    pub const fn free_tokens(&self) -> usize {
        self.capacity - self.position
    }

    /// Forgets every token at `position` and after it, and frees the pages that this empties.
    ///
    /// # Errors
    /// [`TruncateError`] where the cache does not reach that far.
    pub fn truncate(&mut self, position: usize) -> Result<(), TruncateError> {
        if position > self.position {
            return Err(TruncateError { position: self.position, asked: position });
        }
        self.position = position;
        let pages = position.div_ceil(PAGE_TOKENS);
        match &mut self.storage {
            Storage::Host(caches) => {
                caches.iter_mut().for_each(|cache| cache.pages.truncate(pages));
            }
            Storage::Device(cache) => cache.truncate(pages),
        }
        Ok(())
    }

    /// Bytes of the pages that are filled at least in part.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        let pages: usize = match &self.storage {
            Storage::Host(caches) => caches.iter().map(|cache| cache.pages.len()).sum(),
            Storage::Device(cache) => cache.page_count(),
        };
        pages * self.page_bytes
    }

    pub(super) const fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    pub(super) const fn dtype(&self) -> DType {
        self.dtype
    }

    /// The page of each block from `index` times [`PAGE_TOKENS`] on, to be held beside the table.
    pub(super) fn pages(&self, index: usize) -> Pages {
        match &self.storage {
            Storage::Host(caches) => {
                Pages::Host(caches.iter().map(|cache| Arc::clone(&cache.pages[index])).collect())
            }
            Storage::Device(cache) => Pages::Device(cache.page(index)),
        }
    }

    /// Holds these pages, where it held none. Whether they lie where the table's do.
    pub(super) fn hold(&mut self, prefix: &[&Pages]) -> bool {
        match &mut self.storage {
            Storage::Host(caches) => {
                let pages: Option<Vec<_>> = prefix.iter().map(|pages| pages.on_host()).collect();
                let Some(pages) = pages else {
                    return false;
                };
                for (index, cache) in caches.iter_mut().enumerate() {
                    cache.begin_with(pages.iter().map(|pages| Arc::clone(&pages[index])));
                }
                true
            }
            Storage::Device(cache) => {
                let pages: Option<Vec<_>> = prefix.iter().map(|pages| pages.on_device()).collect();
                let Some(pages) = pages else {
                    return false;
                };
                cache.begin_with(pages.into_iter().map(<[_]>::to_vec));
                true
            }
        }
    }

    /// The cache of each block, in order; a pass fills them before it calls [`KvTable::advance`].
    ///
    /// # Panics
    /// Where the table lies in a device's memory: a pass is computed where its tables are.
    pub(crate) fn caches_mut(&mut self) -> &mut [BlockCache] {
        match &mut self.storage {
            Storage::Host(caches) => caches,
            Storage::Device(_) => panic!("the table is on a device, and the blocks are not"),
        }
    }

    /// The cache of each block.
    #[cfg(test)]
    pub(super) fn caches(&self) -> &[BlockCache] {
        match &self.storage {
            Storage::Host(caches) => caches,
            Storage::Device(_) => panic!("the table is on a device"),
        }
    }

    /// The cache in a device's memory.
    ///
    /// # Panics
    /// Where it is not there.
    pub(crate) fn device_cache(&self) -> &DeviceCache {
        match &self.storage {
            Storage::Device(cache) => cache,
            Storage::Host(_) => panic!("the blocks are on a device, and the table is not"),
        }
    }

    /// As [`KvTable::device_cache`], to be filled.
    pub(crate) fn device_cache_mut(&mut self) -> &mut DeviceCache {
        match &mut self.storage {
            Storage::Device(cache) => cache,
            Storage::Host(_) => panic!("the blocks are on a device, and the table is not"),
        }
    }

    /// Heads and their size, which the blocks that use the table must share.
    pub(crate) const fn shape(&self) -> PageShape {
        self.shape
    }

    /// Counts `tokens` as held, once every block has their keys and values.
    pub(crate) fn advance(&mut self, tokens: usize) {
        assert!(tokens <= self.free_tokens(), "a pass is checked for room before it runs");
        assert!(self.allocated_bytes() <= self.reservation.bytes(), "promised before use");
        self.position += tokens;
    }
}

/// A position that the cache has not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache holds {position} tokens and cannot be cut back to {asked}")]
pub struct TruncateError {
    /// Tokens in the cache.
    pub position: usize,
    /// Where it was to be cut.
    pub asked: usize,
}

/// What one page holds of each position: `kv_heads` keys and as many values of `head_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    pub(crate) kv_heads: usize,
    pub(crate) head_size: usize,
}

impl PageShape {
    pub(crate) const fn of(config: &ModelConfig) -> Self {
        Self { kv_heads: config.kv_head_count, head_size: config.head_size }
    }

    /// Where `head` at place `slot` of a page lies in its values.
    pub(crate) const fn value(self, head: usize, slot: usize) -> Range<usize> {
        let start = (head * PAGE_TOKENS + slot) * self.head_size;
        start..start + self.head_size
    }

    /// Where the first value of `head` at place `slot` of a page lies in its keys; the next are
    /// [`PAGE_TOKENS`] behind each other.
    pub(crate) const fn key(self, head: usize, slot: usize) -> usize {
        head * self.head_size * PAGE_TOKENS + slot
    }
}

/// The pages of some positions, one for each block.
#[derive(Debug)]
pub(super) enum Pages {
    Host(Vec<Arc<Page>>),
    Device(Vec<Arc<DevicePage>>),
}

impl Pages {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Host(pages) => pages.len(),
            Self::Device(pages) => pages.len(),
        }
    }

    fn on_host(&self) -> Option<&[Arc<Page>]> {
        match self {
            Self::Host(pages) => Some(pages),
            Self::Device(_) => None,
        }
    }

    fn on_device(&self) -> Option<&[Arc<DevicePage>]> {
        match self {
            Self::Device(pages) => Some(pages),
            Self::Host(_) => None,
        }
    }
}

/// Keys and values of one session in one block.
#[derive(Debug)]
pub(crate) struct BlockCache {
    shape: PageShape,
    dtype: DType,
    /// In the order of their positions. Others may hold them too.
    pages: Vec<Arc<Page>>,
    /// Where they come from.
    slots: Arc<Slots>,
}

impl BlockCache {
    /// Writes `keys` and `values`, each `[tokens, kv_heads, head_size]`, from `position` on.
    ///
    /// Pages are allocated here, when their first token comes; they start as zeros, so that nothing
    /// of a former session is ever in them.
    pub(crate) fn write(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let token_values = self.shape.kv_heads * self.shape.head_size;
        assert_eq!(keys.len(), values.len(), "every token has a key and a value");
        assert_eq!(keys.len() % token_values, 0, "keys come in whole tokens");
        let rows = keys.chunks_exact(token_values).zip(values.chunks_exact(token_values));
        for (position, (key, value)) in (position..).zip(rows) {
            let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
            while self.pages.len() <= page {
                self.pages.push(Arc::new(Page::zeroed(&self.slots, self.shape, self.dtype)));
            }
            // A page that others hold is copied first.
            Arc::make_mut(&mut self.pages[page]).write(slot, key, value);
        }
    }

    /// Holds these pages, where it held none.
    fn begin_with(&mut self, pages: impl Iterator<Item = Arc<Page>>) {
        assert!(self.pages.is_empty(), "only an empty table begins with pages");
        self.pages.extend(pages);
    }
}

#[cfg(test)]
impl BlockCache {
    /// The keys and the values of a page, where they are in binary32.
    pub(crate) fn floats(&self, page: usize) -> (&[f32], &[f32]) {
        let KvPage { keys: Side::Binary32(keys), values: Side::Binary32(values) } = self.page(page)
        else {
            panic!("the session asked for binary32");
        };
        (keys, values)
    }
}

impl KvPages for BlockCache {
    fn page(&self, index: usize) -> KvPage<'_> {
        self.pages[index].view()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two heads of three values; the digits say position, head and index.
    fn token(position: usize) -> Vec<f32> {
        let digits = [0, 1, 2, 10, 11, 12].map(|digits| digits + 100 * position);
        digits.map(|value| value as f32).to_vec()
    }

    #[test]
    fn tokens_lie_in_their_pages_by_head_and_position() {
        let shape = PageShape { kv_heads: 2, head_size: 3 };
        let mut cache =
            BlockCache { shape, dtype: DType::F32, pages: Vec::new(), slots: Arc::default() };
        let tokens: Vec<f32> = (0..20).flat_map(token).collect();
        let negated: Vec<f32> = tokens.iter().map(|value| -value).collect();
        cache.write(0, &tokens[..6 * 7], &negated[..6 * 7]);
        cache.write(7, &tokens[6 * 7..], &negated[6 * 7..]);
        assert_eq!(cache.pages.len(), 2);
        for position in 0..20 {
            let (keys, values) = cache.floats(position / PAGE_TOKENS);
            for head in 0..2 {
                let slot = position % PAGE_TOKENS;
                let place = (head * PAGE_TOKENS + slot) * 3;
                for index in 0..3 {
                    let expected = token(position)[head * 3 + index];
                    assert_eq!(keys[(head * 3 + index) * PAGE_TOKENS + slot], expected);
                    assert_eq!(values[place + index], -expected);
                }
            }
        }
    }
}
