//! Servers that stand by: one that is to relieve a hop that leaves, or to be there should it fail.
//!
//! A spare is fed the same results as the hop whose place it may take, and computes them without
//! sending anything on. So it takes the place without a replay.

use umbel_protocol::StepId;
use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::inference::{
    ClientMessage, Destination, OpenSession, Redirect, ServerMessage, Step,
};

use super::place::{Fill, Opening, Place};
use super::{FailureReason, HopId, Output, RELIEF_INTERVAL, RouteHop, Session, State};
use crate::journal::Outlet;
use crate::time::Time;

/// A hop beside the route.
#[derive(Debug)]
pub(super) struct Spare {
    /// Whose place it may take.
    pub(super) of: HopId,
    pub(super) place: Place,
    /// Who has been told to feed it.
    fed_by: Feeder,
    /// Tokens that it has computed.
    computed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feeder {
    Nobody,
    Client,
    Hop(HopId),
}

impl Session {
    /// Looks for spares where they are wanted, feeds them, and lets them relieve who leaves.
    pub(super) fn tend_spares(&mut self, now: Time) {
        if matches!(self.state, State::Over | State::Opening) {
            return;
        }
        self.feed_spares();
        let wanted = |place: &&Place| place.spare_at <= now && self.wants_spare(place);
        let found = self.places.iter().find(wanted).map(|place| (place.id, place.hop.blocks));
        if let Some((of, blocks)) = found.filter(|_| self.spare_asked.is_none()) {
            self.spare_asked = Some(of);
            self.ask(blocks, false, now);
        }
    }

    /// When to look for a spare next.
    pub(super) fn next_search(&self) -> Option<Time> {
        if self.spare_asked.is_some() || !self.is_mended() || matches!(self.state, State::Opening) {
            return None;
        }
        let wanted = self.places.iter().filter(|place| self.wants_spare(place));
        wanted.map(|place| place.spare_at).min()
    }

    fn wants_spare(&self, place: &Place) -> bool {
        let standby = self.config.standby && !self.is_thin();
        let wanted = place.leaving || (standby && place.fill == Fill::Full);
        wanted && !self.spares.iter().any(|spare| spare.of == place.id)
    }

    /// Whether a spare is to take its place as soon as it can.
    pub(super) fn is_relief(&self, spare: &Spare) -> bool {
        self.places.iter().any(|place| place.id == spare.of && place.leaving)
    }

    pub(super) fn spares_routed(&mut self, of: HopId, hops: Vec<RouteHop>, now: Time) {
        let Some(index) = self.index_of(of) else {
            return;
        };
        let route = <[RouteHop; 1]>::try_from(hops).ok();
        // It may have come into the route since it was asked for.
        let on_route =
            |route: &RouteHop| self.places.iter().any(|place| place.hop.peer == route.hop.peer);
        let Some([route]) = route.filter(|[route]| !on_route(route)) else {
            // Several hops in the place of one are no better; let it stay as long as it can.
            self.put_off_spares(of, now);
            return;
        };
        if self.is_thin() {
            // What goes round is known here too late to feed a spare with it, and how tokens are
            // drawn only to the hop that does: the new hop is filled when it has the place.
            self.drop_place(index, FailureReason::Leaving);
            let place = self.new_place(route, now);
            self.places.push(place);
            self.sort_places();
            return;
        }
        let mut place = self.new_place(route, now);
        let (prefix, chain) = self.prefix_of(index);
        place.chain = chain;
        let before = index.checked_sub(1).map(|before| &self.places[before]);
        place.opening = Opening::Asked { at: now };
        place.previous = before.map(|before| before.id);
        let open = OpenSession {
            session: place.session,
            model: self.config.model,
            blocks: place.hop.blocks,
            tokens_max: self.config.tokens_max,
            previous: before.map(|before| before.hop.peer),
            next: Destination::Held,
            next_position: 0,
            next_step: StepId::default(),
            results: self.config.results,
            compress: place.is_far || self.is_far(index + 1),
            cache: self.config.cache,
            prefix,
            thin: false,
            drawer: None,
            adapter: self.config.adapter.clone(),
        };
        let (hop, message) = (place.id, ClientMessage::Open(open));
        self.outputs.push_back(Output::Send { hop, message });
        self.spares.push(Spare { of, place, fed_by: Feeder::Nobody, computed: 0 });
    }

    /// Nobody can be a spare for this hop now; perhaps somebody comes.
    pub(super) fn put_off_spares(&mut self, of: HopId, now: Time) {
        if let Some(index) = self.index_of(of) {
            self.places[index].spare_at = now + RELIEF_INTERVAL;
        }
    }

    /// Puts the spare of a hop that has lost its place there.
    pub(super) fn promote_spares(&mut self, of: HopId) {
        let Some(index) = self.spares.iter().position(|spare| spare.of == of) else {
            return;
        };
        let Spare { mut place, fed_by, .. } = self.spares.remove(index);
        tracing::info!(peer = %place.hop.peer, blocks = %place.hop.blocks, "a spare takes over");
        let before = self.places.iter().rfind(|of| of.hop.blocks.end() == place.hop.blocks.start());
        let feeder = match before {
            Some(before) => Feeder::Hop(before.id),
            None if place.hop.blocks.start() == 0 => Feeder::Client,
            None => Feeder::Nobody,
        };
        if fed_by != Feeder::Nobody {
            place.is_new = false;
            place.must_be_filled();
            if fed_by == feeder {
                place.fill = Fill::Filling { proof: self.next_step };
            }
        }
        self.places.push(place);
        self.sort_places();
    }

    /// Takes note of what a spare says.
    pub(super) fn spare_received(&mut self, hop: HopId, message: ServerMessage, now: Time) {
        let Some(spare) = self.spares.iter_mut().find(|spare| spare.place.id == hop) else {
            return;
        };
        spare.place.watch.heard(now);
        match message {
            ServerMessage::Opened { adapter: false, .. } if self.config.adapter.is_some() => {
                self.drop_spare(hop, &super::adapter::not_added(), now);
            }
            ServerMessage::AdapterWanted { offset, .. } => {
                match spare.place.adapter_wanted(offset, now) {
                    Ok(send) => self.outputs.extend(send),
                    Err(violation) => {
                        self.drop_spare(hop, &FailureReason::Violation(violation), now);
                    }
                }
            }
            ServerMessage::Opened { kept, .. } => {
                if Self::opened_with(&mut spare.place, kept) {
                    spare.place.opening = Opening::Open;
                } else {
                    let violation = ProtocolViolation::Unexpected { message: "Opened" };
                    self.drop_spare(hop, &FailureReason::Violation(violation), now);
                }
            }
            ServerMessage::Pong { received, computed, .. } => {
                let progress = (received, computed);
                match spare.place.watch.pong(progress, self.config.tokens_max, now) {
                    Ok(()) => spare.computed = computed,
                    Err(violation) => {
                        self.drop_spare(hop, &FailureReason::Violation(violation), now);
                    }
                }
            }
            ServerMessage::Error(error) => {
                let (code, detail) = (error.code, error.detail);
                self.drop_spare(hop, &FailureReason::Refused { code, detail }, now);
            }
            ServerMessage::Draining { .. } | ServerMessage::Trouble(_) => {
                self.drop_spare(hop, &FailureReason::Leaving, now);
            }
            ServerMessage::Output(_)
            | ServerMessage::Closed { .. }
            | ServerMessage::DrawTaken { .. }
            | ServerMessage::Redirected { .. }
            | ServerMessage::Adopted { .. } => {}
        }
    }

    pub(super) fn drop_spare(&mut self, hop: HopId, reason: &FailureReason, now: Time) {
        let Some(index) = self.spares.iter().position(|spare| spare.place.id == hop) else {
            return;
        };
        let spare = self.spares.remove(index);
        tracing::debug!(peer = %spare.place.hop.peer, %reason, "a spare is given up");
        self.leave(&spare.place);
        self.avoided.insert(spare.place.hop.peer);
        self.mirror.take_if(|(mirror, ..)| *mirror == hop);
        if let Feeder::Hop(feeder) = spare.fed_by
            && let Some(feeder) = self.index_of(feeder)
        {
            // Else it would go on sending everything twice.
            self.reflect(feeder, Destination::Held, 0);
        }
        match self.index_of(spare.of) {
            // It cost nobody anything, as servers that have left and are still announced: the next.
            Some(of) if spare.computed == 0 => self.places[of].spare_at = now,
            Some(_) | None => self.put_off_spares(spare.of, now),
        }
    }

    /// A mirror could not be fed: its hop has to do without. One that leaves is relieved all the same
    /// where only a prefix is lacking: the hops before it compute that now.
    pub(super) fn mirror_lost(&mut self, feeder: HopId, now: Time) {
        let fed = |spare: &Spare| spare.fed_by == Feeder::Hop(feeder);
        let Some(number) = self.spares.iter().position(fed) else {
            return;
        };
        let spare = &self.spares[number];
        let (hop, of) = (spare.place.id, spare.of);
        // What hops took over is in no journal.
        let lacks_prefix = self.is_relief(spare) && spare.place.held < self.taken_over;
        if let Some(index) = self.index_of(of).filter(|_| lacks_prefix) {
            self.spares[number].fed_by = Feeder::Nobody;
            self.drop_place(index, FailureReason::Leaving);
        } else {
            let detail = "it cannot be fed".to_owned();
            self.drop_spare(hop, &FailureReason::LinkLost { detail }, now);
        }
    }

    /// Tells whoever feeds a hop to feed its spare as well.
    fn feed_spares(&mut self) {
        for number in 0..self.spares.len() {
            let Some(index) = self.index_of(self.spares[number].of) else {
                continue;
            };
            let before = index.checked_sub(1);
            let feeder =
                before.map_or(Feeder::Client, |before| Feeder::Hop(self.places[before].id));
            let spare = &self.spares[number];
            if !spare.place.knows_previous() || spare.fed_by == feeder {
                continue;
            }
            if spare.place.previous != before.map(|before| self.places[before].id) {
                // Who fed it has been replaced; it is told when it is needed.
                continue;
            }
            self.spares[number].fed_by = feeder;
            match before {
                None => self.feed_own_spare(number),
                Some(before) => {
                    let place = &self.spares[number].place;
                    let (next, held) = (place.as_destination(), place.held);
                    self.reflect(before, next, held);
                }
            }
        }
    }

    /// Tells the hop at `index` to send what it computes there too, where so many tokens are.
    fn reflect(&mut self, index: usize, next: Destination, next_position: u32) {
        let (hop, session) = (self.places[index].id, self.places[index].session);
        let (next_step, settled) = (StepId::default(), self.settled);
        let redirect = Redirect { session, next, next_position, next_step, settled, mirror: true };
        self.outputs.push_back(Output::Send { hop, message: ClientMessage::Redirect(redirect) });
    }

    /// Feeds the spare of the first hop from this side's own journal.
    fn feed_own_spare(&mut self, number: usize) {
        let place = &self.spares[number].place;
        let mut outlet = Outlet::new(place.held, StepId::default());
        // Where the journal is gone, so is the spare's use; it is filled if it is ever needed.
        let Some(steps) = outlet.refill(&self.journal, self.settled, place.session) else {
            return;
        };
        let (hop, session) = (place.id, place.session);
        for step in steps {
            self.send_step(hop, step);
        }
        self.mirror = Some((hop, session, outlet));
    }

    /// Sends a step to the spare of the first hop too, also while that one takes the place.
    pub(super) fn mirror_step(&mut self, step: &Step) {
        let Some((hop, session, outlet)) = &mut self.mirror else {
            return;
        };
        let (hop, copy) = (*hop, Step { session: *session, ..step.clone() });
        if let Some(step) = outlet.pass(copy) {
            self.send_step(hop, step);
        }
    }

    /// Lets spares that have caught up take the places of hops that leave.
    pub(super) fn relieve(&mut self) {
        let caught_up = |place: &Place| {
            let spare = self.spares.iter().find(|spare| spare.of == place.id);
            place.leaving && spare.is_some_and(|s| s.place.is_open() && s.computed >= self.settled)
        };
        if let Some(index) = self.places.iter().position(caught_up) {
            self.drop_place(index, FailureReason::Leaving);
        }
    }
}
