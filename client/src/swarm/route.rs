//! Routes through a swarm, by what its servers say and by what was seen of them.

use std::time::{Duration, Instant};

use umbel_coordinator::Hop;
use umbel_coordinator::route::{Costs, NoRoute, Route, RouteRequest, plan_routes_apart};
use umbel_coordinator::session::{FailureReason, HopFailure, RouteHop, RouteWanted};
use umbel_coordinator::swarm::health::Health;
use umbel_protocol::announcement::Announcement;
use umbel_protocol::inference::HopTiming;
use umbel_protocol::prefix::PageDigest;
use umbel_protocol::{ModelId, PeerId, SessionId, Span};

use super::{Swarm, View, unix_time};

/// How long a session waits for a server of blocks that nobody serves: one that is started again, or
/// that takes up the blocks of one that has failed, needs half a minute.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How often it looks again.
const AGAIN: Duration = Duration::from_millis(100);

/// How often the others are asked for news meanwhile.
const REFRESH: Duration = Duration::from_secs(2);

/// After how long servers that have failed the session, or serve it already, will do.
const FORGIVEN: Duration = Duration::from_secs(2);

/// How long after one search the next one may take such a server again: one whose ports nobody holds
/// fails at once, and is tried until patience runs out.
pub(crate) const FORGIVEN_AGAIN: Duration = Duration::from_secs(1);

/// How long a server that had no room is used last: by then it has announced twice how much it has.
const FULL: Duration = Duration::from_secs(20);

/// Most servers that are remembered to have none: as many as are known.
const FULL_MAX: usize = 1_024;

/// How long two servers are kept apart after one could not reach the other.
const UNREACHABLE: Duration = Duration::from_secs(60);

/// Most pairs that are remembered, so that a hostile server cannot fill the memory with them.
const UNREACHABLE_MAX: usize = 1_024;

/// What is looked for.
#[derive(Clone)]
pub(crate) struct Search {
    pub(crate) model: ModelId,
    pub(crate) tokens_max: u32,
    pub(crate) token_bytes: u32,
    pub(crate) wanted: RouteWanted,
    /// Since when the session has been waiting for a server.
    pub(crate) since: Instant,
    /// Before this, servers that have failed the session are not tried again.
    pub(crate) forgiving_from: Instant,
    /// Whether the session has begun, so that time counts for more than the best route.
    pub(crate) urgent: bool,
    /// The pages that the session begins with, where it has not.
    pub(crate) prefix: Vec<PageDigest>,
    /// Whether the servers at the ends of the model must hold these.
    pub(crate) thin: bool,
}

/// Among whom hops are looked for.
#[derive(Debug, Clone, Copy)]
enum Among {
    Connected,
    /// Those that answer, and have not just said that they have no room.
    NotDoubtful,
    All,
}

impl Swarm {
    /// Finds hops: from what is known if that is enough, else after asking, and in the end after
    /// waiting.
    pub(crate) async fn search(&self, search: Search) -> Result<Vec<RouteHop>, NoRoute> {
        let mut refreshed: Option<Instant> = None;
        let mut told = false;
        loop {
            let waited = search.since.elapsed();
            // In the end those that have failed before are not tried any more.
            let forgiving = waited >= FORGIVEN
                && waited < self.patience
                && Instant::now() >= search.forgiving_from;
            let no_route = match self.plan(&search, forgiving) {
                Ok(hops) => return Ok(hops),
                Err(no_route) => no_route,
            };
            if let Some(hops) = self.plan_with_neighbours(&search) {
                return Ok(hops);
            }
            // Without patience the others are still asked once.
            let go_on = search.wanted.needed && waited < self.patience;
            if !go_on && refreshed.is_some() {
                return Err(no_route);
            }
            if refreshed.is_some() && !told {
                tracing::warn!(%no_route, "waiting for a server");
                told = true;
            }
            if refreshed.is_none_or(|at| at.elapsed() >= REFRESH) {
                self.refresh_within(search.model).await;
                refreshed = Some(Instant::now());
            } else {
                // No event tells: breakers open again and doubts end with time alone.
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Hops of as many routes without a common server as are known, up to `count`; nobody is asked.
    pub(crate) fn plan_apart(&self, search: &Search, count: usize) -> Vec<Vec<RouteHop>> {
        let among = |among| self.plan_among((search, false), among, count).unwrap_or_default();
        let of_those_that_answer = among(Among::NotDoubtful);
        if of_those_that_answer.len() >= count {
            return of_those_that_answer;
        }
        let of_all = among(Among::All);
        if of_all.len() > of_those_that_answer.len() { of_all } else { of_those_that_answer }
    }

    /// Asks those who are there who serves a model, and waits no longer than a search does.
    pub(crate) async fn refresh_within(&self, model: ModelId) {
        // Who does not answer must not keep the others' news from being used.
        let _in_part = tokio::time::timeout(REFRESH, self.refresh(model)).await;
    }

    /// Asks those who are there who serves a model.
    pub(crate) async fn refresh(&self, model: ModelId) {
        self.announcements(Some(model)).await;
    }

    /// Whether no server of a model is known.
    pub(crate) fn knows_nobody(&self, model: ModelId) -> bool {
        self.known(Some(model)).is_empty()
    }

    /// Takes note of a hop that has failed.
    pub(crate) fn blame(&self, failure: &HopFailure) {
        let now = self.clock.now();
        let mut view = self.view();
        let View { health, random, unreachable, .. } = &mut *view;
        match &failure.reason {
            // It may well be the one that complains; only their being together is to be avoided.
            FailureReason::Unreachable { from, .. } => {
                unreachable.retain(|_, since| now.since(*since) < UNREACHABLE);
                if unreachable.len() < UNREACHABLE_MAX {
                    unreachable.insert((*from, failure.hop.peer), now);
                }
            }
            FailureReason::LinkLost { .. }
            | FailureReason::Refused { .. }
            | FailureReason::NotOpened { .. }
            | FailureReason::Silent { .. }
            | FailureReason::Slow { .. }
            | FailureReason::NotAgreed
            | FailureReason::NotFilled { .. }
            | FailureReason::Leaving
            | FailureReason::Violation(_) => health.failed(failure.hop.peer, now, random),
        }
    }

    /// Takes note of a server that has no room.
    pub(crate) fn note_full(&self, peer: PeerId) {
        let now = self.clock.now();
        let full = &mut self.view().full;
        full.retain(|_, since| now.since(*since) < FULL);
        if full.len() < FULL_MAX {
            full.insert(peer, now);
        }
    }

    /// Takes note of servers that have done what was asked of them.
    pub(crate) fn praise(&self, peers: impl Iterator<Item = PeerId>) {
        let now = self.clock.now();
        let mut view = self.view();
        peers.for_each(|peer| view.health.succeeded(peer, now));
    }

    /// Takes note of how long a step of one token took the servers of a route, and of the whole.
    pub(crate) fn note_times(&self, hops: &[Hop], trace: &[HopTiming], total: Duration) {
        self.view().measured.note(hops, trace, total, self.clock.now());
    }

    /// Hops for the gap and a neighbour's blocks, where that neighbour serves the gap as well.
    fn plan_with_neighbours(&self, search: &Search) -> Option<Vec<RouteHop>> {
        let wanted = &search.wanted;
        let (gap, before, after) = (wanted.blocks, wanted.before, wanted.after);
        let with = |neighbour: Hop, start: u32, end: u32| {
            let mut wider = wanted.clone();
            wider.blocks = Span::new(start, end).ok()?;
            wider.avoided.remove(&neighbour.peer);
            Some(wider)
        };
        let with_after = after.and_then(|hop| with(hop, gap.start(), hop.blocks.end()));
        let with_after = with_after.map(|wider| RouteWanted { after: None, ..wider });
        let with_before = before.and_then(|hop| with(hop, hop.blocks.start(), gap.end()));
        let with_before = with_before.map(|wider| RouteWanted { before: None, ..wider });
        with_after
            .into_iter()
            .chain(with_before)
            .filter(|_| wanted.needed)
            .find_map(|wanted| self.plan(&Search { wanted, ..search.clone() }, false).ok())
    }

    /// Hops among those who answer, or else among all. A session that has begun takes those first
    /// with whom there is a connection: what others have announced may be a minute old.
    fn plan(&self, search: &Search, forgiving: bool) -> Result<Vec<RouteHop>, NoRoute> {
        let connected = search.urgent.then_some(Among::Connected);
        let mut last = None;
        for among in connected.into_iter().chain([Among::NotDoubtful, Among::All]) {
            match self.plan_among((search, forgiving), among, 1) {
                Ok(mut routes) => return Ok(routes.swap_remove(0)),
                Err(no_route) => last = Some(no_route),
            }
        }
        Err(last.expect("it was tried among all"))
    }

    /// Up to `count` routes without a common server; at least one.
    fn plan_among(
        &self,
        (search, forgiving): (&Search, bool),
        among: Among,
        count: usize,
    ) -> Result<Vec<Vec<RouteHop>>, NoRoute> {
        let Search { wanted, .. } = search;
        let (now, unix_now) = (self.clock.now(), unix_time());
        let mut view = self.view();
        let View { directory, health, doubtful, full, unreachable, measured, random, warm, .. } =
            &mut *view;
        directory.expire(unix_now);
        unreachable.retain(|_, since| now.since(*since) < UNREACHABLE);
        // Where nobody else is left, a server that has failed is better than none, and so are two of
        // which one could not reach the other: it may have been busy.
        let blank = Health::new();
        let trusted = if forgiving { &blank } else { &*health };
        let candidates = directory.candidates(trusted, search.model, now, unix_now);
        let answers = |server: &&Announcement| {
            let is_full = full.get(&server.peer).is_some_and(|since| now.since(*since) < FULL);
            let doubtful = is_full || doubtful.contains_key(&server.peer);
            match among {
                Among::Connected => !doubtful && self.network.round_trip(server.peer).is_some(),
                Among::NotDoubtful => !doubtful,
                Among::All => true,
            }
        };
        let fits = |server: &Announcement| usable(server, search.thin);
        let candidates: Vec<_> = candidates.filter(answers).filter_map(fits).collect();
        let round_trips = candidates
            .iter()
            .filter_map(|server| Some((server.peer, self.network.round_trip(server.peer)?)))
            .collect();
        let request = RouteRequest {
            blocks: wanted.blocks,
            tokens_max: search.tokens_max,
            before: wanted.before.map(|hop| hop.peer),
            after: wanted.after.map(|hop| hop.peer),
            excluded: if forgiving { Default::default() } else { wanted.avoided.clone() },
            token_bytes: search.token_bytes,
            costs: Costs {
                round_trips,
                link_round_trips: measured.link_round_trips(now),
                block_times: measured.block_times(now),
                unreachable: if forgiving {
                    Default::default()
                } else {
                    unreachable.keys().copied().collect()
                },
            },
            held: warm.longest(search.model, &search.prefix),
        };
        let routes = plan_routes_apart(&request, &candidates, count, random)?;
        let mut open = |&hop: &Hop| {
            health.begin_trial(hop.peer, now);
            let server = candidates.iter().find(|server| server.peer == hop.peer);
            RouteHop {
                hop,
                addresses: server.map(|server| server.addresses.clone()).unwrap_or_default(),
                session: random_session(),
                round_trip: self.network.round_trip(hop.peer),
            }
        };
        let mut hops = |route: &Route| {
            tracing::debug!(%route, "planned");
            route.hops().iter().map(&mut open).collect()
        };
        Ok(routes.iter().map(&mut hops).collect())
    }
}

/// What a server can be used for: in a thin session, one that does not hold the ends of the model only
/// for blocks between.
fn usable(server: &Announcement, thin: bool) -> Option<Announcement> {
    // A candidate that leaves waits for this client.
    let mut usable = Announcement { draining: false, ..server.clone() };
    if thin && !server.holds_ends {
        let (start, end) = (server.span.start().max(1), server.span.end());
        usable.span = Span::new(start, end.min(server.block_count.saturating_sub(1))).ok()?;
    }
    Some(usable)
}

/// The name of a session is also the secret that allows a push into it, so it comes from the
/// system.
fn random_session() -> SessionId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    SessionId::new(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
