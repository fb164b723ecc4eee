//! All links: who is connected to whom, and how long messages take between groups.

use std::collections::{BTreeMap, BTreeSet};

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::server::LinkId;
use umbel_coordinator::session::HopId;
use umbel_protocol::SessionId;

use super::Place;
use crate::link::{Link, LinkClass};

/// A session link, as both its ends number it: the client, and its hop counted over its sessions.
pub(crate) type SessionLink = (usize, HopId);

/// A push link: the server that pushes, its name of the session, and the other server's name.
pub(crate) type PushLink = (usize, SessionId, SessionId);

/// The links between groups of servers and clients.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Between any two groups of which nothing else is said.
    pub usual: LinkClass,
    /// From one group to another.
    pub between: BTreeMap<(usize, usize), LinkClass>,
}

impl Topology {
    /// The same link everywhere.
    #[must_use]
    pub const fn new(usual: LinkClass) -> Self {
        Self { usual, between: BTreeMap::new() }
    }

    /// From one group to another.
    #[must_use]
    pub fn class(&self, from: usize, to: usize) -> LinkClass {
        self.between.get(&(from, to)).copied().unwrap_or(self.usual)
    }
}

/// The far end of a link: which server, in which of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) server: usize,
    pub(super) life: u32,
}

/// A push link, as the server has it that pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Push {
    /// Which of all that there have been: what is said of an earlier one comes too late.
    pub(super) number: u64,
    /// `None` where it cannot be opened.
    pub(super) end: Option<End>,
}

/// A place in one of its lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) place: Place,
    pub(super) group: usize,
    pub(super) life: u32,
}

/// One direction of a way, with the lives of its ends for which it stands.
#[derive(Debug)]
struct Way {
    lives: (u32, u32),
    link: Link,
}

/// Who is linked to whom.
#[derive(Debug)]
pub(super) struct Links {
    topology: Topology,
    random: Random,
    ways: BTreeMap<(Place, Place), Way>,
    sessions: BTreeMap<SessionLink, End>,
    pushes: BTreeMap<PushLink, Push>,
    /// Push links that there have been.
    push_count: u64,
    /// By server, the links that end there.
    ends: Vec<(BTreeSet<SessionLink>, BTreeSet<PushLink>)>,
    /// Groups that are parted from one another, and until when.
    parted: BTreeMap<(usize, usize), Time>,
}

impl Links {
    pub(super) const fn new(topology: Topology, random: Random) -> Self {
        Self {
            topology,
            random,
            ways: BTreeMap::new(),
            sessions: BTreeMap::new(),
            pushes: BTreeMap::new(),
            push_count: 0,
            ends: Vec::new(),
            parted: BTreeMap::new(),
        }
    }

    pub(super) fn add_server(&mut self) {
        self.ends.push((BTreeSet::new(), BTreeSet::new()));
    }

    pub(super) fn class(&self, from: usize, to: usize) -> LinkClass {
        self.topology.class(from, to)
    }

    /// Opens the way from one place to another, where it is not open: that takes a round trip, but
    /// not for a server that answers its client.
    pub(super) fn dial(&mut self, from: Seat, to: Seat, now: Time) {
        let lives = (from.life, to.life);
        let key = (from.place, to.place);
        if self.ways.get(&key).is_none_or(|way| way.lives != lives) {
            let class = self.topology.class(from.group, to.group);
            let answers = matches!(to.place, Place::Client(_));
            let stands = if answers { now } else { now + class.delay * 2 };
            self.ways.insert(key, Way { lives, link: Link::new(class, stands) });
        }
    }

    /// When a message that is sent now arrives.
    pub(super) fn send(&mut self, from: Seat, to: Seat, bytes: usize, now: Time) -> Time {
        self.dial(from, to, now);
        let way = self.ways.get_mut(&(from.place, to.place)).expect("it was just made");
        let arrival = way.link.send(bytes, now, &mut self.random);
        let groups = (from.group.min(to.group), from.group.max(to.group));
        match self.parted.get(&groups) {
            Some(&until) if now < until => arrival.max(until),
            Some(_) | None => arrival,
        }
    }

    /// Nothing passes between two groups until a moment; then it comes, late.
    pub(super) fn part(&mut self, a: usize, b: usize, until: Time) {
        self.parted.insert((a.min(b), a.max(b)), until);
    }

    pub(super) fn open_session(&mut self, link: SessionLink, end: End) {
        self.sessions.insert(link, end);
        self.ends[end.server].0.insert(link);
    }

    pub(super) fn session(&self, link: SessionLink) -> Option<End> {
        self.sessions.get(&link).copied()
    }

    pub(super) fn close_session(&mut self, link: SessionLink) -> Option<End> {
        let end = self.sessions.remove(&link)?;
        self.ends[end.server].0.remove(&link);
        Some(end)
    }

    /// The far ends of a client's links.
    pub(super) fn ends_of_client(&self, client: usize) -> impl Iterator<Item = End> {
        let links = (client, HopId(0))..=(client, HopId(u32::MAX));
        self.sessions.range(links).map(|(_, end)| *end)
    }

    /// Its number.
    pub(super) fn open_push(&mut self, link: PushLink, end: Option<End>) -> u64 {
        let number = self.push_count;
        self.push_count += 1;
        self.close_push(link);
        self.pushes.insert(link, Push { number, end });
        if let Some(end) = end {
            self.ends[end.server].1.insert(link);
        }
        number
    }

    pub(super) fn push(&self, link: PushLink) -> Option<Push> {
        self.pushes.get(&link).copied()
    }

    /// Nothing more is sent on it; what is under way arrives.
    pub(super) fn close_push(&mut self, link: PushLink) {
        if let Some(end) = self.pushes.remove(&link).and_then(|push| push.end) {
            self.ends[end.server].1.remove(&link);
        }
    }

    /// The links that end at a server, those of pushes with their numbers.
    pub(super) fn ends_at(&self, end: End) -> (Vec<SessionLink>, Vec<(PushLink, u64)>) {
        let (sessions, pushes) = &self.ends[end.server];
        let numbered = |link: &PushLink| {
            let push = self.pushes.get(link).filter(|push| push.end == Some(end))?;
            Some((*link, push.number))
        };
        let of_life = |link: &&SessionLink| self.sessions.get(link) == Some(&end);
        (
            sessions.iter().filter(of_life).copied().collect(),
            pushes.iter().filter_map(numbered).collect(),
        )
    }

    /// Forgets what a server pushed over in an earlier life.
    pub(super) fn forget_pushes_from(&mut self, server: usize) {
        let (least, most) = (SessionId::new(0), SessionId::new(u128::MAX));
        let links = self.pushes.range((server, least, least)..=(server, most, most));
        let links: Vec<_> = links.map(|(link, _)| *link).collect();
        for link in links {
            self.close_push(link);
        }
    }
}

pub(super) fn link_id((client, hop): SessionLink) -> LinkId {
    LinkId(((client as u64) << 32) | u64::from(hop.0))
}

pub(super) fn session_link(link: LinkId) -> SessionLink {
    let hop = u32::try_from(link.0 & u64::from(u32::MAX)).expect("it is masked");
    (usize::try_from(link.0 >> 32).expect("clients are counted in 32 bits"), HopId(hop))
}
