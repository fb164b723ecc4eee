//! Routes against brute force.

use std::time::Duration;

use proptest::prelude::*;
use umbel_protocol::announcement::{NextHopLatency, Throughput};

use super::super::cost::{self, DELAY_MAX};
use super::*;
use crate::route::specimen;

fn server(name: u8, start: u32, end: u32, decode: f32) -> Announcement {
    let throughput = Throughput { decode_tokens_per_second: decode, ..Throughput::default() };
    specimen::server(name, start, end, throughput)
}

fn request(block_count: u32) -> RouteRequest {
    RouteRequest::new(Span::new(0, block_count).unwrap(), 100)
}

fn plan(request: &RouteRequest, servers: &[Announcement]) -> Result<Route, NoRoute> {
    plan_route(request, servers, &mut Random::new(1))
}

/// The names of the route's servers.
fn names(route: &Route) -> Vec<u8> {
    route.hops().iter().map(|hop| hop.peer.public_key()[0]).collect()
}

const fn peer(name: u8) -> PeerId {
    PeerId::from_public_key([name; 32])
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn a_gap_is_named() {
    let servers = [server(1, 0, 2, 0.0), server(2, 3, 5, 0.0)];
    let error = plan(&request(8), &servers).unwrap_err();
    assert_eq!(error.to_string(), "no server of the swarm serves blocks 2..3, 5..8 (of 0..8)");
    let error = plan(&request(3), &servers).unwrap_err();
    assert_eq!(error.to_string(), "no server of the swarm serves block 2 (of 0..3)");
}

#[test]
fn one_server_of_all_beats_a_chain_of_equals() {
    let servers = [server(1, 0, 4, 300.0), server(2, 4, 8, 300.0), server(3, 0, 8, 300.0)];
    assert_eq!(names(&plan(&request(8), &servers).unwrap()), [3]);
}

#[test]
fn a_server_without_room_or_about_to_move_is_the_last_resort() {
    let halves = [server(2, 0, 4, 300.0), server(3, 4, 8, 300.0)];
    let mut full = server(1, 0, 8, 300.0);
    full.kv_tokens_free = 99;
    let mut moving = server(1, 0, 8, 300.0);
    moving.moving_to = Some(Span::new(0, 2).unwrap());
    for last_resort in [full, moving] {
        let servers = [last_resort.clone(), halves[0].clone(), halves[1].clone()];
        assert_eq!(names(&plan(&request(8), &servers).unwrap()), [2, 3]);
        assert_eq!(names(&plan(&request(8), &[last_resort]).unwrap()), [1]);
    }
}

#[test]
fn a_route_that_holds_the_beginning_is_taken_again_unless_that_costs_more_than_it_saves() {
    let fast = [server(1, 0, 4, 300.0), server(2, 4, 8, 300.0)];
    let slower = |decode| [server(3, 0, 4, decode), server(4, 4, 8, decode)];
    let hop = |name, start, end| Hop { peer: peer(name), blocks: Span::new(start, end).unwrap() };
    let along = |hops: Vec<Hop>| Route::new(hops, Span::new(0, 8).unwrap()).unwrap();
    let held = |tokens| {
        let route = along(vec![hop(3, 0, 4), hop(4, 4, 8)]);
        RouteRequest { held: Some(HeldPrefix { route, tokens }), ..request(8) }
    };
    let taken = |request: &RouteRequest, decode: f32, seed| {
        let servers: Vec<_> = fast.iter().cloned().chain(slower(decode)).collect();
        names(&plan_route(request, &servers, &mut Random::new(seed)).unwrap())
    };
    for seed in 0..20 {
        // A thousand tokens save as much as a quarter of an answer takes; 64 less than 2%.
        assert_eq!(taken(&held(1_000), 270.0, seed), [3, 4]);
        assert_eq!(taken(&held(64), 250.0, seed), [1, 2]);
        assert_eq!(taken(&held(u32::MAX), 30.0, seed), [1, 2]);
    }
    // What is not there any more, or serves other blocks, or is to be avoided, is passed over.
    let gone: Vec<_> = fast.iter().cloned().chain([server(3, 0, 4, 270.0)]).collect();
    assert_eq!(names(&plan(&held(1_000), &gone).unwrap()), [1, 2]);
    let moved = [server(3, 1, 5, 300.0), server(4, 4, 8, 300.0), server(1, 0, 8, 270.0)];
    assert_eq!(names(&plan(&held(1_000), &moved).unwrap()), [1]);
    let avoiding = RouteRequest { excluded: BTreeSet::from([peer(3)]), ..held(1_000) };
    let servers: Vec<_> = fast.iter().cloned().chain(slower(300.0)).collect();
    assert_eq!(names(&plan(&avoiding, &servers).unwrap())[0], 1);
    let gap = RouteRequest { blocks: Span::new(0, 4).unwrap(), ..held(1_000) };
    assert_eq!(plan(&gap, &servers).unwrap().blocks(), gap.blocks);
}

#[test]
fn draining_and_excluded_servers_and_those_at_the_ends_are_left_out() {
    let mut leaving = server(1, 0, 8, 300.0);
    leaving.draining = true;
    assert!(plan(&request(8), &[leaving]).is_err());
    let all = [server(2, 0, 8, 300.0)];
    assert!(plan(&request(8), &all).is_ok());
    let excluded = BTreeSet::from([peer(2)]);
    assert!(plan(&RouteRequest { excluded, ..request(8) }, &all).is_err());
    assert!(plan(&RouteRequest { before: Some(peer(2)), ..request(8) }, &all).is_err());
    assert!(plan(&RouteRequest { after: Some(peer(2)), ..request(8) }, &all).is_err());
}

#[test]
fn a_peer_is_never_returned_to() {
    let servers = [server(1, 0, 8, 1.0), server(2, 3, 5, 10_000.0)];
    let route = plan(&request(8), &servers).unwrap();
    let [hop] = route.hops() else { panic!("{route}") };
    assert_eq!(hop.peer, servers[0].peer);
    // With another for the end, the fast one is worth its way.
    let servers = [servers[0].clone(), servers[1].clone(), server(3, 5, 8, 1.0)];
    assert_eq!(names(&plan(&request(8), &servers).unwrap()), [1, 2, 3]);
}

#[test]
fn a_span_beyond_the_blocks_is_cut_and_a_gap_is_filled() {
    let route = plan(&request(8), &[server(1, 0, 800, 1.0)]).unwrap();
    assert_eq!(route.blocks(), Span::new(0, 8).unwrap());
    let gap = RouteRequest { blocks: Span::new(2, 6).unwrap(), ..request(8) };
    let route = plan(&gap, &[server(1, 0, 4, 1.0), server(2, 3, 9, 1.0)]).unwrap();
    assert_eq!((route.blocks(), names(&route)), (gap.blocks, vec![1, 2]));
}

#[test]
fn a_server_is_left_in_the_middle_of_its_span() {
    let servers = [server(1, 0, 6, 10.0), server(2, 2, 8, 1_000.0)];
    let route = plan(&request(8), &servers).unwrap();
    assert_eq!(route.to_string(), format!("0..2 {} -> 2..8 {}", peer(1), peer(2)));
}

#[test]
fn the_nearer_of_two_servers_follows() {
    let [mut first, mut near, far] =
        [server(1, 0, 4, 300.0), server(2, 4, 8, 300.0), server(3, 4, 8, 300.0)];
    let hop = |name, round_trip| NextHopLatency { peer: peer(name), round_trip };
    // Said by the earlier one, against what the later one says.
    first.next_hops = vec![hop(2, ms(4)), hop(3, ms(200))];
    near.next_hops = vec![hop(1, ms(900))];
    let servers = [first.clone(), near.clone(), far.clone()];
    assert_eq!(names(&plan(&request(8), &servers).unwrap()), [1, 2]);
    // Said by the later one alone.
    let mut far_that_says_so = far.clone();
    far_that_says_so.next_hops = vec![hop(1, ms(2))];
    let silent = [server(1, 0, 4, 300.0), server(2, 4, 8, 300.0), far_that_says_so];
    assert_eq!(names(&plan(&request(8), &silent).unwrap()), [1, 3]);
    // What the client's own traces show counts more, and so does that there is no way.
    let mut request = request(8);
    request.costs.link_round_trips.insert((peer(1), peer(2)), ms(500));
    assert_eq!(names(&plan(&request, &servers).unwrap()), [1, 3]);
    request.costs.unreachable.insert((peer(1), peer(3)));
    assert_eq!(names(&plan(&request, &servers).unwrap()), [1, 2]);
    request.costs.unreachable.insert((peer(1), peer(2)));
    let error = plan(&request, &servers).unwrap_err();
    assert_eq!(error.to_string(), "the servers of blocks 0..8 cannot reach each other");
}

#[test]
fn the_servers_at_the_ends_of_a_gap_count() {
    let [mut before, mut after] = [server(1, 0, 2, 1.0), server(9, 6, 8, 1.0)];
    let hop = |name, round_trip| NextHopLatency { peer: peer(name), round_trip };
    let middle = [server(2, 2, 6, 300.0), server(3, 2, 6, 300.0)];
    let gap = RouteRequest {
        blocks: Span::new(2, 6).unwrap(),
        before: Some(peer(1)),
        after: Some(peer(9)),
        ..request(8)
    };
    let plan = |request: &RouteRequest, before: &Announcement, after: &Announcement| {
        let [two, three] = middle.clone();
        names(&plan(request, &[before.clone(), two, three, after.clone()]).unwrap())
    };
    before.next_hops = vec![hop(2, ms(1)), hop(3, ms(20))];
    assert_eq!(plan(&gap, &before, &after), [2]);
    after.next_hops = vec![hop(2, ms(900)), hop(3, ms(1))];
    assert_eq!(plan(&gap, &before, &after), [3]);
    let mut gap = gap;
    gap.costs.unreachable.insert((peer(3), peer(9)));
    assert_eq!(plan(&gap, &before, &after), [2]);
}

#[test]
fn what_was_measured_counts_more_than_what_is_announced() {
    let servers = [server(1, 0, 8, 1_000.0), server(2, 0, 8, 300.0)];
    let mut request = request(8);
    assert_eq!(names(&plan(&request, &servers).unwrap()), [1]);
    request.costs.block_times.insert(peer(1), ms(20));
    assert_eq!(names(&plan(&request, &servers).unwrap()), [2]);
}

#[test]
fn no_figure_is_too_large_to_be_reckoned_with() {
    let mut server = server(1, 0, 4_096, f32::MIN_POSITIVE);
    server.block_count = 4_096;
    server.queue_depth = u32::MAX;
    server.throughput.decode_batch_tokens_per_second = f32::MIN_POSITIVE;
    server.throughput.network_bytes_per_second = 1;
    let mut request = RouteRequest { token_bytes: u32::MAX, ..request(4_096) };
    request.costs.round_trips.insert(peer(1), Duration::MAX);
    assert_eq!(names(&plan(&request, std::slice::from_ref(&server)).unwrap()), [1]);
    request.costs.block_times.insert(peer(1), Duration::MAX);
    assert_eq!(names(&plan(&request, &[server]).unwrap()), [1]);
}

#[test]
fn large_states_go_round_a_narrow_network() {
    let [mut narrow, wide] = [server(1, 0, 8, 1_000.0), server(2, 0, 8, 300.0)];
    narrow.throughput.network_bytes_per_second = 100_000;
    let servers = [narrow, wide];
    assert_eq!(names(&plan(&request(8), &servers).unwrap()), [1]);
    let request = RouteRequest { token_bytes: 16 << 10, ..request(8) };
    assert_eq!(names(&plan(&request, &servers).unwrap()), [2]);
}

#[test]
fn two_equal_servers_share_their_clients() {
    let servers = [server(1, 0, 8, 300.0), server(2, 0, 8, 300.0)];
    let first = (0..1_000)
        .filter(|seed| {
            let route = plan_route(&request(8), &servers, &mut Random::new(*seed)).unwrap();
            names(&route) == [1]
        })
        .count();
    assert!((400..600).contains(&first), "{first} of 1000");
}

#[test]
fn the_dearest_of_many_servers_is_found_where_no_other_has_a_way() {
    let mut servers: Vec<_> = (1..=100).map(|name| server(name, 0, 4, 300.0)).collect();
    servers[99].queue_depth = 50;
    servers.push(server(101, 4, 8, 300.0));
    let mut request = request(8);
    for name in 1..=99 {
        request.costs.unreachable.insert((peer(name), peer(101)));
    }
    assert_eq!(names(&plan(&request, &servers).unwrap()), [100, 101]);
}

#[test]
fn a_peer_that_is_named_twice_is_taken_once() {
    let servers = [server(1, 0, 4, 300.0), server(1, 4, 8, 300.0), server(2, 4, 8, 300.0)];
    assert_eq!(names(&plan(&request(8), &servers).unwrap()), [1, 2]);
}

/// A swarm as the property tests draw it, with everything that a route depends on.
#[derive(Debug, Clone)]
struct Case {
    request: RouteRequest,
    servers: Vec<Announcement>,
}

const BLOCKS: u32 = 5;

fn cases() -> impl Strategy<Value = Case> {
    let span = (0u32..BLOCKS, 1u32..=BLOCKS);
    let server = (span, 2.0f32..1_000.0, 0u32..3, any::<bool>(), 0u64..200_000);
    let pairs = || proptest::collection::vec((1u8..7, 1u8..7, 0u64..300), 0..8);
    (
        proptest::collection::vec(server, 1..6),
        (pairs(), pairs(), pairs()),
        proptest::collection::vec((1u8..7, 0u64..200), 0..6),
        (any::<bool>(), any::<bool>(), 0u32..20_000),
    )
        .prop_map(
            |(servers, (said, measured, unreachable), own, (before, after, token_bytes))| {
                let mut servers: Vec<_> = servers
                    .into_iter()
                    .zip(1..)
                    .map(|(((start, count), rate, queue, room, network), name)| {
                        let mut server = super::tests::server(name, start, start + count, rate);
                        server.queue_depth = queue;
                        server.kv_tokens_free = if room { 100 } else { 99 };
                        server.throughput.network_bytes_per_second = network;
                        server
                    })
                    .collect();
                for (from, to, round_trip) in said {
                    if let Some(server) = servers.iter_mut().find(|of| of.peer == peer(from)) {
                        let next = NextHopLatency { peer: peer(to), round_trip: ms(round_trip) };
                        server.next_hops.push(next);
                    }
                }
                let mut request = RouteRequest { token_bytes, ..request(BLOCKS) };
                request.before = before.then_some(peer(1));
                request.after = after.then_some(peer(5));
                let costs = &mut request.costs;
                costs.round_trips = own.iter().map(|(of, trip)| (peer(*of), ms(*trip))).collect();
                for (from, to, round_trip) in measured.into_iter().take(2) {
                    costs.link_round_trips.insert((peer(from), peer(to)), ms(round_trip));
                }
                costs.unreachable = unreachable
                    .iter()
                    .map(|(from, to, _)| (peer(*from), peer(*to)))
                    .take(3)
                    .collect();
                Case { request, servers }
            },
        )
}

/// One end of a way: a server, of which the announcement may be unknown, or the client.
type End<'a> = Option<(PeerId, Option<&'a Announcement>)>;

impl Case {
    fn find(&self, peer: PeerId) -> Option<&Announcement> {
        self.servers.iter().find(|server| server.peer == peer)
    }

    /// Seconds of the way, without computing; infinite where there is none.
    fn way(&self, from: End<'_>, to: End<'_>) -> f64 {
        let costs = &self.request.costs;
        let half = |trip: Duration| (trip / 2).min(DELAY_MAX).as_secs_f64();
        let own = |peer| costs.round_trips.get(&peer).map(|trip| half(*trip));
        match (from, to) {
            (None, None) => 0.0,
            (None, Some((server, _))) | (Some((server, _)), None) => own(server).unwrap_or(0.018),
            (Some((from, earlier)), Some((to, later))) => {
                if costs.unreachable.contains(&(from, to)) {
                    return f64::INFINITY;
                }
                let said = |by: Option<&Announcement>, of| {
                    by?.next_hops.iter().find(|next| next.peer == of).map(|next| next.round_trip)
                };
                let measured = costs.link_round_trips.get(&(from, to)).copied();
                match measured.or(said(earlier, to)).or(said(later, from)) {
                    Some(trip) => half(trip),
                    None => own(from).unwrap_or(0.009) + own(to).unwrap_or(0.009),
                }
            }
        }
    }

    /// Seconds of a whole route, hop by hop.
    fn seconds(&self, hops: &[(&Announcement, Span)]) -> f64 {
        let request = &self.request;
        let end = |peer: Option<PeerId>| peer.map(|peer| (peer, self.find(peer)));
        let (mut seconds, mut at) = (0.0, end(request.before));
        for (server, span) in hops {
            let here = Some((server.peer, Some(*server)));
            let network = cost::transfer(server, request.token_bytes) * 2;
            let wait = request.costs.wait(server, request.tokens_max);
            let compute = request.costs.compute(server, *span);
            seconds += self.way(at, here) + (network + wait + compute).as_secs_f64();
            at = here;
        }
        seconds + self.way(at, end(request.after))
    }

    /// The least time over all ways to tile the blocks from `start` on with unused servers.
    fn brute_force<'a>(&'a self, hops: &mut Vec<(&'a Announcement, Span)>, start: u32) -> f64 {
        if start == BLOCKS {
            return self.seconds(hops);
        }
        let mut best = f64::INFINITY;
        for server in &self.servers {
            let at_end = [self.request.before, self.request.after].contains(&Some(server.peer));
            let is_used = hops.iter().any(|(hop, _)| hop.peer == server.peer);
            if at_end || is_used || !server.span.contains(start) {
                continue;
            }
            for stop in start + 1..=server.span.end().min(BLOCKS) {
                hops.push((server, Span::new(start, stop).unwrap()));
                best = best.min(self.brute_force(hops, stop));
                hops.pop();
            }
        }
        best
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Also where a shortest path would return to a server.
    #[test]
    fn a_route_is_found_where_there_is_one_and_is_the_best_but_for_the_spread(
        case in cases(),
        seed in any::<u64>(),
    ) {
        let best = case.brute_force(&mut Vec::new(), 0);
        let route = plan_route(&case.request, &case.servers, &mut Random::new(seed));
        prop_assert_eq!(route.is_ok(), best.is_finite());
        let Ok(route) = route else { return Ok(()) };
        let hops: Vec<_> =
            route.hops().iter().map(|hop| (case.find(hop.peer).unwrap(), hop.blocks)).collect();
        let taken = case.seconds(&hops);
        prop_assert!(taken <= best * (1.0 + HERD_SPREAD) + 1e-6, "{taken} of {best}: {route}");
        let servers: Vec<_> = case.servers.iter().collect();
        let graph = Graph::new(&case.request, &servers, 0.0, &mut Random::new(0));
        let expected = graph.seconds(&visits_of(&graph, &route).unwrap());
        prop_assert!((expected - taken).abs() < 1e-6, "{expected} is not {taken}: {route}");
    }

    #[test]
    fn without_the_spread_the_route_is_the_best(case in cases()) {
        let best = case.brute_force(&mut Vec::new(), 0);
        let servers: Vec<_> = case.servers.iter().collect();
        let graph = Graph::new(&case.request, &servers, 0.0, &mut Random::new(0));
        let found = best_visits(&graph).map_or(f64::INFINITY, |visits| graph.seconds(&visits));
        prop_assert!(found.is_infinite() && best.is_infinite() || (found - best).abs() < 1e-6);
    }

    /// With servers so near each other that the shortest path keeps returning.
    #[test]
    fn the_route_is_the_best_also_where_paths_return(
        spans in proptest::collection::vec((0u32..BLOCKS, 1u32..4, 0usize..4), 1..6),
    ) {
        let servers: Vec<_> = [(0, BLOCKS, 1)]
            .into_iter()
            .chain(spans)
            .zip(1..)
            .map(|((start, count, rate), name)| {
                server(name, start, start + count, [2.0, 5.0, 20.0, 1_000.0][rate])
            })
            .collect();
        let mut request = request(BLOCKS);
        request.costs.round_trips = (1..8).map(|name| (peer(name), ms(10))).collect();
        let case = Case { request, servers };
        let best = case.brute_force(&mut Vec::new(), 0);
        let servers: Vec<_> = case.servers.iter().collect();
        let graph = Graph::new(&case.request, &servers, 0.0, &mut Random::new(0));
        let visits = best_visits(&graph).unwrap();
        prop_assert!((graph.seconds(&visits) - best).abs() < 1e-6, "{best}: {visits:?}");
    }
}
