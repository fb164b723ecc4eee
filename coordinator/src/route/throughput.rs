//! Routes for batch work, which is to use all that the swarm can compute.

use umbel_protocol::Span;
use umbel_protocol::announcement::Announcement;

use super::Route;
use super::cost::DECODE_UNKNOWN;
use super::graph::{self, Graph};
use super::plan::{NoRoute, RouteRequest, plan_route, route, without_returns};
use crate::random::Random;

/// What the capacity of a server without room, or about to move, counts for: nothing where there
/// is another (Petals takes the same for servers that do not answer a ping).
const LAST_RESORT: f64 = 1e-6;

/// Most routes that are drawn until one has no pair of servers that cannot reach each other: with
/// half of all pairs unreachable, three hops fail so often once in 10^4.
const DRAWS_MAX: usize = 32;

/// A route for many tokens at once, drawn so that each block's load falls on its servers in
/// proportion to their spare capacity: what they compute in a second through their span, or what
/// passes through their network if that is less, divided by one more than the steps that wait.
///
/// The servers of consecutive blocks are drawn with a maximal coupling: each block has exactly the
/// shares above, and the route changes servers as rarely as that allows. Only where it returns to
/// a server, which then keeps the blocks between, the shares are off by a little.
///
/// # Errors
/// [`NoRoute`] with the blocks that nobody serves.
pub fn plan_throughput_route<'a>(
    request: &RouteRequest,
    servers: impl IntoIterator<Item = &'a Announcement>,
    random: &mut Random,
) -> Result<Route, NoRoute> {
    let servers: Vec<_> = servers.into_iter().collect();
    let graph = Graph::new(request, &servers, 0.0, random);
    let capacities: Vec<_> = graph::usable(request, &servers)
        .iter()
        .map(|(server, _)| spare_capacity(request, server))
        .collect();
    for _ in 0..DRAWS_MAX {
        let Some(visits) = draw(&graph, &capacities, random) else {
            return Err(NoRoute::of(request, &servers));
        };
        let visits = without_returns(&visits);
        if graph.seconds(&visits).is_finite() {
            return Ok(route(&graph, &visits));
        }
    }
    // Hardly any two servers reach each other: what is found with care is better than nothing.
    plan_route(request, servers, random)
}

/// Tokens a second that a server could take through its span besides what waits already.
fn spare_capacity(request: &RouteRequest, server: &Announcement) -> f64 {
    let of = &server.throughput;
    let rates = [
        of.prefill_tokens_per_second,
        of.decode_batch_tokens_per_second,
        of.decode_tokens_per_second,
    ];
    let rate = rates.into_iter().find(|rate| *rate > 0.0).unwrap_or(DECODE_UNKNOWN);
    let computes = f64::from(rate.max(1e-3)) / f64::from(server.span.block_count());
    #[expect(clippy::cast_precision_loss, reason = "a bandwidth needs no more digits")]
    let passes = match of.network_bytes_per_second {
        0 => f64::INFINITY,
        bytes => bytes as f64 / f64::from(request.token_bytes.max(1)),
    };
    let is_last_resort = server.kv_tokens_free < request.tokens_max || server.moving_to.is_some();
    let factor = if is_last_resort { LAST_RESORT } else { 1.0 };
    computes.min(passes) * factor / (1.0 + f64::from(server.queue_depth))
}

/// A vertex for each block; `None` where a block has none.
fn draw(graph: &Graph, capacities: &[f64], random: &mut Random) -> Option<Vec<(usize, Span)>> {
    let mut visits: Vec<(usize, Span)> = Vec::new();
    let mut before = vec![0.0; capacities.len()];
    for block in graph.blocks.blocks() {
        let now = shares(graph, capacities, block)?;
        let stays = visits.last().is_some_and(|&(vertex, _)| {
            // At most 1 where the share has grown, and 0 where it does not serve this block.
            random.unit() < now[vertex] / before[vertex]
        });
        let end = block + 1;
        if let Some((_, span)) = visits.last_mut().filter(|_| stays) {
            *span = Span::new(span.start(), end).expect("it grows");
        } else {
            let growth: Vec<_> =
                now.iter().zip(&before).map(|(now, before)| (now - before).max(0.0)).collect();
            let vertex = pick(&growth, random).or_else(|| pick(&now, random))?;
            visits.push((vertex, Span::new(block, end).expect("one block")));
        }
        before = now;
    }
    Some(visits)
}

/// The share of each vertex in a block's load.
fn shares(graph: &Graph, capacities: &[f64], block: u32) -> Option<Vec<f64>> {
    let serving = graph.vertices.iter().zip(capacities);
    let mut shares: Vec<f64> = serving
        .map(|(vertex, capacity)| if vertex.span.contains(block) { *capacity } else { 0.0 })
        .collect();
    let total: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= total);
    (total > 0.0).then_some(shares)
}

/// An index, drawn in proportion to the weights; `None` where all are 0.
fn pick(weights: &[f64], random: &mut Random) -> Option<usize> {
    let total: f64 = weights.iter().sum();
    let mut left = random.unit() * total;
    let mut last = None;
    for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        if left < *weight {
            return Some(index);
        }
        left -= weight;
        last = Some(index);
    }
    last
}

#[cfg(test)]
mod tests;
