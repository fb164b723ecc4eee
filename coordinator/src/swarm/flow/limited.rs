//! Throughput where networks limit servers too: a maximum flow by the method of Dinic ("Algorithm
//! for solution of a problem of maximum flow in networks with power estimation", 1970).

use std::collections::VecDeque;

use umbel_protocol::Span;

use super::{Bottleneck, Supply};

/// What a server gives to a swarm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Server {
    /// The blocks that it serves.
    pub span: Span,
    /// Block-tokens a second, shared by its blocks.
    pub rate: f64,
    /// Tokens a second that its network lets through, at any one of its blocks; `None` where
    /// computing is all that limits it.
    pub passing_max: Option<f64>,
}

/// How much of a flow may be missing and still count as all of it.
const TOLERANCE: f64 = 1e-9;

/// What limits these servers together.
///
/// Networks are looked at only where one is slower than the throughput without them: that is a
/// matter of few servers, because a whole swarm is faster than each of its servers.
#[must_use]
pub fn throughput(block_count: u32, servers: &[Server]) -> Bottleneck {
    let mut supply = Supply::new(block_count);
    for server in servers {
        supply.add(server.span, server.rate);
    }
    let mut bottleneck = supply.bottleneck();
    let binds = |server: &Server| server.passing_max.is_some_and(|passing| passing < server.rate);
    if !servers
        .iter()
        .any(|server| binds(server) && server.passing_max < Some(bottleneck.tokens_per_second))
    {
        return bottleneck;
    }
    // Each round finds a set of blocks that cannot be given the throughput of the round before.
    loop {
        let mut network = Network::new(block_count, servers, bottleneck.tokens_per_second);
        network.saturate();
        let blocks = network.blocks_cut_off(servers.len());
        let supply: f64 = servers.iter().map(|server| supplied(server, &blocks)).sum();
        let count = f64::from(u32::try_from(blocks.len()).expect("no more than the blocks"));
        if blocks.is_empty() || supply >= bottleneck.tokens_per_second * count * (1.0 - TOLERANCE) {
            return bottleneck;
        }
        bottleneck = Bottleneck { tokens_per_second: supply / count, blocks };
    }
}

/// The most that a server can give to all of these blocks together.
fn supplied(server: &Server, blocks: &[u32]) -> f64 {
    let held = blocks.iter().filter(|block| server.span.contains(**block)).count();
    let held = f64::from(u32::try_from(held).expect("no more than the blocks"));
    let passing = server.passing_max.map_or(f64::INFINITY, |passing| passing.max(0.0));
    if held > 0.0 { server.rate.max(0.0).min(passing * held) } else { 0.0 }
}

#[derive(Debug)]
struct Edge {
    to: usize,
    room: f64,
}

/// Source, servers, blocks, sink, in this order; edge `i ^ 1` is the way back of edge `i`.
#[derive(Debug)]
struct Network {
    edges: Vec<Edge>,
    leaving: Vec<Vec<usize>>,
    /// Less room than this is none.
    least: f64,
}

const SOURCE: usize = 0;

impl Network {
    fn new(block_count: u32, servers: &[Server], throughput: f64) -> Self {
        let sink = 1 + servers.len() + block_count as usize;
        let least = throughput * TOLERANCE;
        let leaving = vec![Vec::new(); sink + 1];
        let mut network = Self { edges: Vec::new(), leaving, least };
        for (index, server) in servers.iter().enumerate() {
            network.join(SOURCE, 1 + index, server.rate.max(0.0));
            let passing = server.passing_max.unwrap_or(server.rate).max(0.0);
            for block in server.span.start()..server.span.end().min(block_count) {
                network.join(1 + index, 1 + servers.len() + block as usize, passing);
            }
        }
        for block in 0..block_count as usize {
            network.join(1 + servers.len() + block, sink, throughput);
        }
        network
    }

    fn join(&mut self, from: usize, to: usize, room: f64) {
        self.leaving[from].push(self.edges.len());
        self.edges.push(Edge { to, room });
        self.leaving[to].push(self.edges.len());
        self.edges.push(Edge { to: from, room: 0.0 });
    }

    fn saturate(&mut self) {
        let sink = self.leaving.len() - 1;
        loop {
            let levels = self.levels();
            if levels[sink].is_none() {
                return;
            }
            let mut tried = vec![0; self.leaving.len()];
            while self.push(SOURCE, f64::INFINITY, &levels, &mut tried) > 0.0 {}
        }
    }

    /// Steps from the source to each node, along edges with room.
    fn levels(&self) -> Vec<Option<usize>> {
        let mut levels = vec![None; self.leaving.len()];
        levels[SOURCE] = Some(0);
        let mut queue = VecDeque::from([SOURCE]);
        while let Some(node) = queue.pop_front() {
            let next = levels[node].map(|level| level + 1);
            for edge in self.leaving[node].iter().map(|edge| &self.edges[*edge]) {
                if edge.room > self.least && levels[edge.to].is_none() {
                    levels[edge.to] = next;
                    queue.push_back(edge.to);
                }
            }
        }
        levels
    }

    /// Sends up to `most` from `node` to the sink; what arrived. A path has one step more than
    /// there are levels, and there are at most twice as many levels as servers and blocks.
    fn push(
        &mut self,
        node: usize,
        most: f64,
        levels: &[Option<usize>],
        tried: &mut [usize],
    ) -> f64 {
        if node == self.leaving.len() - 1 {
            return most;
        }
        while let Some(&index) = self.leaving[node].get(tried[node]) {
            let Edge { to, room } = self.edges[index];
            if room > self.least && levels[to] == levels[node].map(|level| level + 1) {
                let pushed = self.push(to, most.min(room), levels, tried);
                if pushed > 0.0 {
                    self.edges[index].room -= pushed;
                    self.edges[index ^ 1].room += pushed;
                    return pushed;
                }
            }
            tried[node] += 1;
        }
        0.0
    }

    /// The blocks on the far side of the least cut, after the network is saturated.
    fn blocks_cut_off(&self, server_count: usize) -> Vec<u32> {
        let levels = self.levels();
        let blocks = &levels[1 + server_count..levels.len() - 1];
        (0u32..).zip(blocks).filter(|(_, level)| level.is_none()).map(|(block, _)| block).collect()
    }
}
