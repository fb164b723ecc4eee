//! Memory for weights: whole pages, large ones where the system has them.

use std::alloc::{Layout, handle_alloc_error};

use memmap2::MmapMut;

/// Bytes that begin at a page and are zeros at first.
///
/// With pages of 2 MiB instead of 4 KiB a stream of weights does not wait for their translation.
pub(in crate::kernel) struct Pages(MmapMut);

impl Pages {
    /// `bytes` zeros; at least one.
    pub(in crate::kernel) fn zeroed(bytes: usize) -> Self {
        let Ok(map) = MmapMut::map_anon(bytes) else {
            handle_alloc_error(Layout::array::<u8>(bytes).unwrap_or(Layout::new::<u8>()));
        };
        // A hint: where the system does not take it, small pages serve as well, only slower.
        #[cfg(target_os = "linux")]
        drop(map.advise(memmap2::Advice::HugePage));
        Self(map)
    }

    pub(in crate::kernel) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(in crate::kernel) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
