//! How clients find routes.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::route::NoRoute;
use umbel_coordinator::session::{Input, RouteHop, RouteWanted};
use umbel_coordinator::{Hop, route};
use umbel_protocol::{PeerId, SessionId, Span};

use super::{Event, World};
use crate::host::{Condition, Host};

/// How often a client that needs a route asks again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a client waits for a route to appear.
const PATIENCE: Duration = Duration::from_secs(120);

/// After how long a client forgives servers that have failed it.
const FORGIVEN: Duration = Duration::from_secs(2);

/// Who chooses routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planner {
    /// Chance, among all servers that seem to be there: routes that nobody would choose.
    Random,
    /// The planner of production, from what servers have announced, which may be a minute old.
    Announced,
}

impl World {
    pub(super) fn ask_route(&mut self, client: usize, wanted: RouteWanted) {
        let (since, session) = (self.now, self.clients[client].sessions_begun);
        let event = Event::Route { client, session, wanted, since };
        self.queue.plan(self.now + self.settings.lookup, event);
    }

    pub(super) fn answer_route(
        &mut self,
        client: usize,
        session: u32,
        wanted: RouteWanted,
        since: Time,
    ) {
        if self.clients[client].sessions_begun != session {
            return;
        }
        let (waited, needed) = (self.now.since(since), wanted.needed);
        let forgiving = waited >= FORGIVEN;
        let hops = match self.settings.planner {
            Planner::Random => {
                // Where all hops have failed at once, one after another is looked for.
                let is_up = |host: &Host<_>| host.condition == Condition::Up;
                let calm = self.now.since(self.last_fault) >= FORGIVEN;
                let forgiving = forgiving || (calm && self.hosts.iter().all(is_up));
                self.random_route(&wanted, forgiving)
            }
            Planner::Announced => self.planned_route(client, &wanted, forgiving),
        };
        if let Some(hops) = hops {
            let hops = hops.into_iter().map(|hop| self.route_hop(client, hop)).collect();
            self.tell_client(client, Input::Routed { needed, hops });
        } else if needed && waited < PATIENCE {
            let event = Event::Route { client, session, wanted, since };
            self.queue.plan(self.now + AGAIN, event);
        } else {
            let no_route = NoRoute { blocks: wanted.blocks, missing: vec![wanted.blocks] };
            self.tell_client(client, Input::NoRoute { needed, no_route });
        }
    }

    /// Any route at all through servers that seem to be there: a frozen one does, and so does one
    /// that has gone down just now.
    fn random_route(&mut self, wanted: &RouteWanted, forgiving: bool) -> Option<Vec<Hop>> {
        let mut hops: Vec<Hop> = Vec::new();
        let mut boundary = wanted.blocks.start();
        while boundary < wanted.blocks.end() {
            let usable: Vec<(PeerId, Span)> = self
                .hosts
                .iter()
                .filter(|host| host.condition != Condition::Down && !host.leaving)
                .filter(|host| host.config.span.contains(boundary))
                .filter(|host| forgiving || !wanted.avoided.contains(&host.peer))
                .filter(|host| hops.iter().all(|hop| hop.peer != host.peer))
                .map(|host| (host.peer, host.config.span))
                .collect();
            if usable.is_empty() {
                return None;
            }
            let (peer, span) = usable[self.routes.below(usable.len())];
            let furthest = span.end().min(wanted.blocks.end());
            let extra = self.routes.below((furthest - boundary) as usize);
            // Mostly as far as it goes, now and then less.
            let end = if self.routes.below(4) == 0 {
                boundary + 1 + u32::try_from(extra).expect("below a span")
            } else {
                furthest
            };
            hops.push(Hop { peer, blocks: Span::new(boundary, end).expect("it goes on") });
            boundary = end;
        }
        Some(hops)
    }

    /// The route that a client of production would take.
    fn planned_route(
        &mut self,
        client: usize,
        wanted: &RouteWanted,
        forgiving: bool,
    ) -> Option<Vec<Hop>> {
        let request = self.route_request(client, wanted, forgiving);
        let known = self.announcements.known(self.now);
        let route = route::plan_route(&request, known, &mut self.routes).ok()?;
        Some(route.hops().to_vec())
    }

    fn route_hop(&mut self, client: usize, hop: Hop) -> RouteHop {
        let name = (u128::from(self.names.bits()) << 64) | u128::from(self.names.bits());
        let class = self.links.class(self.clients[client].group, self.group_of(hop.peer));
        let round_trip = Some((class.delay + class.jitter) * 2);
        RouteHop { hop, addresses: Vec::new(), session: SessionId::new(name), round_trip }
    }

    pub(super) fn group_of(&self, peer: PeerId) -> usize {
        self.hosts[self.peers[&peer]].group
    }
}
