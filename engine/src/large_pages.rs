//! Memory that is mapped for itself: large pages, where the system has them.
//!
//! With pages of 4 KiB a stream of weights, or of keys and values, waits for their translation: one
//! thread reads weights half as fast as with pages of 2 MiB.

use std::ops::Range;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

/// What the systems that we know call a large page.
pub(crate) const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Where a piece should begin: at a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// A whole number of large pages; what of them is never used takes no memory.
#[derive(Debug)]
pub(crate) struct LargePages {
    map: MmapRaw,
    /// Where the first large page begins, and behind the last.
    place: Range<usize>,
}

impl LargePages {
    /// As many as have room for `bytes`; all of it is zeros. `None` where the system has no more.
    pub(crate) fn zeroed(bytes: usize) -> Option<Self> {
        let bytes = bytes.checked_next_multiple_of(LARGE_PAGE_BYTES)?;
        let map = MmapOptions::new().len(bytes.checked_add(LARGE_PAGE_BYTES)?).map_anon().ok()?;
        let map = MmapRaw::from(map);
        // A byte pointer can always be aligned; if it could not, small pages would serve as well.
        let start = map.as_ptr().align_offset(LARGE_PAGE_BYTES).min(LARGE_PAGE_BYTES);
        // A hint: where the system does not take it, all is only read more slowly.
        #[cfg(target_os = "linux")]
        drop(map.advise_range(memmap2::Advice::HugePage, start, bytes));
        Some(Self { map, place: start..start + bytes })
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.place.len()
    }
}

/// Some bytes of them, with one owner.
#[derive(Debug)]
pub(crate) struct Piece {
    pages: Arc<LargePages>,
    /// Where they are in the map.
    place: Range<usize>,
}

#[expect(unsafe_code, reason = "several owners share one map")]
impl Piece {
    /// The bytes of `pages` at `place`.
    ///
    /// # Panics
    /// Where the pages end before them.
    ///
    /// # Safety
    /// Other pieces with any of these bytes are used no more.
    pub(crate) unsafe fn new(pages: &Arc<LargePages>, place: Range<usize>) -> Self {
        assert!(place.start <= place.end && place.end <= pages.len(), "it lies in the pages");
        let first = pages.place.start;
        Self { pages: Arc::clone(pages), place: first + place.start..first + place.end }
    }

    /// What they are a piece of.
    #[cfg(test)]
    pub(crate) const fn pages(&self) -> &Arc<LargePages> {
        &self.pages
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the place is within the map, which lives as long as its pages do and never moves.
        // Whoever made this piece has promised that no other piece with the place is used, so that
        // nobody writes to it but through `bytes_mut` of this value, which the borrow excludes
        // meanwhile; and pages are made of a map that is zeros at first.
        unsafe {
            let start = self.pages.map.as_ptr().add(self.place.start);
            std::slice::from_raw_parts(start, self.place.len())
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the map may be written to, and nobody else has this place.
        unsafe {
            let start = self.pages.map.as_mut_ptr().add(self.place.start);
            std::slice::from_raw_parts_mut(start, self.place.len())
        }
    }
}
