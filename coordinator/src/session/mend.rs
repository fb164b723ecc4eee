//! Gaps in the route, and how they are closed.
//!
//! All hops of a mended route are opened and have agreed on their neighbours before anything is
//! sent again, so that no result meets a hop that does not expect it.

use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::{Adopt, ClientMessage, Destination, OpenSession, Redirect, Step};
use umbel_protocol::{PeerId, Span, StepId};

use super::place::{Fill, Opening, Place, Target};
use super::{
    FailureReason, HopFailure, HopId, MENDS_MAX, Output, RouteHop, RouteWanted, Session,
    SessionFailure, State,
};
use crate::journal::Outlet;
use crate::route::NoRoute;
use crate::swarm::directory::ANNOUNCEMENTS_MAX;
use crate::time::Time;

impl Session {
    /// Takes the next step towards a whole route, where one is wanted.
    pub(super) fn mend(&mut self, now: Time) {
        if matches!(self.state, State::Over) {
            return;
        }
        if self.mends > MENDS_MAX
            && let Some(failure) = self.last_failure.take()
        {
            self.fail(SessionFailure::Hop(failure));
            return;
        }
        self.relieve();
        let gap = self.gap();
        // An idle session waits with its repair until it is needed.
        if gap.is_some() && matches!(self.state, State::Open) && self.flight.is_empty() {
            self.mended_at = now;
            self.ring_breaks();
            return;
        }
        if let Some(blocks) = gap
            && !std::mem::replace(&mut self.gap_asked, true)
        {
            self.ask(blocks, true, now);
        }
        self.tell_neighbours(now);
        if !self.is_mended() {
            self.mended_at = now;
            self.ring_breaks();
        } else {
            self.resume(now);
            self.tend_spares(now);
        }
    }

    /// Takes a place away from a hop.
    ///
    /// If there is a spare for it, that one takes it at once.
    pub(super) fn drop_place(&mut self, index: usize, reason: FailureReason) {
        let place = self.places.remove(index);
        self.reroute();
        self.promote_spares(place.id);
        let failure = HopFailure { hop: place.hop, reason };
        tracing::info!(%failure, "a hop loses its place");
        self.leave(&place);
        let is_first =
            self.avoided.len() < ANNOUNCEMENTS_MAX && self.avoided.insert(place.hop.peer);
        let is_refusal = matches!(failure.reason, FailureReason::Refused { .. });
        // One that does not let the session in costs it nothing but the question, and there are no more
        // of them than servers. One that is brought back because nobody else is left is waited for as
        // long as whoever looks for it has patience.
        if place.is_open() || is_first && !is_refusal {
            self.mends += 1;
        }
        if failure.reason.is_full() {
            self.outputs.push_back(Output::Full { peer: place.hop.peer });
        } else if failure.reason.is_fault() && !self.is_older(&failure.reason) {
            self.outputs.push_back(Output::Blame(failure.clone()));
        }
        self.last_failure = Some(failure);
    }

    /// Whether a server may refuse the session for its adapter alone, of which announcements say
    /// nothing.
    fn is_older(&self, reason: &FailureReason) -> bool {
        let is_not_served =
            matches!(reason, FailureReason::Refused { code: ErrorCode::BlocksNotServed, .. });
        is_not_served && self.config.adapter.is_some()
    }

    pub(super) fn routed(&mut self, needed: bool, hops: Vec<RouteHop>, now: Time) {
        if !needed {
            if let Some(of) = self.spare_asked.take() {
                self.spares_routed(of, hops, now);
            }
        } else if std::mem::take(&mut self.gap_asked) {
            // Where only a neighbour serves the gap too, it comes with its own blocks.
            let replaced = |place: &Place| {
                let blocks = place.hop.blocks;
                hops.iter().any(|route| route.hop.blocks.intersection(blocks).is_some())
            };
            while let Some(index) = self.places.iter().position(replaced) {
                self.drop_place(index, FailureReason::Leaving);
            }
            for route in hops {
                let place = self.new_place(route, now);
                self.places.push(place);
            }
            self.sort_places();
        }
    }

    pub(super) fn not_routed(&mut self, needed: bool, no_route: NoRoute, now: Time) {
        if !needed {
            if let Some(of) = self.spare_asked.take() {
                self.put_off_spares(of, now);
            }
        } else if std::mem::take(&mut self.gap_asked) {
            let last = self.last_failure.take();
            self.fail(SessionFailure::NoRoute { no_route, last });
        }
    }

    /// A place with a link to its server under way.
    pub(super) fn new_place(&mut self, route: RouteHop, now: Time) -> Place {
        let id = HopId(self.next_hop);
        self.next_hop += 1;
        let (peer, addresses) = (route.hop.peer, route.addresses.clone());
        self.outputs.push_back(Output::Connect { hop: id, peer, addresses });
        Place::new(id, route, now)
    }

    pub(super) fn sort_places(&mut self) {
        self.places.sort_by_key(|place| place.hop.blocks.start());
    }

    pub(super) fn is_whole(&self) -> bool {
        self.gap().is_none()
    }

    /// Whether every block has a hop that is open and knows who feeds it.
    pub(super) fn is_mended(&self) -> bool {
        let ready = self.places.iter().all(Place::knows_previous);
        self.is_whole() && ready && self.drawer_is_told()
    }

    /// The first blocks that no hop has.
    fn gap(&self) -> Option<Span> {
        let mut covered = 0;
        for place in &self.places {
            let blocks = place.hop.blocks;
            if blocks.start() > covered {
                return Span::new(covered, blocks.start()).ok();
            }
            covered = blocks.end();
        }
        Span::new(covered, self.config.block_count).ok()
    }

    /// Asks for hops for these blocks: for a gap, where they are needed, or else for a spare.
    pub(super) fn ask(&mut self, blocks: Span, needed: bool, now: Time) {
        let before = self.places.iter().rfind(|place| place.hop.blocks.end() <= blocks.start());
        let after = self.places.iter().find(|place| place.hop.blocks.start() >= blocks.end());
        let on_route = self.places.iter().map(|place| place.hop.peer);
        let spares = self.spares.iter().map(|spare| spare.place.hop.peer);
        tracing::debug!(%blocks, at = ?now, "a route is wanted");
        self.outputs.push_back(Output::Route(RouteWanted {
            blocks,
            before: before.map(|place| place.hop),
            after: after.map(|place| place.hop),
            avoided: self.avoided.iter().copied().chain(on_route).chain(spares).collect(),
            needed,
        }));
    }

    /// Opens what is not open, and says who pushes to whom.
    fn tell_neighbours(&mut self, now: Time) {
        for index in 0..self.places.len() {
            match self.places[index].opening {
                Opening::Wanted => self.open_place(index, now),
                Opening::Open if self.follows(index) => self.introduce(index, now),
                // Who feeds it is not known before the gap is closed.
                Opening::Open | Opening::Asked { .. } => {}
            }
        }
        if self.is_whole() {
            self.tell_drawer(now);
        }
    }

    /// Tells an open hop who feeds it, where that has changed, and that what it holds is of no use,
    /// where nobody knows what that is.
    fn introduce(&mut self, index: usize, now: Time) {
        let previous = self.previous_of(index);
        let peer = index.checked_sub(1).map(|before| self.places[before].hop.peer);
        let (drawer, drawer_peer) = self.drawer_of(index);
        let place = &mut self.places[index];
        let changed = place.previous != previous;
        let drawer_changed = drawer.is_some() && place.drawer != drawer;
        if changed && place.fill != Fill::Full {
            // It may be behind a rollback that its former feeder has not passed on.
            place.must_be_filled();
        }
        let stale = place.fill == Fill::Wanted && !place.is_empty;
        if !changed && !stale && !drawer_changed {
            return;
        }
        place.previous = previous;
        place.adopting += 1;
        place.watch.must_agree(self.patience, now);
        place.drawer = drawer.or(place.drawer);
        place.is_empty |= stale;
        let session = place.session;
        let adopt = Adopt { session, previous: peer, empty: stale, drawer: drawer_peer };
        let (hop, message) = (place.id, ClientMessage::Adopt(adopt));
        self.outputs.push_back(Output::Send { hop, message });
    }

    fn open_place(&mut self, index: usize, now: Time) {
        let next = self.target_of(index);
        let (destination, mut next_position, next_step) = self.destination_of(index, next);
        if self.places.get(index + 1).is_some_and(|next| next.fill == Fill::Wanted) {
            // What it takes over is not known before all that are new have opened; the first step
            // that comes begins where all of them can.
            next_position = 0;
        }
        let previous = self.previous_of(index);
        let peer = index.checked_sub(1).map(|before| self.places[before].hop.peer);
        let compress = self.is_far(index) || self.is_far(index + 1);
        let (prefix, chain) = self.prefix_of(index);
        let (drawer, drawer_peer) = self.drawer_of(index);
        let place = &mut self.places[index];
        place.chain = chain;
        (place.opening, place.previous) = (Opening::Asked { at: now }, previous);
        place.drawer = drawer;
        place.next = next;
        let open = OpenSession {
            session: place.session,
            model: self.config.model,
            blocks: place.hop.blocks,
            tokens_max: self.config.tokens_max,
            previous: peer,
            next: destination,
            next_position,
            next_step,
            results: self.config.results,
            compress,
            cache: self.config.cache,
            prefix,
            thin: self.config.thin_vocabulary.is_some(),
            drawer: drawer_peer,
            adapter: self.config.adapter.clone(),
        };
        let (hop, message) = (place.id, ClientMessage::Open(open));
        self.outputs.push_back(Output::Send { hop, message });
    }

    /// Lets everything flow again: every hop sends where the mended route wants it, beginning with
    /// what the hop after it lacks; so does the client.
    fn resume(&mut self, now: Time) {
        if matches!(self.state, State::Opening) {
            self.begin_with_prefix();
        }
        self.begin_anew();
        // A thin session has begun nothing yet that it asks for from now on.
        let proof = if self.is_thin() { self.open_step() } else { self.next_step };
        for index in 0..self.places.len() {
            let next = self.target_of(index);
            let refill = self.places.get(index + 1).is_some_and(|after| after.fill == Fill::Wanted);
            let place = &self.places[index];
            // Where both are new, the one was opened when the other had nothing.
            let is_told = place.is_new && self.places.get(index + 1).is_some_and(|of| of.is_new);
            if place.next != next || (refill && !is_told) {
                self.redirect(index, next);
            }
        }
        if self.feed().is_none() {
            self.fail(SessionFailure::JournalLost);
            return;
        }
        for place in &mut self.places {
            place.is_new = false;
            if place.fill == Fill::Wanted {
                (place.fill, place.is_empty) = (Fill::Filling { proof }, false);
                place.watch.begin(now);
            }
        }
        if matches!(self.state, State::Opening) {
            self.state = State::Open;
            self.outputs.push_back(Output::Ready);
        }
    }

    fn redirect(&mut self, index: usize, next: Target) {
        let (destination, next_position, next_step) = self.destination_of(index, next);
        let place = &mut self.places[index];
        place.next = next;
        place.redirecting += 1;
        let redirect = Redirect {
            session: place.session,
            next: destination,
            next_position,
            next_step,
            settled: self.settled,
            mirror: false,
        };
        let (hop, message) = (place.id, ClientMessage::Redirect(redirect));
        self.outputs.push_back(Output::Send { hop, message });
    }

    /// Sends the first hop what it lacks, and the steps that wait. `None` where this side does not
    /// have it any more.
    fn feed(&mut self) -> Option<()> {
        let first = self.places.first().expect("a whole route has a hop");
        let (hop, session) = (first.id, first.session);
        let mut unsent: Vec<_> = self.flight.iter_mut().filter_map(|f| f.unsent.take()).collect();
        if let Some((.., outlet)) = self.mirror.take_if(|(mirror, ..)| *mirror == hop) {
            // It has had everything, what waits too.
            (self.outlet, self.fed) = (outlet, Some(hop));
            unsent.clear();
        }
        let mut steps = Vec::new();
        if self.fed == Some(hop) && first.fill != Fill::Wanted {
            let mut pass = |step| self.outlet.pass(Step { session, ..step });
            steps.extend(unsent.into_iter().filter_map(&mut pass));
        } else {
            let (next_position, next_step) = self.filled(0);
            self.outlet = Outlet::new(next_position, next_step);
            steps = self.outlet.refill(&self.journal, self.settled, session)?;
        }
        self.fed = Some(hop);
        for step in steps {
            self.send_step(hop, step);
        }
        Some(())
    }

    /// Sends tokens to a hop, which cannot answer a ping before they have left.
    pub(super) fn send_step(&mut self, hop: HopId, step: Step) {
        let bytes = self.step_bytes(&step);
        let spares = self.spares.iter_mut().map(|spare| &mut spare.place);
        if let Some(place) = self.places.iter_mut().chain(spares).find(|place| place.id == hop) {
            place.watch.sends(bytes);
        }
        self.outputs.push_back(Output::Send { hop, message: ClientMessage::Step(step) });
    }

    /// What a step weighs on the wire.
    pub(super) fn step_bytes(&self, step: &Step) -> usize {
        self.own_token_bytes() as usize * step.token_count() as usize
    }

    /// Whether the way to the hop at `index` is a long one, so that bytes count.
    pub(super) fn is_far(&self, index: usize) -> bool {
        self.places.get(index).is_some_and(|place| place.is_far)
    }

    /// Who feeds the hop at `index`; `None` is the client.
    fn previous_of(&self, index: usize) -> Option<HopId> {
        index.checked_sub(1).map(|before| self.places[before].id)
    }

    /// Whether the hop before the one at `index` ends where that begins.
    fn follows(&self, index: usize) -> bool {
        let before = index.checked_sub(1).map_or(0, |before| self.places[before].hop.blocks.end());
        before == self.places[index].hop.blocks.start()
    }

    /// Who draws tokens, for the hop at `index`, where it is the first of a thin session.
    fn drawer_of(&self, index: usize) -> (Option<HopId>, Option<PeerId>) {
        let drawer = self.drawer().filter(|_| index == 0).map(|last| &self.places[last]);
        (drawer.map(|place| place.id), drawer.map(|place| place.hop.peer))
    }

    /// Where the results of the hop at `index` are to go.
    fn target_of(&self, index: usize) -> Target {
        let end = self.places[index].hop.blocks.end();
        if end == self.config.block_count {
            return Target::Client;
        }
        let next = self.places.get(index + 1).filter(|next| next.hop.blocks.start() == end);
        next.map_or(Target::Held, |next| Target::Hop(next.id))
    }

    /// The same in the protocol's words, and what of the results is there already.
    fn destination_of(&self, index: usize, target: Target) -> (Destination, u32, StepId) {
        match target {
            Target::Client => (Destination::Client, self.settled, self.open_step()),
            Target::Held => (Destination::Held, 0, StepId::default()),
            Target::Hop(_) => {
                let (next_position, next_step) = self.filled(index + 1);
                (self.places[index + 1].as_destination(), next_position, next_step)
            }
        }
    }

    /// What the hop at `index` has in its cache for certain: tokens, and all steps before this one.
    fn filled(&self, index: usize) -> (u32, StepId) {
        match self.places[index].fill {
            Fill::Full => (self.settled, self.open_step()),
            Fill::Wanted => (self.start_of(index), StepId::default()),
            Fill::Filling { .. } => (0, StepId::default()),
        }
    }

    /// The first step that has not been answered.
    fn open_step(&self) -> StepId {
        self.flight.front().map_or(self.next_step, |in_flight| in_flight.step)
    }
}
