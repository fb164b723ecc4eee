//! Servers for blocks that none has, and more routes than one where there are servers for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use umbel_coordinator::route::NoRoute;
use umbel_coordinator::session::{FailureReason, HopFailure, RouteHop, RouteWanted};
use umbel_engine::train::TrainingState;
use umbel_protocol::{ErrorCode, PeerId, Retry, Span};

use super::super::TrainingRoute;
use super::super::hop::{Fault, OpenHop};
use super::super::pipeline::Halt;
use super::RemoteBlocks;
use crate::swarm::route::Search;
use crate::train::TrainError;

/// Failures in one step before the training gives up: a route of some ten servers that are all
/// replaced, and replaced again. Those waited for that are not back yet are left out.
const FAILURES_MAX: usize = 32;

/// Room in a server's cache that routes ask for; a training needs none.
const CACHE_TOKENS: u32 = 1;

/// After how long a server that has failed may be tried again, where there is no other.
const FORGIVEN_AFTER: Duration = Duration::from_secs(2);

/// How often the others are asked who has come, where there are fewer routes than are wanted: as often as
/// a server announces itself.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// How long no further route is laid over a server that has failed: each try delays a step, and one that
/// is gone is announced for so long.
const PASSED_OVER: Duration = Duration::from_secs(60);

/// How often further routes are laid out before one step: some servers that are announced may be gone.
const WIDEN_TRIES: usize = 4;

/// Why a server was given up last.
#[derive(Debug, Clone, Default)]
pub(super) struct LastFailure {
    /// In words.
    detail: String,
    /// It had too little room, and said how much.
    no_room: Option<String>,
}

impl LastFailure {
    /// What it means that nobody else is left.
    fn nobody_left(self, source: NoRoute) -> TrainError {
        match self.no_room {
            Some(detail) => TrainError::NoRoom { detail },
            None => TrainError::NoRoute { source, last_failure: self.detail },
        }
    }
}

impl RemoteBlocks {
    /// Sees to it that there is a route, and as many more as are wanted and can be had.
    pub(super) async fn begin(&mut self, state: &TrainingState) -> Result<(), TrainError> {
        self.failures = 0;
        self.avoided.clear();
        self.refused.clear();
        let has_gap = (0..self.routes.len()).any(|route| self.gap(route).is_some());
        if self.unfinished || has_gap {
            // What servers have gathered, and what they have yet to say, is of something else; and a
            // route that was never opened as a whole is none.
            self.routes.clear();
            self.unfinished = false;
        } else {
            // Whoever is there still has done all that the last step asked of it.
            self.swarm.praise(self.peers());
        }
        if self.routes_max > 1 {
            self.widen(state).await?;
        }
        if self.routes.is_empty() {
            // What a server refuses now is what the error says if all refuse it.
            self.avoided.clear();
            self.push_route(Vec::new());
            self.fill(0, state, LastFailure::default()).await?;
            // The wait may have been long, and others may have come.
            self.widen(state).await?;
        }
        self.opened = true;
        if self.routes.len() < self.routes_max {
            self.ask_for_news();
        }
        Ok(())
    }

    /// Opens the routes that are lacking, where there are servers for them that are on none. All are laid
    /// out together: one alone might take the servers without which there is no other.
    async fn widen(&mut self, state: &TrainingState) -> Result<(), TrainError> {
        self.passed_over.retain(|_, since| since.elapsed() < PASSED_OVER);
        for _ in 0..WIDEN_TRIES {
            let lacking = self.routes_max.saturating_sub(self.routes.len());
            if lacking == 0 {
                break;
            }
            let mut search = self.search(self.blocks, Instant::now());
            search.wanted.avoided.extend(self.peers());
            search.wanted.avoided.extend(self.passed_over.keys());
            let laid_out = self.swarm.plan_apart(&search, lacking);
            if laid_out.is_empty() {
                break;
            }
            for route in laid_out {
                self.open_route(&route, state).await?;
            }
        }
        Ok(())
    }

    /// Opens a further route, unless one of its servers fails.
    async fn open_route(
        &mut self,
        route: &[RouteHop],
        state: &TrainingState,
    ) -> Result<(), TrainError> {
        let mut hops = Vec::with_capacity(route.len());
        for hop in route {
            match self.open_hop(hop, state).await? {
                Ok(open) => hops.push(open),
                Err(_) => {
                    for hop in hops {
                        hop.close(&self.swarm).await;
                    }
                    return Ok(());
                }
            }
        }
        self.push_route(hops);
        Ok(())
    }

    fn push_route(&mut self, hops: Vec<OpenHop>) {
        self.routes.push(TrainingRoute { name: self.routes_named, hops });
        self.routes_named += 1;
    }

    /// Lets the others be asked who has come, beside the step; what they say is used before the next one.
    fn ask_for_news(&mut self) {
        if self.asked.is_some_and(|at| at.elapsed() < ASK_INTERVAL) {
            return;
        }
        self.asked = Some(Instant::now());
        let (swarm, model) = (Arc::clone(&self.swarm), self.terms.model);
        tokio::spawn(async move { swarm.refresh_within(model).await });
    }

    /// Puts others in the place of servers that have failed; they are given the state before the step.
    /// A route for which there is nobody is given up where there is another.
    pub(super) async fn mend(
        &mut self,
        halt: Halt,
        state: &TrainingState,
    ) -> Result<(), TrainError> {
        let mut failed = match halt {
            Halt::Training(error) => return Err(error),
            Halt::Hops(failed) => failed,
        };
        // From the last place on, so that the places before it stay what they are.
        failed.sort_unstable_by_key(|&(route, place, _)| std::cmp::Reverse((route, place)));
        let mut last_failure = LastFailure::default();
        for (name, place, reason) in failed {
            let route = self.routes.iter_mut().find(|route| route.name == name);
            let hop = route.expect("it was asked just now").hops.remove(place).hop;
            last_failure = self.blame(HopFailure { hop, reason })?;
            self.replaced += 1;
        }
        let mut place = 0;
        while place < self.routes.len() {
            match self.fill(place, state, last_failure.clone()).await {
                Ok(()) => place += 1,
                Err(TrainError::NoRoute { .. } | TrainError::NoRoom { .. })
                    if self.routes.len() > 1 =>
                {
                    let TrainingRoute { name, hops } = self.routes.remove(place);
                    tracing::warn!(route = name, "going on without a route that has lost a server");
                    for hop in hops {
                        hop.close(&self.swarm).await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens servers for all blocks that none of a route has.
    async fn fill(
        &mut self,
        route: usize,
        state: &TrainingState,
        mut last_failure: LastFailure,
    ) -> Result<(), TrainError> {
        let mut since = Instant::now();
        while let Some((place, gap)) = self.gap(route) {
            let mut search = self.search(gap, since);
            if self.routes.len() > 1 {
                // Whoever is on two routes does no more than on one.
                search.wanted.avoided.extend(self.peers());
                search.wanted.needed = false;
            }
            if !self.opened && last_failure.no_room.is_some() {
                // Who begins is told at once that the room is too small, and may ask for less.
                search.wanted.needed = false;
            }
            let found = self.swarm.search(search).await;
            let found = found.map_err(|source| last_failure.clone().nobody_left(source))?;
            for (index, hop) in found.iter().enumerate() {
                let waited_for = self.avoided.contains(&hop.hop.peer);
                let opened = self.open_hop(hop, state).await?;
                if opened.is_ok() || !waited_for {
                    // Sending it the state may have taken long, which was no waiting.
                    since = Instant::now();
                }
                match opened {
                    Ok(open) => self.routes[route].hops.insert(place + index, open),
                    Err(failure) => {
                        last_failure = failure;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn open_hop(
        &mut self,
        hop: &RouteHop,
        state: &TrainingState,
    ) -> Result<Result<OpenHop, LastFailure>, TrainError> {
        match OpenHop::open(&self.swarm, hop, &self.terms, state).await {
            Ok(open) => Ok(Ok(open)),
            Err(Fault::Training(error)) => Err(error),
            Err(Fault::Hop(reason)) => {
                // How long one that has failed is waited for is a matter of patience, and not of how
                // often it was looked for.
                if self.avoided.contains(&hop.hop.peer) {
                    self.failures = self.failures.saturating_sub(1);
                }
                Ok(Err(self.blame(HopFailure { hop: hop.hop, reason })?))
            }
        }
    }

    /// The first blocks that no server of a route has, and the place of their servers.
    fn gap(&self, route: usize) -> Option<(usize, Span)> {
        let mut start = self.blocks.start();
        for (place, hop) in self.routes[route].hops.iter().enumerate() {
            if let Ok(gap) = Span::new(start, hop.blocks().start()) {
                return Some((place, gap));
            }
            start = hop.blocks().end();
        }
        let end = self.blocks.end();
        Span::new(start, end).ok().map(|gap| (self.routes[route].hops.len(), gap))
    }

    /// The servers of all routes.
    fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.routes.iter().flat_map(|route| &route.hops).map(|hop| hop.hop.peer)
    }

    fn search(&self, gap: Span, since: Instant) -> Search {
        // A server of the route already may have a second place in it, but not one that has failed.
        let wanted = RouteWanted {
            blocks: gap,
            before: None,
            after: None,
            avoided: self.avoided.clone(),
            needed: true,
        };
        Search {
            model: self.terms.model,
            tokens_max: CACHE_TOKENS,
            token_bytes: self.token_bytes,
            wanted,
            prefix: Vec::new(),
            thin: false,
            since,
            forgiving_from: Instant::now() + FORGIVEN_AFTER,
            urgent: self.failures > 0,
        }
    }

    /// Takes note of a failure.
    fn blame(&mut self, failure: HopFailure) -> Result<LastFailure, TrainError> {
        let no_room = match &failure.reason {
            FailureReason::Refused { code, detail } if *code == ErrorCode::KvFull => {
                Some(detail.clone())
            }
            FailureReason::Refused { .. }
            | FailureReason::LinkLost { .. }
            | FailureReason::NotOpened { .. }
            | FailureReason::Unreachable { .. }
            | FailureReason::Silent { .. }
            | FailureReason::Slow { .. }
            | FailureReason::NotAgreed
            | FailureReason::NotFilled { .. }
            | FailureReason::Leaving
            | FailureReason::Violation(_) => None,
        };
        let detail = format!("{}: {}", failure.hop.peer, failure.reason);
        tracing::warn!(peer = %failure.hop.peer, blocks = %failure.hop.blocks,
            reason = %failure.reason, "a server that trains has failed");
        if let FailureReason::Refused { code, detail } = &failure.reason
            && code.retry() == Retry::Never
        {
            // One alone may say so of what others would do, unless there are no others.
            let peer = failure.hop.peer;
            let before = self.refused.insert(*code, peer);
            if before.is_some_and(|before| before != peer || self.avoided.contains(&peer)) {
                return Err(TrainError::Refused { code: *code, detail: detail.clone() });
            }
        }
        self.failures += 1;
        if self.failures > FAILURES_MAX {
            let (count, last_failure) = (self.failures, detail);
            return Err(match no_room {
                Some(detail) => TrainError::NoRoom { detail },
                None => TrainError::TooManyFailures { count, last_failure },
            });
        }
        self.avoided.insert(failure.hop.peer);
        self.passed_over.insert(failure.hop.peer, Instant::now());
        // One that cannot train at the moment may well answer others.
        if !matches!(failure.reason, FailureReason::Refused { .. }) {
            self.swarm.blame(&failure);
        }
        Ok(LastFailure { detail, no_room })
    }
}
