//! The path of least time through a graph.
//!
//! A state is a server that has computed all blocks before a boundary. From one boundary to the
//! next a server goes on, or is entered from the client, by a known way, or from the others by the
//! cheapest star. For S servers, B blocks and K known ways into each that takes O(B · S · K).

use umbel_protocol::Span;

use super::graph::Graph;

/// How many of the cheapest servers to leave are kept in order at each boundary. Those to which a
/// way is known do not count for the star; a server with more of them looks at all.
const CHEAPEST_MAX: usize = 32;

/// A path, which may return to a server that it had left.
#[derive(Debug, Clone)]
pub(super) struct Path {
    pub(super) seconds: f64,
    pub(super) visits: Vec<(usize, Span)>,
}

/// Boundaries at which a vertex may be entered: from the first up to and without the second.
pub(super) type Entry = (u32, u32);

/// How a vertex came to have computed a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// It had computed the block before too.
    Itself,
    /// It computes the first block.
    Start,
    /// It was entered from another vertex.
    Vertex(u32),
}

/// The path of least time of which each vertex is entered only where `entries` allows it.
pub(super) fn shortest_path(graph: &Graph, entries: &[Entry]) -> Option<Path> {
    let count = graph.vertices.len();
    let mut search = Search {
        graph,
        entries,
        spent: vec![f64::INFINITY; count],
        left: vec![f64::INFINITY; count],
        cheapest: Vec::with_capacity(count),
        from: Vec::with_capacity(count * graph.blocks.block_count() as usize),
    };
    for block in graph.blocks.blocks() {
        search.advance(block);
    }
    let (seconds, last) = graph
        .vertices
        .iter()
        .enumerate()
        .filter(|(_, vertex)| vertex.span.end() == graph.blocks.end())
        .map(|(index, vertex)| (search.spent[index] + vertex.last, index))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(seconds, _)| seconds.is_finite())?;
    Some(Path { seconds, visits: search.visits(last) })
}

struct Search<'a> {
    graph: &'a Graph,
    entries: &'a [Entry],
    /// Seconds until each vertex has computed all before the boundary; infinite where it cannot.
    spent: Vec<f64>,
    /// The same until it has sent the result, at the present boundary.
    left: Vec<f64>,
    /// The cheapest by `left` and the star, in order, and then the others.
    cheapest: Vec<(f64, usize)>,
    /// For each block, how each vertex came to it.
    from: Vec<Came>,
}

impl Search<'_> {
    /// Lets every vertex that serves `block` compute it.
    fn advance(&mut self, block: u32) {
        let graph = self.graph;
        let is_first = block == graph.blocks.start();
        self.leave(block);
        let soonest = self.left.iter().copied().fold(f64::INFINITY, f64::min);
        for (index, vertex) in graph.vertices.iter().enumerate() {
            let (mut spent, mut from) = (self.spent[index], Came::Itself);
            let (first, end) = self.entries[index];
            let may_enter = (first..end).contains(&block);
            if may_enter && is_first {
                (spent, from) = (vertex.first, Came::Start);
            } else if may_enter
                && let Some((by_way, other)) = self.cheapest_way_into(index, soonest, spent)
            {
                (spent, from) = (by_way, Came::Vertex(other));
            }
            self.spent[index] = spent + vertex.per_block;
            self.from.push(from);
        }
    }

    /// Computes what it costs to leave each vertex at the boundary before `block`, and takes those
    /// out that do not serve `block`.
    fn leave(&mut self, block: u32) {
        self.cheapest.clear();
        for (index, vertex) in self.graph.vertices.iter().enumerate() {
            let left = self.spent[index] + vertex.depart;
            self.left[index] = left;
            if left.is_finite() {
                self.cheapest.push((left + vertex.star, index));
            }
            if !vertex.span.contains(block) {
                self.spent[index] = f64::INFINITY;
            }
        }
        let order = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if self.cheapest.len() > CHEAPEST_MAX {
            self.cheapest.select_nth_unstable_by(CHEAPEST_MAX, order);
        }
        let sorted = self.cheapest.len().min(CHEAPEST_MAX);
        self.cheapest[..sorted].sort_unstable_by(order);
    }

    /// From which vertex to enter `to` below `limit` seconds, and at what cost; `soonest` is the
    /// least at which any can be left.
    fn cheapest_way_into(&self, to: usize, soonest: f64, limit: f64) -> Option<(f64, u32)> {
        let vertex = &self.graph.vertices[to];
        let mut best = (limit - vertex.arrive, None);
        if let Some((left, from)) = self.cheapest_star_into(to, best.0 - vertex.star) {
            best = (left + vertex.star, Some(from));
        }
        for way in self.graph.ways_into(to) {
            // The ways get longer from here on.
            if soonest + way.delay >= best.0 {
                break;
            }
            let seconds = self.left[way.from] + way.delay;
            if seconds < best.0 {
                best = (seconds, Some(way.from));
            }
        }
        let from = u32::try_from(best.1?).expect("far fewer servers than 32 bits count");
        Some((best.0 + vertex.arrive, from))
    }

    /// The cheapest vertex below `limit` of which nothing is known about the way to `to`.
    fn cheapest_star_into(&self, to: usize, limit: f64) -> Option<(f64, usize)> {
        let is_star = |&&(left, from): &&(f64, usize)| {
            left < limit && from != to && !self.graph.is_known(from, to)
        };
        let (sorted, others) = self.cheapest.split_at(self.cheapest.len().min(CHEAPEST_MAX));
        for candidate in sorted {
            if candidate.0 >= limit {
                return None;
            }
            if is_star(&candidate) {
                return Some(*candidate);
            }
        }
        others.iter().filter(is_star).min_by(|a, b| a.0.total_cmp(&b.0)).copied()
    }

    fn visits(&self, last: usize) -> Vec<(usize, Span)> {
        let (start, count) = (self.graph.blocks.start(), self.graph.vertices.len());
        let (mut visits, mut vertex, mut end) = (Vec::new(), last, self.graph.blocks.end());
        for block in self.graph.blocks.blocks().rev() {
            let from = self.from[(block - start) as usize * count + vertex];
            if from == Came::Itself {
                continue;
            }
            let span = Span::new(block, end).expect("the end is beyond each block so far");
            visits.push((vertex, span));
            end = block;
            if let Came::Vertex(earlier) = from {
                vertex = earlier as usize;
            }
        }
        visits.reverse();
        visits
    }
}
