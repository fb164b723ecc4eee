//! Times the planning of a route through 1,000 servers of a model of 80 blocks, each of which
//! announces 16 next hops.
//!
//! `cargo run --release -p umbel-coordinator --example route_timing`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::time::{Duration, Instant};

use umbel_coordinator::random::Random;
use umbel_coordinator::route::{RouteRequest, plan_route, plan_throughput_route};
use umbel_protocol::announcement::{Announcement, NextHopLatency, Throughput, UnixTime};
use umbel_protocol::{ModelId, PeerId, Span};

const SERVERS: usize = 1_000;
const BLOCKS: u32 = 80;
const RUNS: usize = 101;

fn main() {
    for (name, blocks_max) in [("1 to 20", 20), ("1 to 80", 80)] {
        let mut random = Random::new(1);
        let servers = swarm(blocks_max, &mut random);
        let mut request = RouteRequest::new(Span::new(0, BLOCKS).expect("80 blocks"), 2_048);
        request.token_bytes = 16 << 10;
        for server in &servers {
            request.costs.round_trips.insert(server.peer, milliseconds(&mut random));
        }
        let mut plan =
            || plan_route(&request, &servers, &mut random).expect("a route").hops().len();
        let (hops, median, longest) = time(&mut plan);
        println!(
            "{SERVERS} servers of {name} blocks of {BLOCKS}: median {median:?}, longest \
             {longest:?}, {hops} hops"
        );
        let mut random = Random::new(2);
        let mut plan = || {
            plan_throughput_route(&request, &servers, &mut random).expect("a route").hops().len()
        };
        let (hops, median, longest) = time(&mut plan);
        println!("  for throughput: median {median:?}, longest {longest:?}, {hops} hops");
    }
}

fn time(plan: &mut impl FnMut() -> usize) -> (usize, Duration, Duration) {
    let mut hops = 0;
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            hops = plan();
            start.elapsed()
        })
        .collect();
    times.sort();
    (hops, times[RUNS / 2], times[RUNS - 1])
}

/// Servers of random spans, speeds and distances.
fn swarm(blocks_max: usize, random: &mut Random) -> Vec<Announcement> {
    let peers: Vec<_> = (0..SERVERS).map(|_| peer(random)).collect();
    peers
        .iter()
        .map(|&peer| {
            let count = 1 + random.below(blocks_max);
            let start = random.below(BLOCKS as usize - count + 1);
            let block = |block: usize| u32::try_from(block).expect("80 blocks");
            let next_hops = (0..16)
                .map(|_| NextHopLatency {
                    peer: peers[random.below(SERVERS)],
                    round_trip: milliseconds(random),
                })
                .collect();
            Announcement {
                peer,
                model: ModelId::from_bytes([0; 32]),
                model_name: String::new(),
                span: Span::new(block(start), block(start + count)).expect("a block"),
                block_count: BLOCKS,
                addresses: Vec::new(),
                version: String::new(),
                throughput: throughput(random),
                kv_tokens_free: 8_192,
                queue_depth: u32::try_from(random.below(4)).expect("few"),
                draining: false,
                issued: UnixTime::after_epoch(Duration::ZERO),
                expires: UnixTime::after_epoch(Duration::from_secs(60)),
                next_hops,
                adapters: Vec::new(),
                moving_to: None,
                held_blocks_max: 0,
                proposal: None,
                joined: None,
                holds_ends: false,
            }
        })
        .collect()
}

fn peer(random: &mut Random) -> PeerId {
    let mut key = [0; 32];
    key.chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&random.bits().to_le_bytes()));
    PeerId::from_public_key(key)
}

fn throughput(random: &mut Random) -> Throughput {
    let steps = u16::try_from(random.below(1_000)).expect("below 1,000");
    let decode_tokens_per_second = 100.0 + f32::from(steps);
    Throughput {
        decode_tokens_per_second,
        prefill_tokens_per_second: 20.0 * decode_tokens_per_second,
        decode_batch_tokens_per_second: 4.0 * decode_tokens_per_second,
        network_bytes_per_second: 12_500_000,
    }
}

fn milliseconds(random: &mut Random) -> Duration {
    Duration::from_millis(5 + random.bits() % 200)
}
