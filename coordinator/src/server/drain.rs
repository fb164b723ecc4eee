//! The blocks that a server holds, and how sessions leave those that it gives up.

use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::{OpenSession, ServerMessage};
use umbel_protocol::{DType, Span};

use super::admission::{Admission, Refusal};
use super::served::Served;
use super::{DRAIN_TIMEOUT, Output, Server, ServerConfig, ShardId};
use crate::time::Time;

/// A lot of blocks.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) id: ShardId,
    span: Span,
    /// By when the last session has to leave, where it is given up.
    leave_by: Option<Time>,
}

/// The blocks on which sessions open, and those that are given up.
#[derive(Debug)]
pub(super) struct Shards {
    admission: Admission,
    current: Shard,
    former: Vec<Shard>,
}

impl Shards {
    pub(super) fn new(config: &ServerConfig) -> Self {
        let current = Shard { id: ShardId::default(), span: config.span, leave_by: None };
        let admission = Admission::new(config);
        Self { admission, current, former: Vec::new() }
    }

    pub(super) const fn current(&self) -> &Shard {
        &self.current
    }

    /// Tokens for which a session could be opened.
    pub(super) fn kv_tokens_free(&self) -> u32 {
        self.admission.tokens_free(DType::F32, self.current.span)
    }

    /// Whether a session can be opened beside so many of all clients and of its own.
    pub(super) fn check(
        &self,
        config: &ServerConfig,
        open: &OpenSession,
        counts: (usize, usize),
    ) -> Result<(), Refusal> {
        if self.current.leave_by.is_some() {
            let detail = "this server is about to leave".to_owned();
            return Err(Refusal { code: ErrorCode::Draining, detail });
        }
        let span = self.current.span;
        self.admission.check(config, span, open, counts)
    }

    /// Reserves room for a session that was checked.
    pub(super) fn reserve(&mut self, open: &OpenSession) {
        self.admission.reserve(open);
    }

    /// What no session has reserved.
    pub(super) const fn bytes_free(&self) -> u64 {
        self.admission.bytes_free()
    }

    /// What a page takes in these blocks.
    pub(super) fn page_bytes(&self, cache: DType, blocks: Span) -> u64 {
        self.admission.page_bytes(cache, blocks)
    }

    /// Whether sessions open on this shard.
    pub(super) fn is_open(&self, shard: ShardId) -> bool {
        self.current.id == shard && self.current.leave_by.is_none()
    }

    /// Takes back what a session had reserved.
    pub(super) fn release(&mut self, served: &Served) {
        self.admission.release(served.cache, served.blocks, served.tokens_max);
    }

    fn all(&self) -> impl Iterator<Item = &Shard> {
        std::iter::once(&self.current).chain(&self.former)
    }
}

impl Server {
    /// Opens sessions on other blocks from now on.
    pub(super) fn serve(&mut self, id: ShardId, span: Span, now: Time) {
        let new = Shard { id, span, leave_by: None };
        let mut old = std::mem::replace(&mut self.shards.current, new);
        old.leave_by = Some(now + DRAIN_TIMEOUT);
        self.ask_to_leave(old.id);
        self.pages.clear();
        self.shards.former.push(old);
        self.report_drained();
    }

    /// Opens no session any more.
    pub(super) fn drain(&mut self, now: Time) {
        let current = &mut self.shards.current;
        if current.leave_by.is_none() {
            current.leave_by = Some(now + DRAIN_TIMEOUT);
            let id = current.id;
            self.ask_to_leave(id);
            self.pages.clear();
        }
        self.report_drained();
    }

    /// When the next shard that sessions still use has to be empty.
    pub(super) fn drain_deadline(&self) -> Option<Time> {
        let used = |shard: &&Shard| shard.leave_by.is_some() && self.is_used(shard.id);
        self.shards.all().filter(used).filter_map(|shard| shard.leave_by).min()
    }

    /// Ends the sessions that have not left in time.
    pub(super) fn end_drain(&mut self, now: Time) {
        let late = |shard: &&Shard| shard.leave_by.is_some_and(|by| by <= now);
        let shards: Vec<_> = self.shards.all().filter(late).map(|shard| shard.id).collect();
        for shard in shards {
            let of_shard = self.sessions.iter().filter(|(_, served)| served.shard == shard);
            let sessions: Vec<_> = of_shard.map(|(id, _)| *id).collect();
            for session in sessions {
                let reason = Refusal::new(ErrorCode::Draining, "the server gives up these blocks");
                self.fail(session, None, reason, now);
            }
        }
    }

    /// Says of a shard that is given up that its last session has ended.
    pub(super) fn report_left(&mut self, id: ShardId) {
        if self.is_used(id) {
            return;
        }
        let former = self.shards.former.len();
        self.shards.former.retain(|shard| shard.id != id);
        let current = &self.shards.current;
        let leaves = current.id == id && current.leave_by.is_some();
        if leaves || self.shards.former.len() < former {
            self.outputs.push_back(Output::Drained { shard: id });
        }
    }

    /// Says of each shard that is given up that nobody uses it any more: once of former ones.
    pub(super) fn report_drained(&mut self) {
        let former = std::mem::take(&mut self.shards.former);
        let (kept, empty): (Vec<_>, Vec<_>) =
            former.into_iter().partition(|shard| self.is_used(shard.id));
        self.shards.former = kept;
        let current = &self.shards.current;
        let leaves = current.leave_by.is_some() && !self.is_used(current.id);
        let empty = empty.into_iter().map(|shard| shard.id).chain(leaves.then_some(current.id));
        self.outputs.extend(empty.map(|shard| Output::Drained { shard }));
    }

    fn is_used(&self, id: ShardId) -> bool {
        self.sessions.values().any(|served| served.shard == id)
    }

    fn ask_to_leave(&mut self, shard: ShardId) {
        let of_shard = self.sessions.iter().filter(|(_, served)| served.shard == shard);
        let messages: Vec<_> = of_shard.map(|(session, served)| (served.link, *session)).collect();
        for (link, session) in messages {
            self.send(link, ServerMessage::Draining { session });
        }
    }
}
