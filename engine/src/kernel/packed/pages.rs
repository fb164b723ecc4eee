//! Memory for weights, in large pages.
//!
//! A matrix is rarely a multiple of 2 MiB, so matrices share chunks of memory, one behind the other,
//! and a chunk is given back when its last matrix is.

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytemuck::Pod;

use crate::large_pages::{LINE_BYTES, LargePages, Piece};

/// Bytes of a chunk, where nothing larger is asked for. What of it is never used takes no memory.
const CHUNK_BYTES: usize = 32 << 20;

/// The chunk with room, and where its room begins.
static OPEN: Mutex<Option<(Weak<LargePages>, usize)>> = Mutex::new(None);

/// Bytes that begin at a cache line and are zeros at first.
#[derive(Debug)]
pub(in crate::kernel) struct Pages(Piece);

impl Pages {
    /// `bytes` zeros.
    pub(in crate::kernel) fn zeroed(bytes: usize) -> Self {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((chunk, start)) = &mut *open
            && let Some(chunk) = chunk.upgrade()
            && bytes < chunk.len() - *start
        {
            let place = *start..*start + bytes;
            *start = place.end.next_multiple_of(LINE_BYTES).min(chunk.len());
            return Self::at(&chunk, place);
        }
        let Some(chunk) = LargePages::zeroed(bytes.max(CHUNK_BYTES)).map(Arc::new) else {
            handle_alloc_error(Layout::array::<u8>(bytes).unwrap_or(Layout::new::<u8>()));
        };
        let rest = bytes.next_multiple_of(LINE_BYTES).min(chunk.len());
        *open = Some((Arc::downgrade(&chunk), rest));
        Self::at(&chunk, 0..bytes)
    }

    fn at(chunk: &Arc<LargePages>, place: Range<usize>) -> Self {
        #[expect(unsafe_code, reason = "several matrices share one map")]
        // SAFETY: what is open begins behind the last place that was handed out, and who holds the
        // lock hands out; so no place of a chunk is ever handed out twice.
        unsafe {
            Self(Piece::new(chunk, place))
        }
    }

    pub(in crate::kernel) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    pub(in crate::kernel) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
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
        const { assert!(align_of::<T>() <= LINE_BYTES, "a cache line is aligned enough") };
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
    use crate::large_pages::LARGE_PAGE_BYTES;

    /// Sizes around those of lines, pages and chunks.
    const SIZES: [usize; 9] = [
        0,
        1,
        LINE_BYTES,
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
            assert_eq!(pages.bytes().as_ptr().align_offset(LINE_BYTES), 0);
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
        let chunk = Arc::downgrade(first.0.pages());
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
