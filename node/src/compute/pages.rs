//! Pages that are kept for later sessions, as the server's machine orders it.

use std::collections::BTreeMap;

use umbel_coordinator::server::PageId;
use umbel_engine::{KeptPage, KvArena, KvTable};

/// The pages, by the machine's names.
#[derive(Default)]
pub(super) struct Pages {
    kept: BTreeMap<PageId, KeptPage>,
}

impl Pages {
    /// Keeps a page of a table; the machine knows that it is full.
    pub(super) fn keep(&mut self, table: Option<&KvTable>, number: u32, page: PageId) {
        match table.and_then(|table| table.keep(number as usize)) {
            Some(kept) => {
                self.kept.insert(page, kept);
            }
            None => tracing::error!(page = page.0, "it is not there to be kept"),
        }
    }

    /// Takes room of their own for pages of no session. The machine has counted it, as the arena
    /// does.
    pub(super) fn charge(&mut self, pages: &[PageId], arena: Option<&KvArena>) {
        for page in pages {
            // It may have been dropped behind the order.
            let Some(kept) = self.kept.get_mut(page) else {
                continue;
            };
            if !arena.is_some_and(|arena| arena.charge(kept)) {
                tracing::error!(page = page.0, "there is no room for it");
                self.kept.remove(page);
            }
        }
    }

    pub(super) fn drop_page(&mut self, page: PageId) {
        self.kept.remove(&page);
    }

    /// Lets go of the room of pages with which a table is about to be opened.
    pub(super) fn uncharge(&mut self, prefix: &[PageId]) {
        for page in prefix {
            if let Some(kept) = self.kept.get_mut(page) {
                kept.uncharge();
            }
        }
    }

    /// Lets a new table begin with pages; if it cannot, which is a bug, its first step reports it.
    pub(super) fn begin(&self, table: &mut KvTable, prefix: &[PageId]) {
        let kept: Option<Vec<_>> = prefix.iter().map(|page| self.kept.get(page)).collect();
        let begun = kept.is_some_and(|kept| table.begin_with(&kept).is_ok());
        if !begun {
            tracing::error!(pages = prefix.len(), "they are not there to be taken over");
        }
    }
}
