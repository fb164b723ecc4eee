//! Throughputs, against a plain maximum flow.

use proptest::prelude::*;

use super::*;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn server(start: u32, end: u32, rate: f64) -> Server {
    Server { span: span(start, end), rate, passing_max: None }
}

#[test]
fn a_server_shares_its_rate_among_its_blocks() {
    let found = throughput(4, &[server(0, 4, 100.0)]);
    assert_eq!(found, Bottleneck { tokens_per_second: 25.0, blocks: vec![0, 1, 2, 3] });
}

#[test]
fn a_block_without_a_server_stops_everything() {
    let found = throughput(4, &[server(0, 2, 100.0), server(3, 4, 100.0)]);
    assert_eq!(found, Bottleneck { tokens_per_second: 0.0, blocks: vec![2] });
}

#[test]
fn overlapping_servers_leave_each_other_what_the_other_cannot_do() {
    // The second alone holds block 2, so the first takes over blocks 0 and 1.
    let found = throughput(3, &[server(0, 2, 20.0), server(0, 3, 10.0)]);
    assert!((found.tokens_per_second - 10.0).abs() < 1e-9, "{found:?}");
}

#[test]
fn a_slow_network_limits_its_server() {
    let slow = Server { passing_max: Some(3.0), ..server(0, 2, 100.0) };
    let found = throughput(2, &[slow, server(1, 2, 5.0)]);
    assert_eq!(found, Bottleneck { tokens_per_second: 3.0, blocks: vec![0] });
}

#[test]
fn a_model_or_a_swarm_that_is_empty_is_no_trouble() {
    assert_eq!(throughput(0, &[]).tokens_per_second, f64::INFINITY);
    assert_eq!(throughput(2, &[]), Bottleneck { tokens_per_second: 0.0, blocks: vec![0, 1] });
    assert_eq!(throughput(1, &[server(0, 1, f64::NAN)]).tokens_per_second, 0.0);
}

/// Rates that are whole, so that the plain method is exact.
fn swarms() -> impl Strategy<Value = (u32, Vec<Server>)> {
    (1u32..9).prop_flat_map(|block_count| {
        let server = (0..block_count, 1..=block_count, 1u32..30, prop::option::of(1u32..20))
            .prop_map(move |(start, length, rate, passing)| Server {
                span: span(start, (start + length).min(block_count)),
                rate: f64::from(rate),
                passing_max: passing.map(f64::from),
            });
        (Just(block_count), prop::collection::vec(server, 0..9))
    })
}

/// Whether every block can be given `demand`, by augmenting one path at a time, in integers.
fn plain_flow(block_count: u32, servers: &[Server], scale: i64, demand: i64) -> bool {
    let blocks = block_count as usize;
    let sink = 1 + servers.len() + blocks;
    let mut room = vec![vec![0i64; sink + 1]; sink + 1];
    let whole = |value: f64| format!("{value:.0}").parse::<i64>().unwrap() * scale;
    for (index, server) in servers.iter().enumerate() {
        room[0][1 + index] = whole(server.rate);
        for block in server.span.blocks() {
            room[1 + index][1 + servers.len() + block as usize] =
                whole(server.passing_max.unwrap_or(server.rate));
        }
    }
    for block in 0..blocks {
        room[1 + servers.len() + block][sink] = demand;
    }
    let mut flow = 0;
    while let Some(path) = augmenting_path(&room, sink) {
        let most = path.windows(2).map(|step| room[step[0]][step[1]]).min().unwrap();
        for step in path.windows(2) {
            room[step[0]][step[1]] -= most;
            room[step[1]][step[0]] += most;
        }
        flow += most;
    }
    flow == demand * i64::from(block_count)
}

fn augmenting_path(room: &[Vec<i64>], sink: usize) -> Option<Vec<usize>> {
    let mut from = vec![None; sink + 1];
    let mut queue = std::collections::VecDeque::from([0]);
    while let Some(node) = queue.pop_front() {
        for next in 1..=sink {
            if room[node][next] > 0 && from[next].is_none() {
                from[next] = Some(node);
                queue.push_back(next);
            }
        }
    }
    let mut path = vec![sink];
    while let Some(before) = from[*path.last().unwrap()] {
        path.push(before);
    }
    path.reverse();
    (path.len() > 1).then_some(path)
}

proptest! {
    #[test]
    fn the_throughput_is_that_of_a_plain_maximum_flow((block_count, servers) in swarms()) {
        let found = throughput(block_count, &servers);
        // In units of a thousandth: a little less can be carried, a little more cannot.
        let scale = 1000;
        let found = format!("{:.0}", found.tokens_per_second * 1000.0).parse::<i64>().unwrap();
        prop_assert!(plain_flow(block_count, &servers, scale, (found - 1).max(0)));
        prop_assert!(!plain_flow(block_count, &servers, scale, found + 1));
    }

    #[test]
    fn the_bottleneck_is_a_set_of_blocks_that_cannot_be_given_more(
        (block_count, mut servers) in swarms(),
    ) {
        for server in &mut servers {
            server.passing_max = None;
        }
        let found = throughput(block_count, &servers);
        let touches = |server: &&Server| found.blocks.iter().any(|b| server.span.contains(*b));
        let rate: f64 = servers.iter().filter(touches).map(|server| server.rate).sum();
        let count = f64::from(u32::try_from(found.blocks.len()).unwrap());
        prop_assert!((found.tokens_per_second - rate / count).abs() < 1e-9);
    }

    #[test]
    fn the_least_level_is_the_throughput_and_levels_spend_what_there_is(
        (block_count, servers) in swarms(),
    ) {
        let mut supply = Supply::new(block_count);
        for server in &servers {
            supply.add(server.span, server.rate);
        }
        let levels = supply.levels();
        let least = levels.iter().copied().fold(f64::INFINITY, f64::min);
        prop_assert!((least - supply.throughput()).abs() < 1e-9);
        prop_assert!((levels.iter().sum::<f64>() - supply.rate()).abs() < 1e-6);
    }

    #[test]
    fn what_was_added_can_be_taken_away((block_count, servers) in swarms(), rate in 0.0f64..1e6) {
        let mut supply = Supply::new(block_count);
        for server in &servers {
            supply.add(server.span, server.rate * rate);
        }
        for server in &servers {
            supply.remove(server.span, server.rate * rate);
        }
        prop_assert_eq!(supply, Supply::new(block_count));
    }
}
