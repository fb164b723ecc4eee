//! Memory for weights: whole pages, large ones where the system has them.
//!
//! With pages of 4 KiB a stream of weights waits for their translation, and one thread reads half as
//! fast as with pages of 2 MiB. A matrix is rarely a multiple of 2 MiB, so matrices share chunks of
//! memory, one behind the other, and a chunk is given back when its last matrix is.

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};

/// What the systems that we know call a large page.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes of a chunk, where nothing larger is asked for. What of it is never used takes no memory.
const CHUNK_BYTES: usize = 32 << 20;

/// Where each matrix begins: at a cache line.
const ALIGN: usize = 64;

/// The chunk with room, and where its room begins.
static OPEN: Mutex<Option<(Weak<Chunk>, usize)>> = Mutex::new(None);

/// Memory that is handed out once, piece by piece.
#[derive(Debug)]
struct Chunk {
    map: MmapRaw,
    /// Where the first large page begins, and behind the last.
    place: Range<usize>,
}

impl Chunk {
    /// With room for at least `bytes`; all of it is zeros.
    fn new(bytes: usize) -> Option<Self> {
        let bytes = bytes.max(CHUNK_BYTES).checked_next_multiple_of(LARGE_PAGE_BYTES)?;
        let map = MmapOptions::new().len(bytes.checked_add(LARGE_PAGE_BYTES)?).map_anon().ok()?;
        let map = MmapRaw::from(map);
        // A byte pointer can always be aligned; if it could not, small pages would serve as well.
        let start = map.as_ptr().align_offset(LARGE_PAGE_BYTES).min(LARGE_PAGE_BYTES);
        // A hint: where the system does not take it, weights are only read more slowly.
        #[cfg(target_os = "linux")]
        drop(map.advise_range(memmap2::Advice::HugePage, start, bytes));
        Some(Self { map, place: start..start + bytes })
    }
}

/// Bytes that begin at a cache line and are zeros at first.
#[derive(Debug)]
pub(in crate::kernel) struct Pages {
    chunk: Arc<Chunk>,
    /// Where the bytes are in the chunk's memory.
    place: Range<usize>,
}

impl Pages {
    /// `bytes` zeros.
    pub(in crate::kernel) fn zeroed(bytes: usize) -> Self {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((chunk, start)) = &mut *open
            && let Some(chunk) = chunk.upgrade()
            && bytes < chunk.place.end - *start
        {
            let place = *start..*start + bytes;
            *start = place.end.next_multiple_of(ALIGN).min(chunk.place.end);
            return Self { chunk, place };
        }
        let Some(chunk) = Chunk::new(bytes).map(Arc::new) else {
            handle_alloc_error(Layout::array::<u8>(bytes).unwrap_or(Layout::new::<u8>()));
        };
        let place = chunk.place.start..chunk.place.start + bytes;
        let rest = place.end.next_multiple_of(ALIGN).min(chunk.place.end);
        *open = Some((Arc::downgrade(&chunk), rest));
        Self { chunk, place }
    }

    pub(in crate::kernel) fn bytes(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "several owners share one map")]
        // SAFETY: the place is within the map, which lives as long as the chunk and never moves. It
        // was handed out once, so that nobody writes to it but through `bytes_mut` of this value,
        // which the borrow excludes meanwhile.
        unsafe {
            std::slice::from_raw_parts(
                self.chunk.map.as_ptr().add(self.place.start),
                self.place.len(),
            )
        }
    }

    pub(in crate::kernel) fn bytes_mut(&mut self) -> &mut [u8] {
        #[expect(unsafe_code, reason = "several owners share one map")]
        // SAFETY: as above; the map may be written to, and nobody else has this place.
        unsafe {
            let start = self.chunk.map.as_mut_ptr().add(self.place.start);
            std::slice::from_raw_parts_mut(start, self.place.len())
        }
    }
}

/// So many of something that is no more than its bytes, in [`Pages`].
#[derive(Debug)]
pub(in crate::kernel) struct Paged<T> {
    pages: Pages,
    of: PhantomData<T>,
}

impl<T: Pod> Paged<T> {
    /// `count` times zeros.
    pub(in crate::kernel) fn zeroed(count: usize) -> Self {
        const { assert!(align_of::<T>() <= ALIGN, "a cache line is aligned enough") };
        Self { pages: Pages::zeroed(count * size_of::<T>()), of: PhantomData }
    }
}

impl<T: Pod> Deref for Paged<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.pages.bytes())
    }
}

impl<T: Pod> DerefMut for Paged<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.pages.bytes_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes around those of lines, pages and chunks.
    const SIZES: [usize; 9] = [
        0,
        1,
        ALIGN,
        4097,
        LARGE_PAGE_BYTES - 1,
        LARGE_PAGE_BYTES + 5,
        CHUNK_BYTES - 3 * LARGE_PAGE_BYTES,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
    ];

    #[test]
    fn nobody_has_what_another_has() {
        let mut all: Vec<_> = SIZES.iter().chain(&SIZES).map(|&size| Pages::zeroed(size)).collect();
        for (index, pages) in (1..).zip(&mut all) {
            assert_eq!(pages.bytes().as_ptr().align_offset(ALIGN), 0);
            assert!(pages.bytes().iter().all(|byte| *byte == 0), "{index}");
            pages.bytes_mut().fill(index);
        }
        for ((index, pages), size) in (1..).zip(&all).zip(SIZES.iter().chain(&SIZES)) {
            assert_eq!(pages.bytes().len(), *size);
            assert!(pages.bytes().iter().all(|byte| *byte == index), "{index}");
        }
    }

    #[test]
    fn a_chunk_lives_as_long_as_what_is_in_it() {
        let first = Pages::zeroed(CHUNK_BYTES + LARGE_PAGE_BYTES);
        let chunk = Arc::downgrade(&first.chunk);
        drop(first);
        assert!(chunk.upgrade().is_none());
        // Another may be open meanwhile; this one is new or shares it, and is zeros in any case.
        assert!(Pages::zeroed(CHUNK_BYTES).bytes().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn of_nothing_there_is_nothing() {
        assert!(Paged::<u64>::zeroed(0).is_empty());
        assert_eq!(Paged::<u64>::zeroed(3)[..], [0; 3]);
    }
}
