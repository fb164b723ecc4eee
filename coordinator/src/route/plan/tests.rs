//! Routes against brute force.

use std::time::Duration;

use proptest::prelude::*;
use umbel_protocol::ModelId;
use umbel_protocol::announcement::{Throughput, UnixTime};

use super::*;

fn server(name: u8, start: u32, end: u32, decode: f32) -> Announcement {
    Announcement {
        peer: PeerId::from_public_key([name; 32]),
        model: ModelId::from_bytes([0; 32]),
        model_name: String::new(),
        span: Span::new(start, end).unwrap(),
        block_count: 8,
        addresses: Vec::new(),
        version: String::new(),
        throughput: Throughput { decode_tokens_per_second: decode, ..Throughput::default() },
        kv_tokens_free: 1_000,
        queue_depth: 0,
        draining: false,
        issued: UnixTime::after_epoch(Duration::ZERO),
        expires: UnixTime::after_epoch(Duration::from_secs(60)),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
    }
}

fn request(block_count: u32) -> RouteRequest {
    RouteRequest {
        block_count,
        tokens_max: 100,
        excluded: BTreeSet::new(),
        costs: Costs::default(),
    }
}

fn plan(request: &RouteRequest, servers: &[Announcement]) -> Result<Route, NoRoute> {
    plan_route(request, servers, &mut Random::new(1))
}

#[test]
fn a_gap_is_named() {
    let servers = [server(1, 0, 2, 0.0), server(2, 3, 5, 0.0)];
    let error = plan(&request(8), &servers).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no server of the swarm serves blocks 2..3, 5..8 of the model's 8"
    );
    let error = plan(&request(3), &servers).unwrap_err();
    assert_eq!(error.to_string(), "no server of the swarm serves block 2 of the model's 3");
}

#[test]
fn one_server_of_all_beats_a_chain_of_equals() {
    let servers = [server(1, 0, 4, 300.0), server(2, 4, 8, 300.0), server(3, 0, 8, 300.0)];
    let route = plan(&request(8), &servers).unwrap();
    assert_eq!(route.hops().len(), 1);
}

#[test]
fn a_server_without_room_is_the_last_resort() {
    let mut full = server(1, 0, 8, 300.0);
    full.kv_tokens_free = 99;
    let halves = [server(2, 0, 4, 300.0), server(3, 4, 8, 300.0)];
    let servers = [full.clone(), halves[0].clone(), halves[1].clone()];
    assert_eq!(plan(&request(8), &servers).unwrap().hops().len(), 2);
    assert_eq!(plan(&request(8), &[full]).unwrap().hops().len(), 1);
}

#[test]
fn draining_and_excluded_servers_are_left_out() {
    let mut leaving = server(1, 0, 8, 300.0);
    leaving.draining = true;
    assert!(plan(&request(8), &[leaving]).is_err());
    let mut request = request(8);
    request.excluded.insert(PeerId::from_public_key([2; 32]));
    assert!(plan(&request, &[server(2, 0, 8, 300.0)]).is_err());
}

#[test]
fn a_peer_is_never_returned_to() {
    let servers = [server(1, 0, 8, 1.0), server(2, 3, 5, 10_000.0)];
    let route = plan(&request(8), &servers).unwrap();
    assert_eq!(route.hops(), [Hop { peer: servers[0].peer, blocks: Span::new(0, 8).unwrap() }]);
}

#[test]
fn a_span_beyond_the_model_is_cut() {
    let route = plan(&request(8), &[server(1, 0, 800, 1.0)]).unwrap();
    assert_eq!(route.hops()[0].blocks.end(), 8);
}

/// The least time over all ways to tile `[start, end)`, without the spread by chance.
fn brute_force(servers: &[Announcement], costs: &Costs, start: u32, end: u32) -> Option<f64> {
    if start == end {
        return Some(0.0);
    }
    let mut best: Option<f64> = None;
    for server in servers.iter().filter(|server| server.span.contains(start)) {
        for stop in start + 1..=server.span.end().min(end) {
            let blocks = Span::new(start, stop).unwrap();
            let here = costs.reach(server, 100) + cost::compute(server, blocks);
            let Some(rest) = brute_force(servers, costs, stop, end) else {
                continue;
            };
            let all = here.as_secs_f64() + rest;
            best = Some(best.map_or(all, |best| best.min(all)));
        }
    }
    best
}

proptest! {
    #[test]
    fn a_route_is_found_where_there_is_one_and_is_near_the_best(
        spans in proptest::collection::vec((0u32..6, 1u32..6, 1.0f32..1_000.0), 0..6),
        seed in any::<u64>(),
    ) {
        let servers: Vec<_> = spans
            .iter()
            .zip(1..)
            .map(|(&(start, count, rate), name)| server(name, start, start + count, rate))
            .collect();
        let request = request(6);
        let best = brute_force(&servers, &request.costs, 0, 6);
        let route = plan_route(&request, &servers, &mut Random::new(seed));
        prop_assert_eq!(route.is_ok(), best.is_some());
        let (Ok(route), Some(best)) = (route, best) else { return Ok(()) };
        let of = |peer| servers.iter().find(|server| server.peer == peer).unwrap();
        let taken: f64 = route
            .hops()
            .iter()
            .map(|hop| request.costs.reach(of(hop.peer), 100) + cost::compute(of(hop.peer), hop.blocks))
            .map(|time| time.as_secs_f64())
            .sum();
        let peers: BTreeSet<_> = route.hops().iter().map(|hop| hop.peer).collect();
        prop_assert_eq!(peers.len(), route.hops().len());
        // Staying with a peer instead of returning to it may cost more than the spread; a route
        // whose path never returned is within the spread of the best.
        let returned = route.hops().iter().any(|hop| {
            servers.iter().any(|other| other.peer != hop.peer && hop.blocks.covers(other.span))
        });
        if !returned {
            prop_assert!(taken <= best * (1.0 + HERD_SPREAD) + 1e-9, "{taken} of {best}");
        }
    }
}
