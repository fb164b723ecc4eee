//! The servers of a request as vertices, and what is known of the ways between them.
//!
//! A way between two servers costs what somebody has measured, or else a *star* estimate: a part
//! for leaving the one and a part for entering the other. The estimate separates, so the cheapest
//! way into a server over all others needs one minimum for each boundary between blocks, and only
//! pairs that somebody has measured (at most 16 for each server) are looked at one by one.

use std::collections::BTreeSet;
use std::time::Duration;

use umbel_protocol::announcement::Announcement;
use umbel_protocol::{PeerId, Span};

use super::cost::{Costs, one_way, transfer};
use super::plan::RouteRequest;
use crate::random::Random;

/// How much dearer a server may be made to look by chance, so that clients who read the same
/// announcements do not all take the same of two nearly equal servers.
pub(super) const HERD_SPREAD: f64 = 0.05;

/// The servers that a request may use.
pub(super) struct Graph {
    pub(super) blocks: Span,
    pub(super) vertices: Vec<Vertex>,
    ways: Vec<Ways>,
}

/// What is known of the ways into a vertex.
#[derive(Debug, Clone, Default)]
struct Ways {
    /// The shortest first.
    open: Vec<Way>,
    /// Where these come from and where there is no way from, in order.
    known: Vec<usize>,
}

/// A server; all costs in seconds.
#[derive(Debug, Clone)]
pub(super) struct Vertex {
    pub(super) peer: PeerId,
    /// What it serves of the blocks that are to be covered.
    pub(super) span: Span,
    /// From the client, or from the server before, until it computes.
    pub(super) first: f64,
    /// Whenever it is entered, besides the way: receiving, waiting, and the lack of room.
    pub(super) arrive: f64,
    pub(super) per_block: f64,
    /// Whenever it is left, besides the way: sending.
    pub(super) depart: f64,
    /// Its part of a way that nobody has measured.
    pub(super) star: f64,
    /// From its result to the client, or to the server after.
    pub(super) last: f64,
    /// By how much it is made to look dearer.
    dearer: f64,
}

/// A way between servers of which something is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) from: usize,
    /// What counts most is least.
    rank: Rank,
    /// Seconds; infinite where there is no way.
    pub(super) delay: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Unreachable,
    MeasuredHere,
    SaidByEarlier,
    SaidByLater,
}

impl Graph {
    /// Of the `servers` that the request does not exclude, each made to look dearer by up to
    /// `spread` by chance.
    pub(super) fn new(
        request: &RouteRequest,
        servers: &[&Announcement],
        spread: f64,
        random: &mut Random,
    ) -> Self {
        let used = usable(request, servers);
        let ends = Ends::new(request, servers);
        let vertices: Vec<_> = used
            .iter()
            .map(|(server, span)| {
                vertex(request, &ends, server, *span, 1.0 + spread * random.unit())
            })
            .collect();
        let ways = known_ways(&request.costs, &used, &vertices);
        Self { blocks: request.blocks, vertices, ways }
    }

    /// The known ways into a vertex, the shortest first.
    pub(super) fn ways_into(&self, to: usize) -> &[Way] {
        &self.ways[to].open
    }

    /// Whether something is known of the way between two vertices.
    pub(super) fn is_known(&self, from: usize, to: usize) -> bool {
        self.ways[to].known.binary_search(&from).is_ok()
    }

    /// Seconds from the result of one vertex until another computes.
    pub(super) fn between(&self, from: usize, to: usize) -> f64 {
        let (earlier, later) = (&self.vertices[from], &self.vertices[to]);
        let way = if self.is_known(from, to) {
            let way = self.ways_into(to).iter().find(|way| way.from == from);
            way.map_or(f64::INFINITY, |way| way.delay)
        } else {
            earlier.star + later.star
        };
        earlier.depart + way + later.arrive
    }

    /// Seconds that a token takes along these visits: the vertex, and the blocks.
    pub(super) fn seconds(&self, visits: &[(usize, Span)]) -> f64 {
        let (Some((first, _)), Some((last, _))) = (visits.first(), visits.last()) else {
            return 0.0;
        };
        let ends = self.vertices[*first].first + self.vertices[*last].last;
        let ways: f64 = visits.windows(2).map(|pair| self.between(pair[0].0, pair[1].0)).sum();
        let compute: f64 = visits
            .iter()
            .map(|(vertex, span)| self.vertices[*vertex].per_block * f64::from(span.block_count()))
            .sum();
        ends + ways + compute
    }
}

/// The servers that the request does not exclude, and their part of its blocks.
pub(super) fn usable<'a>(
    request: &RouteRequest,
    servers: &[&'a Announcement],
) -> Vec<(&'a Announcement, Span)> {
    let in_use = [request.before, request.after];
    let mut seen = BTreeSet::new();
    servers
        .iter()
        .filter(|server| !server.draining && !request.excluded.contains(&server.peer))
        // A session has one place on a peer.
        .filter(|server| !in_use.contains(&Some(server.peer)))
        .filter(|server| seen.insert(server.peer))
        .filter_map(|server| Some((*server, server.span.intersection(request.blocks)?)))
        .collect()
}

/// The servers before and after the blocks, where there are any, as they announce themselves.
struct Ends<'a> {
    before: Option<(PeerId, Option<&'a Announcement>)>,
    after: Option<(PeerId, Option<&'a Announcement>)>,
}

impl<'a> Ends<'a> {
    fn new(request: &RouteRequest, servers: &[&'a Announcement]) -> Self {
        let find =
            |peer: PeerId| (peer, servers.iter().copied().find(|server| server.peer == peer));
        Self { before: request.before.map(find), after: request.after.map(find) }
    }
}

fn vertex(
    request: &RouteRequest,
    ends: &Ends<'_>,
    server: &Announcement,
    span: Span,
    dearer: f64,
) -> Vertex {
    let costs = &request.costs;
    let own = costs.own_delay(server.peer).as_secs_f64();
    let seconds = |time: Duration| time.as_secs_f64() * dearer;
    let transfer = transfer(server, request.token_bytes);
    let here = (server.peer, Some(server));
    let into = ends.before.map_or(own, |before| end_delay(costs, before, here));
    let out = ends.after.map_or(own, |after| end_delay(costs, here, after));
    let arrive = seconds(transfer.saturating_add(costs.wait(server, request.tokens_max)));
    Vertex {
        peer: server.peer,
        span,
        first: into * dearer + arrive,
        arrive,
        per_block: seconds(costs.block_time(server)),
        depart: seconds(transfer),
        star: seconds(costs.star_delay(server.peer)),
        last: seconds(transfer) + out * dearer,
        dearer,
    }
}

/// One-way delay in seconds between two servers of which one is no vertex.
fn end_delay(
    costs: &Costs,
    from: (PeerId, Option<&Announcement>),
    to: (PeerId, Option<&Announcement>),
) -> f64 {
    if costs.unreachable.contains(&(from.0, to.0)) {
        return f64::INFINITY;
    }
    let said = |by: Option<&Announcement>, of: PeerId| {
        let next = by?.next_hops.iter().find(|next| next.peer == of)?;
        Some(next.round_trip)
    };
    let measured = costs.link_round_trips.get(&(from.0, to.0)).copied();
    let known = measured.or_else(|| said(from.1, to.0)).or_else(|| said(to.1, from.0));
    let star = || costs.star_delay(from.0) + costs.star_delay(to.0);
    known.map_or_else(star, one_way).as_secs_f64()
}

fn known_ways(costs: &Costs, servers: &[(&Announcement, Span)], vertices: &[Vertex]) -> Vec<Ways> {
    let index = PeerIndex::new(vertices);
    let mut ways: Vec<Vec<Way>> = vec![Vec::new(); vertices.len()];
    let mut add = |from: usize, to: usize, rank: Rank, delay: f64| {
        if can_follow(vertices[from].span, vertices[to].span) && from != to {
            ways[to].push(Way { from, rank, delay: delay * vertices[to].dearer });
        }
    };
    for (here, (server, _)) in servers.iter().enumerate() {
        for next in &server.next_hops {
            let Some(there) = index.find(next.peer) else {
                continue;
            };
            let delay = one_way(next.round_trip).as_secs_f64();
            add(here, there, Rank::SaidByEarlier, delay);
            add(there, here, Rank::SaidByLater, delay);
        }
    }
    for ((from, to), round_trip) in &costs.link_round_trips {
        if let Some((from, to)) = index.find(*from).zip(index.find(*to)) {
            add(from, to, Rank::MeasuredHere, one_way(*round_trip).as_secs_f64());
        }
    }
    for (from, to) in &costs.unreachable {
        if let Some((from, to)) = index.find(*from).zip(index.find(*to)) {
            add(from, to, Rank::Unreachable, f64::INFINITY);
        }
    }
    ways.into_iter().map(Ways::new).collect()
}

impl Ways {
    /// Of what was said of the ways into one vertex, what counts most.
    fn new(mut ways: Vec<Way>) -> Self {
        // Stable, so that of two figures by the same server the first counts.
        ways.sort_by_key(|way| (way.from, way.rank));
        ways.dedup_by_key(|way| way.from);
        let known = ways.iter().map(|way| way.from).collect();
        ways.retain(|way| way.delay.is_finite());
        ways.sort_by(|a, b| a.delay.total_cmp(&b.delay));
        Self { open: ways, known }
    }
}

/// Whether there is a boundary at which `earlier` can be left and `later` be entered.
fn can_follow(earlier: Span, later: Span) -> bool {
    (earlier.start() + 1).max(later.start()) <= earlier.end().min(later.end() - 1)
}

/// Finds vertices by peer: sorted by the first bytes of the keys, which are compared at once.
struct PeerIndex<'a> {
    sorted: Vec<(u64, usize)>,
    vertices: &'a [Vertex],
}

impl<'a> PeerIndex<'a> {
    fn new(vertices: &'a [Vertex]) -> Self {
        let mut sorted: Vec<_> = vertices
            .iter()
            .enumerate()
            .map(|(index, vertex)| (prefix(vertex.peer), index))
            .collect();
        sorted.sort_unstable();
        Self { sorted, vertices }
    }

    fn find(&self, peer: PeerId) -> Option<usize> {
        let wanted = prefix(peer);
        let first = self.sorted.partition_point(|(prefix, _)| *prefix < wanted);
        self.sorted[first..]
            .iter()
            .take_while(|(prefix, _)| *prefix == wanted)
            .map(|(_, index)| *index)
            .find(|index| self.vertices[*index].peer == peer)
    }
}

fn prefix(peer: PeerId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *peer.public_key();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
