//! The route of least time.

mod no_route;

use std::collections::BTreeSet;

use umbel_protocol::announcement::Announcement;
use umbel_protocol::{PeerId, Span};

use super::cost::Costs;
use super::graph::{self, Graph, HERD_SPREAD};
use super::held::HeldPrefix;
use super::path::{Entry, Path, shortest_path};
use super::{Hop, Route};
use crate::random::Random;

pub use no_route::NoRoute;

/// Most searches for one route. A path that returns to a server takes two more; a thousand random
/// servers need hardly ever more than one, and what is found by then is a route in any case.
const SEARCHES_MAX: usize = 15;

/// What is asked of a route.
#[derive(Debug, Clone)]
pub struct RouteRequest {
    /// The blocks that it covers: the whole model, or the gap that a failed hop left.
    pub blocks: Span,
    /// Tokens for which each server must have room.
    pub tokens_max: u32,
    /// The server whose results enter the route; `None` where the client's do. It is not used
    /// again, but if its announcement is among the servers, its next hops are.
    pub before: Option<PeerId>,
    /// The server that takes the results of the route; `None` where the client does.
    pub after: Option<PeerId>,
    /// Servers that the client has reason not to use, such as the other hops of a route of which
    /// a gap is filled.
    pub excluded: BTreeSet<PeerId>,
    /// Bytes of one token's hidden states on the wire.
    pub token_bytes: u32,
    /// What the client has measured.
    pub costs: Costs,
    /// A route whose servers hold what the session begins with, if one is known.
    pub held: Option<HeldPrefix>,
}

impl RouteRequest {
    /// A route from the client through `blocks` and back to it, of which nothing more is known.
    #[must_use]
    pub const fn new(blocks: Span, tokens_max: u32) -> Self {
        Self {
            blocks,
            tokens_max,
            before: None,
            after: None,
            excluded: BTreeSet::new(),
            token_bytes: 0,
            costs: Costs::new(),
            held: None,
        }
    }
}

/// The route on which one token takes the least time from the client, or the server before, to
/// the client, or the server after.
///
/// Time is waiting and computing on each server and the way between them: as the client's traces
/// show it, as one of the two servers announces it, or else estimated from the client's own round
/// trips. A server may be entered and left at any block of its span, and has one place on a route.
/// Servers without room are used where there is no other way. The route is the best one but for
/// a spread of 5% by chance, or one whose servers hold so much of the session that it saves more
/// than it costs.
///
/// # Errors
/// [`NoRoute`] with the blocks that nobody serves.
pub fn plan_route<'a>(
    request: &RouteRequest,
    servers: impl IntoIterator<Item = &'a Announcement>,
    random: &mut Random,
) -> Result<Route, NoRoute> {
    let servers: Vec<_> = servers.into_iter().collect();
    let graph = Graph::new(request, &servers, HERD_SPREAD, random);
    let best = best_visits(&graph).ok_or_else(|| NoRoute::of(request, &servers))?;
    let held = request.held.as_ref().and_then(|held| held.worthwhile(&graph, &best));
    Ok(route(&graph, &held.unwrap_or(best)))
}

/// What a route visits; `None` where one of its servers is not there or serves other blocks by now.
pub(super) fn visits_of(graph: &Graph, route: &Route) -> Option<Vec<(usize, Span)>> {
    let visit = |hop: &Hop| {
        let is_hop =
            |vertex: &graph::Vertex| vertex.peer == hop.peer && vertex.span.covers(hop.blocks);
        Some((graph.vertices.iter().position(is_hop)?, hop.blocks))
    };
    route.hops().iter().map(visit).collect()
}

pub(super) fn route(graph: &Graph, visits: &[(usize, Span)]) -> Route {
    let hop = |&(vertex, blocks): &(usize, Span)| Hop { peer: graph.vertices[vertex].peer, blocks };
    let hops = visits.iter().map(hop).collect();
    Route::new(hops, graph.blocks).expect("visits of different vertices tile the blocks")
}

/// A shortest path may return to a server that it left; a route may not. Every route enters that
/// server either before the return or not before it, so both are searched, the cheaper path first
/// (branch and bound), until the cheapest path is a route.
fn best_visits(graph: &Graph) -> Option<Vec<(usize, Span)>> {
    let entries: Vec<Entry> =
        graph.vertices.iter().map(|vertex| (vertex.span.start(), vertex.span.end())).collect();
    let path = shortest_path(graph, &entries)?;
    let mut best = as_route(graph, &path);
    let mut open = vec![(path, entries)];
    let mut searches = 1;
    while let Some(cheapest) = index_of_cheapest(&open) {
        let (path, entries) = open.swap_remove(cheapest);
        if path.seconds >= best.seconds || searches >= SEARCHES_MAX {
            break;
        }
        let Some((vertex, boundary)) = first_return(&path.visits) else {
            return Some(path.visits);
        };
        let (first, end) = entries[vertex];
        for entry in [(first, boundary), (boundary, end)] {
            let mut entries = entries.clone();
            entries[vertex] = entry;
            searches += 1;
            if let Some(path) = shortest_path(graph, &entries) {
                let route = as_route(graph, &path);
                if route.seconds < best.seconds {
                    best = route;
                }
                open.push((path, entries));
            }
        }
    }
    Some(best.visits)
}

fn index_of_cheapest(open: &[(Path, Vec<Entry>)]) -> Option<usize> {
    (0..open.len()).min_by(|&a, &b| open[a].0.seconds.total_cmp(&open[b].0.seconds))
}

/// The first vertex to which the visits return, and the boundary at which they do.
fn first_return(visits: &[(usize, Span)]) -> Option<(usize, u32)> {
    let (mut seen, mut visits) = (BTreeSet::new(), visits.iter());
    let (vertex, span) = visits.find(|(vertex, _)| !seen.insert(*vertex))?;
    Some((*vertex, span.start()))
}

fn as_route(graph: &Graph, path: &Path) -> Path {
    let visits = without_returns(&path.visits);
    Path { seconds: graph.seconds(&visits), visits }
}

/// Lets a vertex to which the visits return keep the blocks between: it serves them too, since
/// what it serves is one span.
pub(super) fn without_returns(visits: &[(usize, Span)]) -> Vec<(usize, Span)> {
    let mut kept: Vec<(usize, Span)> = Vec::with_capacity(visits.len());
    for &(vertex, span) in visits {
        if let Some(first) = kept.iter().position(|(earlier, _)| *earlier == vertex) {
            kept.truncate(first + 1);
            let start = kept[first].1.start();
            kept[first].1 = Span::new(start, span.end()).expect("it ends later");
        } else {
            kept.push((vertex, span));
        }
    }
    kept
}

#[cfg(test)]
mod tests;
