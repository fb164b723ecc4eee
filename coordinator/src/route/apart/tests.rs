//! Routes apart, against the servers that the thinnest block has.

use proptest::prelude::*;
use umbel_protocol::Span;
use umbel_protocol::announcement::Throughput;

use super::*;
use crate::route::specimen;

fn server(name: u8, start: u32, end: u32, decode: f32) -> Announcement {
    let throughput = Throughput { decode_tokens_per_second: decode, ..Throughput::default() };
    specimen::server(name, start, end, throughput)
}

fn request(block_count: u32) -> RouteRequest {
    RouteRequest::new(Span::new(0, block_count).unwrap(), 100)
}

fn plan(
    request: &RouteRequest,
    servers: &[Announcement],
    count: usize,
) -> Result<Vec<Route>, NoRoute> {
    plan_routes_apart(request, servers, count, &mut Random::new(1))
}

/// How many hops each route has, the shortest first.
fn lengths(routes: &[Route]) -> Vec<usize> {
    let mut lengths: Vec<_> = routes.iter().map(|route| route.hops().len()).collect();
    lengths.sort_unstable();
    lengths
}

#[test]
fn a_route_of_least_time_that_would_leave_servers_of_no_use_is_not_taken() {
    // The first block is so much faster on the server of that alone that the best route goes through it
    // and on to the server of all, beside which there is no other.
    let servers = [server(1, 0, 4, 10.0), server(2, 0, 1, 1_000.0), server(3, 1, 4, 10.0)];
    let best = plan_route(&request(4), &servers[..2], &mut Random::new(1)).unwrap();
    assert_eq!(best.hops().len(), 2, "{best}");
    assert_eq!(lengths(&plan(&request(4), &servers, 3).unwrap()), [1, 2]);
    // One alone is that of least time.
    assert_eq!(lengths(&plan(&request(4), &servers, 1).unwrap()), [2]);
}

#[test]
fn fewer_routes_than_were_asked_for_are_what_there_is() {
    let servers = [server(1, 0, 4, 0.0), server(2, 0, 3, 0.0)];
    assert_eq!(lengths(&plan(&request(4), &servers, 3).unwrap()), [1]);
    let error = plan(&request(5), &servers, 3).unwrap_err();
    assert_eq!(error.missing, [Span::new(4, 5).unwrap()]);
}

#[test]
fn servers_that_cannot_reach_each_other_are_not_on_one_route() {
    let servers = [server(1, 0, 4, 0.0), server(2, 0, 1, 0.0), server(3, 1, 4, 0.0)];
    let mut apart = request(4);
    apart.costs.unreachable.insert((servers[1].peer, servers[2].peer));
    let routes = plan(&apart, &servers, 2).unwrap();
    let together = |route: &Route| {
        route
            .hops()
            .windows(2)
            .any(|pair| (pair[0].peer, pair[1].peer) == (servers[1].peer, servers[2].peer))
    };
    assert!(!routes.is_empty() && !routes.iter().any(together), "{routes:?}");
}

const BLOCKS: u32 = 6;

prop_compose! {
    fn any_server()(start in 0..BLOCKS, count in 1..=BLOCKS, decode in 1.0f32..1_000.0)
        -> (u32, u32, f32) {
        (start, (start + count).min(BLOCKS), decode)
    }
}

proptest! {
    #[test]
    fn there_are_as_many_as_the_thinnest_block_has_servers_and_none_is_used_twice(
        spans in prop::collection::vec(any_server(), 1..14),
        count in 1usize..6,
        seed: u64,
    ) {
        let servers: Vec<_> = spans
            .iter()
            .zip(1u8..)
            .map(|(&(start, end, decode), name)| server(name, start, end, decode))
            .collect();
        let serving = |block| servers.iter().filter(|server| server.span.contains(block)).count();
        let depth = (0..BLOCKS).map(serving).min().unwrap();
        let routes = plan_routes_apart(&request(BLOCKS), &servers, count, &mut Random::new(seed));
        let routes = routes.unwrap_or_default();
        prop_assert_eq!(routes.len(), depth.min(count));
        let peers: Vec<_> =
            routes.iter().flat_map(|route| route.hops()).map(|hop| hop.peer).collect();
        prop_assert_eq!(peers.iter().collect::<BTreeSet<_>>().len(), peers.len());
        for route in &routes {
            prop_assert_eq!(route.blocks(), Span::new(0, BLOCKS).unwrap());
        }
    }
}
