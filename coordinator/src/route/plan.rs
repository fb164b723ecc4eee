//! The route of least time.

use std::collections::BTreeSet;
use std::fmt;

use umbel_protocol::announcement::Announcement;
use umbel_protocol::{PeerId, Span};

use super::cost::{self, Costs};
use super::{Hop, Route};
use crate::random::Random;

/// How much dearer a server may be made to look by chance, so that clients who read the same
/// announcements do not all take the same of two nearly equal servers.
const HERD_SPREAD: f64 = 0.05;

/// What is asked of a route.
#[derive(Debug, Clone)]
pub struct RouteRequest {
    /// Blocks of the model.
    pub block_count: u32,
    /// Tokens for which each server must have room.
    pub tokens_max: u32,
    /// Servers that the client has reason not to use.
    pub excluded: BTreeSet<PeerId>,
    /// What the client has measured.
    pub costs: Costs,
}

/// The route of least time through `servers`.
///
/// Shortest path over the boundaries between blocks: a server with span `[s, e)` is an edge from
/// each boundary in `[s, e)` to each later one up to `e`. A peer computes at most one span of a
/// route: where a much faster one would interrupt it, the path stays where it was.
///
/// # Errors
/// [`NoRoute`] with the blocks that nobody serves.
pub fn plan_route<'a>(
    request: &RouteRequest,
    servers: impl IntoIterator<Item = &'a Announcement>,
    random: &mut Random,
) -> Result<Route, NoRoute> {
    let whole = Span::new(0, request.block_count)
        .map_err(|_| NoRoute { block_count: 0, missing: Vec::new() })?;
    let servers: Vec<_> = servers
        .into_iter()
        .filter(|server| !server.draining && !request.excluded.contains(&server.peer))
        .filter_map(|server| Some((server, server.span.intersection(whole)?)))
        .collect();
    shortest_path(request, &servers, random).ok_or_else(|| NoRoute {
        block_count: request.block_count,
        missing: missing(whole, &servers),
    })
}

/// The cheapest known way to have computed all blocks before a boundary.
#[derive(Clone, Copy)]
struct Reached {
    seconds: f64,
    last: Option<Hop>,
}

fn shortest_path(
    request: &RouteRequest,
    servers: &[(&Announcement, Span)],
    random: &mut Random,
) -> Option<Route> {
    let edges: Vec<_> = servers
        .iter()
        .map(|(server, span)| {
            let dearer = 1.0 + HERD_SPREAD * random.unit();
            let reach = request.costs.reach(server, request.tokens_max).as_secs_f64() * dearer;
            let block = Span::new(span.start(), span.start() + 1).expect("one block");
            (server.peer, *span, reach, cost::compute(server, block).as_secs_f64() * dearer)
        })
        .collect();
    let mut reached: Vec<Option<Reached>> = vec![None; request.block_count as usize + 1];
    reached[0] = Some(Reached { seconds: 0.0, last: None });
    for start in 0..request.block_count {
        let Some(Reached { seconds, .. }) = reached[start as usize] else {
            continue;
        };
        for &(peer, span, reach, per_block) in edges.iter().filter(|edge| edge.1.contains(start)) {
            for end in start + 1..=span.end() {
                let seconds = seconds + reach + per_block * f64::from(end - start);
                let best = &mut reached[end as usize];
                if best.is_none_or(|best| seconds < best.seconds) {
                    let blocks = Span::new(start, end).expect("the end is beyond the start");
                    *best = Some(Reached { seconds, last: Some(Hop { peer, blocks }) });
                }
            }
        }
    }
    let mut hops = Vec::new();
    let mut boundary = request.block_count;
    while boundary > 0 {
        let hop = reached[boundary as usize]?.last?;
        boundary = hop.blocks.start();
        hops.push(hop);
    }
    hops.reverse();
    Route::new(without_returns(hops), request.block_count)
}

/// Lets a peer to which the path returns keep the blocks between: it serves them too, since what
/// it serves is one span, and a session has one place on a peer.
fn without_returns(hops: Vec<Hop>) -> Vec<Hop> {
    let mut kept: Vec<Hop> = Vec::with_capacity(hops.len());
    for hop in hops {
        if let Some(first) = kept.iter().position(|earlier| earlier.peer == hop.peer) {
            kept.truncate(first + 1);
            let start = kept[first].blocks.start();
            kept[first].blocks = Span::new(start, hop.blocks.end()).expect("it ends later");
        } else {
            kept.push(hop);
        }
    }
    kept
}

fn missing(whole: Span, servers: &[(&Announcement, Span)]) -> Vec<Span> {
    let mut missing: Vec<Span> = Vec::new();
    for block in whole.blocks() {
        if servers.iter().any(|(_, span)| span.contains(block)) {
            continue;
        }
        match missing.last_mut() {
            Some(last) if last.end() == block => {
                *last = Span::new(last.start(), block + 1).expect("it grows");
            }
            _ => missing.push(Span::new(block, block + 1).expect("one block")),
        }
    }
    missing
}

/// No route tiles the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoute {
    /// Blocks of the model.
    pub block_count: u32,
    /// The blocks that no usable server serves, in order.
    pub missing: Vec<Span>,
}

impl fmt::Display for NoRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no server of the swarm serves ")?;
        match self.missing.as_slice() {
            [one] if one.block_count() == 1 => write!(f, "block {}", one.start())?,
            spans => {
                f.write_str("blocks ")?;
                for (index, span) in spans.iter().enumerate() {
                    write!(f, "{}{span}", if index == 0 { "" } else { ", " })?;
                }
            }
        }
        write!(f, " of the model's {}", self.block_count)
    }
}

impl std::error::Error for NoRoute {}

#[cfg(test)]
mod tests;
