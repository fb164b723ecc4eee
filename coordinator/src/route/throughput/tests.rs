//! Where the load of many routes falls.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use umbel_protocol::announcement::Throughput;

use super::*;
use crate::route::specimen;

const BLOCKS: u32 = 8;

fn server(name: u8, start: u32, end: u32, rate: f32) -> Announcement {
    let throughput = Throughput { prefill_tokens_per_second: rate, ..Throughput::default() };
    specimen::server(name, start, end, throughput)
}

fn request() -> RouteRequest {
    RouteRequest::new(Span::new(0, BLOCKS).unwrap(), 100)
}

/// The share of each server in the load of each block, over many routes.
fn loads(request: &RouteRequest, servers: &[Announcement]) -> BTreeMap<(u8, u32), f64> {
    const DRAWS: u32 = 2_000;
    let (mut loads, mut random) = (BTreeMap::new(), Random::new(11));
    for _ in 0..DRAWS {
        let route = plan_throughput_route(request, servers, &mut random).unwrap();
        for hop in route.hops() {
            for block in hop.blocks.blocks() {
                let load = loads.entry((hop.peer.public_key()[0], block)).or_insert(0.0);
                *load += 1.0 / f64::from(DRAWS);
            }
        }
    }
    loads
}

/// Five and a half standard deviations of a share that 2,000 draws estimate: some hundred shares are
/// looked at in each run, and four were exceeded now and then.
const TOLERANCE: f64 = 0.062;

#[track_caller]
fn assert_load(loads: &BTreeMap<(u8, u32), f64>, name: u8, block: u32, expected: f64) {
    let load = loads.get(&(name, block)).copied().unwrap_or_default();
    assert!((load - expected).abs() < TOLERANCE, "{name} at {block}: {load} of {expected}");
}

#[test]
fn the_load_is_in_proportion_to_the_capacity() {
    // Through the whole of their spans: 100, 200, 100 and 100 tokens a second.
    let servers = [
        server(1, 0, 4, 400.0),
        server(2, 0, 8, 1_600.0),
        server(3, 4, 8, 400.0),
        server(4, 2, 8, 600.0),
    ];
    let loads = loads(&request(), &servers);
    for block in [0, 1] {
        assert_load(&loads, 1, block, 1.0 / 3.0);
        assert_load(&loads, 2, block, 2.0 / 3.0);
    }
    for block in [2, 3] {
        assert_load(&loads, 1, block, 0.25);
        assert_load(&loads, 2, block, 0.5);
        assert_load(&loads, 4, block, 0.25);
    }
    for block in 4..8 {
        assert_load(&loads, 2, block, 0.5);
        assert_load(&loads, 3, block, 0.25);
        assert_load(&loads, 4, block, 0.25);
    }
}

#[test]
fn queues_narrow_networks_and_the_lack_of_room_take_load_away() {
    let mut servers: Vec<_> = (1..=4).map(|name| server(name, 0, 8, 800.0)).collect();
    servers[1].queue_depth = 1;
    servers[2].throughput.network_bytes_per_second = 25_000;
    servers[3].kv_tokens_free = 0;
    let request = RouteRequest { token_bytes: 1_000, ..request() };
    let loads = loads(&request, &servers);
    // 100, 50 and 25 tokens a second, and as good as none.
    assert_load(&loads, 1, 0, 4.0 / 7.0);
    assert_load(&loads, 2, 0, 2.0 / 7.0);
    assert_load(&loads, 3, 0, 1.0 / 7.0);
    assert_load(&loads, 4, 0, 0.0);
    assert!(plan_throughput_route(&request, &servers[3..], &mut Random::new(1)).is_ok());
}

#[test]
fn servers_that_cannot_reach_each_other_do_not_follow_each_other() {
    let servers = [server(1, 0, 4, 1.0), server(2, 0, 4, 9.0), server(3, 4, 8, 1.0)];
    let mut request = request();
    request.costs.unreachable.insert((servers[1].peer, servers[2].peer));
    let mut random = Random::new(5);
    for _ in 0..100 {
        let route = plan_throughput_route(&request, &servers, &mut random).unwrap();
        assert_eq!(route.hops()[0].peer, servers[0].peer);
    }
    request.costs.unreachable.insert((servers[0].peer, servers[2].peer));
    let error = plan_throughput_route(&request, &servers, &mut random).unwrap_err();
    assert!(error.missing.is_empty());
}

#[test]
fn a_gap_is_named() {
    let servers = [server(1, 0, 3, 1.0), server(2, 5, 8, 1.0)];
    let error = plan_throughput_route(&request(), &servers, &mut Random::new(5)).unwrap_err();
    assert_eq!(error.missing, [Span::new(3, 5).unwrap()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A route leaves a server early only where others join, so with spans that all end at the
    /// end no route returns, and the shares are exact.
    #[test]
    fn over_many_draws_each_block_has_its_shares(
        rates in proptest::collection::vec((0u32..BLOCKS, 10.0f32..1_000.0), 1..5),
    ) {
        let servers: Vec<_> = [(0, 500.0)]
            .into_iter()
            .chain(rates)
            .zip(1..)
            .map(|((start, rate), name)| server(name, start, BLOCKS, rate))
            .collect();
        let capacity = |server: &Announcement| {
            f64::from(server.throughput.prefill_tokens_per_second)
                / f64::from(server.span.block_count())
        };
        let loads = loads(&request(), &servers);
        for block in 0..BLOCKS {
            let serving: Vec<_> =
                servers.iter().filter(|server| server.span.contains(block)).collect();
            let total: f64 = serving.iter().map(|server| capacity(server)).sum();
            for server in serving {
                let load = loads.get(&(server.peer.public_key()[0], block)).unwrap_or(&0.0);
                prop_assert!((load - capacity(server) / total).abs() < TOLERANCE);
            }
        }
    }

    #[test]
    fn one_seed_gives_one_route_and_no_peer_twice(
        spans in proptest::collection::vec((0u32..BLOCKS, 1u32..BLOCKS, 1.0f32..100.0), 0..9),
        seed in any::<u64>(),
    ) {
        let servers: Vec<_> = [(0, BLOCKS, 1.0)]
            .into_iter()
            .chain(spans)
            .zip(1..)
            .map(|((start, count, rate), name)| server(name, start, start + count, rate))
            .collect();
        let draw = || plan_throughput_route(&request(), &servers, &mut Random::new(seed)).unwrap();
        let route = draw();
        prop_assert_eq!(&route, &draw());
        let peers: BTreeSet<_> = route.hops().iter().map(|hop| hop.peer).collect();
        prop_assert_eq!(peers.len(), route.hops().len());
    }
}
