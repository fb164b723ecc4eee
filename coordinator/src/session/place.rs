//! A place on the route, and what its server has been told.

use std::time::Duration;

use umbel_protocol::inference::{Destination, NextHop};
use umbel_protocol::prefix::PrefixChain;
use umbel_protocol::{SessionId, StepId};

use super::ring::DrawTold;
use super::watch::Watch;
use super::{HopId, RouteHop};
use crate::route::Hop;
use crate::time::Time;

/// Beyond this round trip a peer is in another building, and the way there is slower than a
/// processor packs and unpacks: at 100 Mbit/s a saved part of a sixth is worth 2 MB/s, at 1 Gbit/s
/// of a local network it is lost to the work.
const FAR: Duration = Duration::from_millis(2);

/// One hop of the route.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: HopId,
    pub(super) hop: Hop,
    pub(super) session: SessionId,
    pub(super) addresses: Vec<String>,
    pub(super) opening: Opening,
    /// Who feeds it, as it was told; `None` is the client.
    pub(super) previous: Option<HopId>,
    /// How often it has been told so since it opened and has not said that it takes steps from there.
    pub(super) adopting: u32,
    /// Where its results go, as it was told.
    pub(super) next: Target,
    /// How often it has been told so and has not confirmed it: until it does, what it says of its
    /// next hop is of an earlier one.
    pub(super) redirecting: u32,
    pub(super) fill: Fill,
    /// How often its cache was not what it should be since an answer last proved that it was.
    pub(super) refills: u32,
    /// It has nothing in its cache that could be of an earlier state.
    pub(super) is_empty: bool,
    /// It has not taken part in a whole route yet, so that its opening says all that it was told.
    pub(super) is_new: bool,
    /// It is about to leave: another is to take its place before it does.
    pub(super) leaving: bool,
    /// When to look for a spare next.
    pub(super) spare_at: Time,
    pub(super) watch: Watch,
    /// The way there is a long one.
    pub(super) is_far: bool,
    /// Tokens that it took over when it opened, and has still.
    pub(super) held: u32,
    /// Whether it keeps pages for later sessions.
    pub(super) keeps: bool,
    /// Pages of which it knows that they may be kept.
    pub(super) told: u32,
    /// The digests of the session's pages there.
    pub(super) chain: Option<PrefixChain>,
    /// Of the first hop of a thin session: who draws tokens, as it was told.
    pub(super) drawer: Option<HopId>,
    /// Of the last hop of a thin session: how it is to draw, as it was told.
    pub(super) draw_told: Option<DrawTold>,
    /// How often it has been told so and has not confirmed it.
    pub(super) drawing: u32,
    /// Until when it may lack the session's adapter, once it has said that it does.
    pub(super) adapter_until: Option<Time>,
}

/// How far the opening has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// It has not been asked yet.
    Wanted,
    /// It has been asked.
    Asked { at: Time },
    /// The session is open.
    Open,
}

/// Where results go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Client,
    Hop(HopId),
    Held,
}

/// What is known of a hop's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// It holds every token that has been answered.
    Full,
    /// It is being filled; an answer to this step or a later one proves that it is full.
    Filling { proof: StepId },
    /// Nobody fills it yet.
    Wanted,
}

impl Place {
    pub(super) fn new(id: HopId, route: RouteHop, now: Time) -> Self {
        Self {
            id,
            hop: route.hop,
            session: route.session,
            addresses: route.addresses,
            opening: Opening::Wanted,
            previous: None,
            adopting: 0,
            next: Target::Held,
            redirecting: 0,
            fill: Fill::Wanted,
            refills: 0,
            is_empty: true,
            is_new: true,
            leaving: false,
            spare_at: now,
            is_far: route.round_trip.is_some_and(|trip| trip >= FAR),
            drawer: None,
            draw_told: None,
            drawing: 0,
            adapter_until: None,
            watch: Watch::new(route.round_trip, now),
            held: 0,
            keeps: false,
            told: 0,
            chain: None,
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.opening, Opening::Open)
    }

    /// Whether it takes steps from where it was told last that they come from. What it was opened
    /// with is what it knows at first.
    pub(super) const fn knows_previous(&self) -> bool {
        self.is_open() && self.adopting == 0
    }

    /// It has said that it takes a neighbour, or how tokens are drawn: nothing more is expected of it
    /// once it has said so of all that it was told.
    pub(super) const fn agrees(&mut self) {
        if self.adopting == 0 && self.drawing == 0 {
            self.watch.agreed();
        }
    }

    /// Its cache is not what it should be.
    pub(super) const fn must_be_filled(&mut self) {
        self.fill = Fill::Wanted;
        self.is_empty = false;
        (self.held, self.told) = (0, 0);
    }

    pub(super) fn as_destination(&self) -> Destination {
        Destination::Server(NextHop {
            peer: self.hop.peer,
            addresses: self.addresses.clone(),
            session: self.session,
        })
    }
}
