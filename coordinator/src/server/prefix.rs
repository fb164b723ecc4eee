//! What is kept of what sessions have read, for later sessions of the same client: which pages, who
//! uses them, and which are given up first.
//!
//! While a session uses a page, its own reservation covers it. A page that no session uses is idle:
//! it lies in room that nobody has reserved, and goes as soon as somebody reserves it. So pages that
//! are kept never refuse a session. A client is told of its own pages only: its id is part of their
//! name.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_protocol::prefix::PageDigest;
use umbel_protocol::{AdapterId, DType, PeerId, SessionId, Span};

use super::ShardId;
use crate::time::Time;

/// How long a page is kept that no session uses: a reader may think for minutes between two
/// questions, and a batch of requests comes in seconds.
pub const IDLE_KEPT: Duration = Duration::from_secs(10 * 60);

/// A page that the accelerator keeps beside its sessions' caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u64);

/// What the accelerator is to do with pages, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageOrder {
    /// Keep a page of a session, which is full.
    Keep {
        /// Whose.
        session: SessionId,
        /// Which one: that of the positions from 16 times this number on.
        number: u32,
        /// Its name.
        page: PageId,
    },
    /// No session uses this page any more: it takes room of its own.
    Idle(PageId),
    /// Drop this page. Sessions that use it go on with it.
    Drop(PageId),
}

/// What a page must have in common with what a session asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scope {
    pub(super) client: PeerId,
    pub(super) shard: ShardId,
    pub(super) blocks: Span,
    pub(super) cache: DType,
    pub(super) adapter: Option<AdapterId>,
}

#[derive(Debug)]
struct Kept {
    scope: Scope,
    digest: PageDigest,
    /// In the session that read it.
    number: u32,
    bytes: u64,
    /// Sessions that use it.
    users: u32,
    last_used: Time,
}

/// All pages that are kept.
#[derive(Debug, Default)]
pub(super) struct Pages {
    by_name: BTreeMap<(Scope, PageDigest), PageId>,
    kept: BTreeMap<PageId, Kept>,
    idle: BTreeMap<PeerId, Idle>,
    idle_bytes: u64,
    next: u64,
    orders: Vec<PageOrder>,
}

/// A client's pages that no session uses.
#[derive(Debug, Default)]
struct Idle {
    bytes: u64,
    /// In the order in which they are given up: those unused for longest, and of one text the end
    /// first, since a page is of no use without those before it.
    pages: BTreeMap<(Time, std::cmp::Reverse<u32>, PageId), u64>,
}

impl Pages {
    /// The pages that are kept of the beginning of a text; a session uses them from now on.
    pub(super) fn take_over(&mut self, scope: Scope, prefix: &[PageDigest]) -> Vec<PageId> {
        let find = |digest: &PageDigest| self.by_name.get(&(scope, *digest)).copied();
        let pages: Vec<_> = prefix.iter().map_while(find).collect();
        for page in &pages {
            self.use_page(*page);
        }
        pages
    }

    /// Keeps a page that a session has read and uses. `None` where one of this name is kept already,
    /// which the session does not use.
    pub(super) fn keep(
        &mut self,
        (session, number): (SessionId, u32),
        scope: Scope,
        (digest, bytes): (PageDigest, u64),
        now: Time,
    ) -> Option<PageId> {
        if self.by_name.contains_key(&(scope, digest)) {
            return None;
        }
        let page = PageId(self.next);
        self.next += 1;
        self.by_name.insert((scope, digest), page);
        let kept = Kept { scope, digest, number, bytes, users: 1, last_used: now };
        self.kept.insert(page, kept);
        self.orders.push(PageOrder::Keep { session, number, page });
        Some(page)
    }

    /// A session uses these pages no more.
    pub(super) fn release(&mut self, pages: impl IntoIterator<Item = PageId>, now: Time) {
        for page in pages {
            // It is gone where the blocks were given up meanwhile.
            let Some(kept) = self.kept.get_mut(&page) else {
                continue;
            };
            kept.users -= 1;
            kept.last_used = now;
            if kept.users == 0 {
                let idle = self.idle.entry(kept.scope.client).or_default();
                idle.bytes += kept.bytes;
                idle.pages.insert((now, std::cmp::Reverse(kept.number), page), kept.bytes);
                self.idle_bytes += kept.bytes;
                self.orders.push(PageOrder::Idle(page));
            }
        }
    }

    /// Gives up idle pages until they take no more than so many bytes: always the page of the client
    /// that has most, so that nobody pushes out what others have.
    pub(super) fn shrink(&mut self, bytes: u64) {
        while self.idle_bytes > bytes {
            let most = self.idle.iter().max_by_key(|(client, idle)| (idle.bytes, *client));
            let first = most.and_then(|(_, idle)| idle.pages.keys().next());
            let &(.., page) = first.expect("bytes are counted for pages");
            self.drop_page(page);
        }
    }

    /// Gives up what has been idle for too long.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some((at, page)) = self.oldest()
            && now.since(at) >= IDLE_KEPT
        {
            self.drop_page(page);
        }
    }

    /// When the next page will have been idle for too long.
    pub(super) fn expires(&self) -> Option<Time> {
        self.oldest().map(|(at, _)| at + IDLE_KEPT)
    }

    /// Gives up everything, used or not: the blocks are given up.
    pub(super) fn clear(&mut self) {
        for page in self.kept.keys().copied().collect::<Vec<_>>() {
            self.drop_page(page);
        }
    }

    /// What the accelerator has not been told yet. Pages that were idle for a moment only are none of
    /// its business.
    pub(super) fn orders(&mut self) -> Vec<PageOrder> {
        let mut orders = std::mem::take(&mut self.orders);
        let is_idle = |page: &PageId| self.kept.get(page).is_some_and(|kept| kept.users == 0);
        orders.retain(|order| match order {
            PageOrder::Idle(page) => is_idle(page),
            PageOrder::Keep { .. } | PageOrder::Drop(_) => true,
        });
        orders
    }

    /// Those of the orders that are to give pages up.
    pub(super) fn drops(&mut self) -> Vec<PageOrder> {
        self.orders.extract_if(.., |order| matches!(order, PageOrder::Drop(_))).collect()
    }

    #[cfg(test)]
    pub(super) const fn idle_bytes(&self) -> u64 {
        self.idle_bytes
    }

    pub(super) fn count(&self) -> usize {
        self.kept.len()
    }

    fn oldest(&self) -> Option<(Time, PageId)> {
        let first = |idle: &Idle| idle.pages.keys().next().map(|&(at, _, page)| (at, page));
        self.idle.values().filter_map(first).min()
    }

    fn use_page(&mut self, page: PageId) {
        let kept = self.kept.get_mut(&page).expect("it was found by its name");
        if kept.users == 0 {
            let key = (kept.last_used, std::cmp::Reverse(kept.number), page);
            let (client, bytes) = (kept.scope.client, kept.bytes);
            kept.users = 1;
            self.no_longer_idle(client, key, bytes);
        } else {
            kept.users += 1;
        }
    }

    fn drop_page(&mut self, page: PageId) {
        let Some(kept) = self.kept.remove(&page) else {
            return;
        };
        self.by_name.remove(&(kept.scope, kept.digest));
        if kept.users == 0 {
            let key = (kept.last_used, std::cmp::Reverse(kept.number), page);
            self.no_longer_idle(kept.scope.client, key, kept.bytes);
        }
        self.orders.push(PageOrder::Drop(page));
    }

    fn no_longer_idle(
        &mut self,
        client: PeerId,
        key: (Time, std::cmp::Reverse<u32>, PageId),
        bytes: u64,
    ) {
        self.idle_bytes -= bytes;
        let idle = self.idle.get_mut(&client).expect("the page was idle");
        idle.bytes -= bytes;
        idle.pages.remove(&key);
        if idle.pages.is_empty() {
            self.idle.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests;
