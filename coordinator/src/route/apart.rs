//! Several routes without a common server, for work that is divided among them.

mod cover;

use std::collections::BTreeSet;

use umbel_protocol::PeerId;
use umbel_protocol::announcement::Announcement;

use super::Route;
use super::plan::{NoRoute, RouteRequest, plan_route};
use crate::random::Random;
use cover::covers;

/// Up to `count` routes of which no two have a server in common: as many as there can be.
///
/// They are taken one after the other, each of least time, as long as what is left is enough for the
/// others. Where it is not, since a route of least time changes servers wherever that is faster and may
/// leave some that do not cover the model, all are laid out at once, on as few servers as possible.
///
/// Servers that cannot reach each other are not on one route. Where they are the reason why there are
/// fewer routes than there could be, more are not looked for.
///
/// # Errors
/// [`NoRoute`] where there is not even one.
pub fn plan_routes_apart<'a>(
    request: &RouteRequest,
    servers: impl IntoIterator<Item = &'a Announcement>,
    count: usize,
    random: &mut Random,
) -> Result<Vec<Route>, NoRoute> {
    let servers: Vec<_> = servers.into_iter().collect();
    let greedy = one_after_the_other(request, &servers, count, random)?;
    if greedy.len() >= count {
        return Ok(greedy);
    }
    let covers = covers(request, &servers, count);
    let mut laid_out = Vec::with_capacity(covers.len());
    for peers in covers {
        // Among these servers alone, so that the hops are cut where time is least.
        let among = servers.iter().copied().filter(|server| peers.contains(&server.peer));
        if let Ok(route) = plan_route(request, among, random) {
            laid_out.push(route);
        }
    }
    Ok(if laid_out.len() > greedy.len() { laid_out } else { greedy })
}

fn one_after_the_other(
    request: &RouteRequest,
    servers: &[&Announcement],
    count: usize,
    random: &mut Random,
) -> Result<Vec<Route>, NoRoute> {
    let mut request = request.clone();
    let mut routes = vec![plan_route(&request, servers.iter().copied(), random)?];
    while routes.len() < count {
        let last = routes.last().expect("there is one");
        request
            .excluded
            .extend(last.hops().iter().map(|hop| hop.peer).collect::<BTreeSet<PeerId>>());
        let Ok(route) = plan_route(&request, servers.iter().copied(), random) else { break };
        routes.push(route);
    }
    Ok(routes)
}

#[cfg(test)]
mod tests;
