//! Pages that outlive the table that filled them, so that later tables may begin with them.
//!
//! They are shared, not copied: a table that writes into a page that others hold copies it first.
//! While a table holds a page, its own promise covers it; a page that no table holds is charged to
//! the arena's budget by itself, and can be dropped at any time.

use umbel_protocol::{DType, Span};

use super::PAGE_TOKENS;
use super::arena::{KvArena, Reservation};
use super::table::{KvTable, PageShape, Pages};

/// Keys and values of [`PAGE_TOKENS`] consecutive positions in each block of a span.
#[derive(Debug)]
pub struct KeptPage {
    blocks: Span,
    shape: PageShape,
    dtype: DType,
    page_bytes: usize,
    pages: Pages,
    charge: Option<Reservation>,
}

impl KeptPage {
    /// What it takes of the budget where no table holds it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages.count() * self.page_bytes
    }

    /// Gives back the room that [`KvArena::charge`] took for it: a table is about to hold it.
    pub fn uncharge(&mut self) {
        self.charge = None;
    }
}

impl KvTable {
    /// The page of the positions from `index` times [`PAGE_TOKENS`] on, to be kept beside the table;
    /// `None` where it is not full.
    #[must_use]
    pub fn keep(&self, index: usize) -> Option<KeptPage> {
        if index >= self.position() / PAGE_TOKENS {
            return None;
        }
        let pages = self.pages(index);
        let (blocks, shape, dtype) = (self.blocks(), self.shape(), self.dtype());
        let page_bytes = self.page_bytes();
        Some(KeptPage { blocks, shape, dtype, page_bytes, pages, charge: None })
    }

    /// Lets an empty table hold these pages from its first position on, as if it had been through
    /// their tokens.
    ///
    /// # Errors
    /// [`WrongPrefixError`] where the table is not empty, or too short, or a page is of other
    /// blocks or another type; the table is then as it was.
    pub fn begin_with(&mut self, prefix: &[&KeptPage]) -> Result<(), WrongPrefixError> {
        let (blocks, shape, dtype) = (self.blocks(), self.shape(), self.dtype());
        let fits =
            |page: &&KeptPage| (page.blocks, page.shape, page.dtype) == (blocks, shape, dtype);
        let tokens = prefix.len() * PAGE_TOKENS;
        if self.position() > 0 || tokens > self.capacity() || !prefix.iter().all(fits) {
            return Err(WrongPrefixError { pages: prefix.len() });
        }
        let pages: Vec<_> = prefix.iter().map(|kept| &kept.pages).collect();
        if !self.hold(&pages) {
            return Err(WrongPrefixError { pages: prefix.len() });
        }
        self.advance(tokens);
        Ok(())
    }
}

impl KvArena {
    /// Takes room of its own for a page that no table holds any more. Whether there was some.
    pub fn charge(&self, page: &mut KeptPage) -> bool {
        if page.charge.is_none() {
            page.charge = self.reserve(page.bytes());
        }
        page.charge.is_some()
    }
}

/// Pages with which a table cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the table cannot begin with these {pages} pages: it is not empty, or they are of another")]
pub struct WrongPrefixError {
    /// How many there were.
    pub pages: usize,
}

#[cfg(test)]
mod tests;
