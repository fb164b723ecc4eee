//! What sessions take over of what others have read, and leave to those that come after them.

use umbel_protocol::PeerId;
use umbel_protocol::SessionId;
use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::inference::{KeepPages, OpenSession};

use super::admission::PAGE_TOKENS;
use super::prefix::{PageId, Scope};
use super::{LinkId, Output, Server, ShardId};
use crate::time::Time;

impl Server {
    /// The pages with which a session that was admitted begins; others make room for it.
    pub(super) fn take_over(
        &mut self,
        client: PeerId,
        shard: ShardId,
        open: &OpenSession,
    ) -> Vec<PageId> {
        let adapter = open.adapter.as_ref().map(|adapter| adapter.id);
        let scope = Scope { client, shard, blocks: open.blocks, cache: open.cache, adapter };
        let pages_max = (open.tokens_max / PAGE_TOKENS) as usize;
        let prefix = &open.prefix[..open.prefix.len().min(pages_max)];
        // Nothing is kept where the server keeps no pages.
        let pages = self.pages.take_over(scope, prefix);
        self.pages.shrink(self.shards.bytes_free());
        self.order_pages();
        pages
    }

    /// Keeps pages of a session that are as its client says. Where they may not be any more, or the
    /// blocks are given up, nothing is kept, and nobody is at fault.
    pub(super) fn keep(
        &mut self,
        link: LinkId,
        keep: KeepPages,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        let KeepPages { session, next_step, first, pages } = keep;
        let Some(served) = self.own(link, session, "Keep")? else {
            return Ok(());
        };
        let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let end = first.checked_add(count).and_then(|pages| pages.checked_mul(PAGE_TOKENS));
        let (scope, latest, computed) = (served.scope(), served.latest, served.computed);
        let Some(end) = end.filter(|end| *end <= computed) else {
            return Ok(());
        };
        let outdated = latest > Some(next_step) || self.schedule.begins_before(session, end);
        if outdated || !self.config.keeps_pages || !self.shards.is_open(scope.shard) {
            return Ok(());
        }
        let bytes = self.shards.page_bytes(scope.cache, scope.blocks);
        let served = self.sessions.get_mut(&session).expect("it was found just now");
        for (number, digest) in (first..).zip(pages) {
            if !served.pages.contains_key(&number)
                && let Some(page) = self.pages.keep((session, number), scope, (digest, bytes), now)
            {
                served.pages.insert(number, page);
            }
        }
        Ok(())
    }

    /// A pass begins that writes into a session's cache from `position` on.
    pub(super) fn cut_pages(&mut self, session: SessionId, position: u32, now: Time) {
        let served = self.sessions.get_mut(&session).expect("a step of it begins");
        let cut = served.cut(position);
        if !cut.is_empty() {
            self.pages.release(cut.into_values(), now);
            self.pages.shrink(self.shards.bytes_free());
        }
    }

    /// Tells the accelerator what becomes of pages. That is said before it opens or forgets a session
    /// or begins a pass, and else only while no pass runs, so that little waits behind a long one.
    pub(super) fn order_pages(&mut self) {
        let orders = self.pages.orders();
        if !orders.is_empty() {
            self.outputs.push_back(Output::Pages(orders));
        }
    }

    /// Pages that are kept for later sessions, those that are in use too.
    #[must_use]
    pub fn pages_kept(&self) -> usize {
        self.pages.count()
    }
}
