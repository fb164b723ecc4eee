//! One session of one client on this server.

use std::collections::BTreeMap;

use umbel_protocol::compression::Packing;
use umbel_protocol::inference::{Destination, NextHop, OpenSession, Redirect, Step};
use umbel_protocol::{AdapterId, DType, PeerId, SessionId, Span, StepId};

use super::admission::PAGE_TOKENS;
use super::prefix::{PageId, Scope};
use super::ring::Thin;
use super::{AdapterKey, LinkId, ShardId};
use crate::journal::{Journal, Outlet};
use crate::time::Time;

/// A session that is open.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) client: PeerId,
    pub(super) link: LinkId,
    pub(super) shard: ShardId,
    pub(super) blocks: Span,
    pub(super) tokens_max: u32,
    /// How keys and values are kept.
    pub(super) cache: DType,
    pub(super) previous: Option<PeerId>,
    /// Tokens in the cache once every waiting step is computed.
    pub(super) received: u32,
    /// Tokens in the cache.
    pub(super) computed: u32,
    pub(super) journal: Journal,
    pub(super) last_used: Time,
    /// It was emptied, and steps beyond the beginning are of no use until it is filled anew.
    pub(super) awaits_refill: bool,
    /// How large results are to be written.
    pub(super) packing: Packing,
    /// The latest step that came, but for replays.
    pub(super) latest: Option<StepId>,
    /// Pages of its cache that are kept for others, by number.
    pub(super) pages: BTreeMap<u32, PageId>,
    /// Where ids of tokens enter the model and leave it.
    pub(super) thin: Option<Thin>,
    /// What is added to the matrices.
    pub(super) adapter: Option<(AdapterKey, AdapterId)>,
    next: Next,
    outlet: Outlet,
    mirror: Option<(SessionId, Outlet)>,
}

/// Where results go, with the session's name there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Client,
    Server(SessionId),
    Held,
}

/// A step and where it goes.
#[derive(Debug)]
pub(super) enum Delivery {
    /// To the client.
    Client(Step),
    /// To the server where the session has this name; the step has it too.
    Server(Step),
}

/// What a redirection leads to.
#[derive(Debug, Default)]
pub(super) struct Redirected {
    /// A link to close.
    pub(super) disconnect: Option<SessionId>,
    /// A link to open.
    pub(super) connect: Option<NextHop>,
    /// What to send at once.
    pub(super) deliveries: Vec<Delivery>,
    /// Whether the destination lacks nothing after that.
    pub(super) complete: bool,
}

impl Served {
    pub(super) fn new(
        client: PeerId,
        link: LinkId,
        shard: ShardId,
        (open, thin, adapter): (OpenSession, Option<Thin>, Option<AdapterKey>),
        pages: &[PageId],
        now: Time,
    ) -> (Self, Option<NextHop>) {
        let (next, connect) = Next::of(open.next);
        let pages: BTreeMap<_, _> = (0..).zip(pages.iter().copied()).collect();
        let kept = u32::try_from(pages.len()).unwrap_or(u32::MAX).saturating_mul(PAGE_TOKENS);
        let outlet = match open.next_position {
            0 => Outlet::unused(open.next_step),
            tokens => Outlet::new(tokens, open.next_step),
        };
        let served = Self {
            client,
            link,
            shard,
            blocks: open.blocks,
            tokens_max: open.tokens_max,
            cache: open.cache,
            previous: open.previous,
            received: kept,
            computed: kept,
            journal: Journal::default(),
            packing: if open.compress { Packing::WhereSmaller } else { Packing::Plain },
            last_used: now,
            awaits_refill: false,
            latest: None,
            pages,
            thin,
            adapter: adapter.zip(open.adapter.map(|adapter| adapter.id)),
            next,
            outlet,
            mirror: None,
        };
        (served, connect)
    }

    /// What pages of it must have in common with those of another session.
    pub(super) fn scope(&self) -> Scope {
        let Self { client, shard, blocks, cache, .. } = *self;
        let adapter = self.adapter.map(|(_, id)| id);
        Scope { client, shard, blocks, cache, adapter }
    }

    /// The pages that it uses no more once its cache is cut to `position` and written from there on.
    pub(super) fn cut(&mut self, position: u32) -> BTreeMap<u32, PageId> {
        self.pages.split_off(&(position / PAGE_TOKENS))
    }

    /// The names of the session where its results go.
    pub(super) fn destinations(&self) -> impl Iterator<Item = SessionId> {
        let next = match self.next {
            Next::Server(to) => Some(to),
            Next::Client | Next::Held => None,
        };
        let ring = self.thin.as_ref().and_then(Thin::ring);
        next.into_iter().chain(self.mirror.map(|(to, _)| to)).chain(ring)
    }

    /// Takes up what was computed, and says what of it goes where.
    pub(super) fn computed(&mut self, step: Step) -> Vec<Delivery> {
        self.computed = step.end_position().unwrap_or(self.computed);
        self.journal.record(&step);
        let mut deliveries = Vec::new();
        if let Some((to, outlet)) = &mut self.mirror {
            let copy = Step { session: *to, ..step.clone() };
            deliveries.extend(outlet.pass(copy).map(Delivery::Server));
        }
        match self.next {
            Next::Held => {}
            // The client has had what is replayed.
            Next::Client if step.replay => {}
            Next::Client => deliveries.extend(self.outlet.pass(step).map(Delivery::Client)),
            Next::Server(session) => {
                let step = Step { session, ..step };
                deliveries.extend(self.outlet.pass(step).map(Delivery::Server));
            }
        }
        deliveries
    }

    /// Whether the client wants the answer of a step that ends at `end`.
    pub(super) fn is_wanted(&mut self, step: &Step, end: u32) -> bool {
        self.next == Next::Client && self.outlet.takes(step.step, step.position, end)
    }

    /// Forgets what was computed.
    pub(super) fn empty(&mut self) {
        (self.received, self.computed) = (0, 0);
        self.journal = Journal::default();
        self.awaits_refill = true;
    }

    /// Sends results elsewhere.
    pub(super) fn redirect(&mut self, redirect: Redirect) -> Redirected {
        if redirect.mirror { self.reflect(redirect) } else { self.divert(redirect) }
    }

    fn divert(&mut self, redirect: Redirect) -> Redirected {
        let (next, connect) = Next::of(redirect.next);
        let mut redirected = Redirected { complete: true, ..Redirected::default() };
        if let Next::Server(old) = self.next
            && self.next != next
        {
            redirected.disconnect = Some(old);
        }
        let mirrored = self.mirror.filter(|(to, _)| next == Next::Server(*to));
        if let Some((_, outlet)) = mirrored {
            // It has everything already: nothing is sent, and no link is opened.
            (self.next, self.outlet, self.mirror) = (next, outlet, None);
            return redirected;
        }
        redirected.connect = connect.filter(|_| self.next != next);
        self.next = next;
        self.outlet = Outlet::new(redirect.next_position, redirect.next_step);
        let to = match next {
            Next::Held => return redirected,
            Next::Client => redirect.session,
            Next::Server(to) => to,
        };
        let Some(steps) = self.outlet.refill(&self.journal, redirect.settled, to) else {
            redirected.complete = false;
            return redirected;
        };
        redirected.deliveries = if next == Next::Client {
            // The client has what is settled.
            let open = steps.into_iter().filter(|step| !step.replay);
            open.map(Delivery::Client).collect()
        } else {
            steps.into_iter().map(Delivery::Server).collect()
        };
        redirected
    }

    fn reflect(&mut self, redirect: Redirect) -> Redirected {
        let (next, connect) = Next::of(redirect.next);
        let disconnect = self.mirror.take().map(|(to, _)| to);
        let mut redirected = Redirected { disconnect, complete: true, ..Redirected::default() };
        let Next::Server(to) = next else {
            return redirected;
        };
        let mut outlet = Outlet::new(redirect.next_position, redirect.next_step);
        let Some(steps) = outlet.refill(&self.journal, redirect.settled, to) else {
            redirected.complete = false;
            return redirected;
        };
        self.mirror = Some((to, outlet));
        redirected.connect = connect;
        redirected.deliveries = steps.into_iter().map(Delivery::Server).collect();
        redirected
    }

    /// Gives up a destination that cannot be reached; whether it was the mirror. `None` where it
    /// is none any more.
    pub(super) fn lose(&mut self, to: SessionId) -> Option<bool> {
        if self.mirror.is_some_and(|(mirror, _)| mirror == to) {
            self.mirror = None;
            return Some(true);
        }
        if self.next == Next::Server(to) {
            self.next = Next::Held;
            return Some(false);
        }
        None
    }
}

impl Next {
    fn of(destination: Destination) -> (Self, Option<NextHop>) {
        match destination {
            Destination::Client => (Self::Client, None),
            Destination::Held => (Self::Held, None),
            Destination::Server(next) => (Self::Server(next.session), Some(next)),
        }
    }
}
