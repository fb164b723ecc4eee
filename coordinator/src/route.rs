//! Routes: ordered (peer, span) hops that tile the blocks which are to be covered.

pub mod apart;
pub mod cost;
mod graph;
mod held;
mod path;
pub mod plan;
#[cfg(test)]
mod specimen;
pub mod throughput;

use std::collections::BTreeSet;
use std::fmt;

use umbel_protocol::{PeerId, Span};

pub use apart::plan_routes_apart;
pub use cost::Costs;
pub use held::HeldPrefix;
pub use plan::{NoRoute, RouteRequest, plan_route};
pub use throughput::plan_throughput_route;

/// A peer and the blocks that it computes on a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// Who computes.
    pub peer: PeerId,
    /// What it computes: part or all of what it serves.
    pub blocks: Span,
}

/// Hops of different peers whose spans tile some blocks in order: those of a whole model, or of
/// the gap that a failed hop left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route(Vec<Hop>);

impl Route {
    /// The route of these hops, if they tile `blocks` in order and no peer has two of them.
    #[must_use]
    pub fn new(hops: Vec<Hop>, blocks: Span) -> Option<Self> {
        let mut covered = blocks.start();
        for hop in &hops {
            if hop.blocks.start() != covered {
                return None;
            }
            covered = hop.blocks.end();
        }
        let peers: BTreeSet<_> = hops.iter().map(|hop| hop.peer).collect();
        (covered == blocks.end() && peers.len() == hops.len()).then_some(Self(hops))
    }

    /// The hops in order; at least one.
    #[must_use]
    pub fn hops(&self) -> &[Hop] {
        &self.0
    }

    /// The blocks that the hops tile.
    #[must_use]
    pub fn blocks(&self) -> Span {
        let (first, last) = (self.0.first(), self.0.last());
        let ends = first.zip(last).map(|(a, b)| Span::new(a.blocks.start(), b.blocks.end()));
        ends.and_then(Result::ok).expect("a route has a hop, and hops have blocks")
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, hop) in self.0.iter().enumerate() {
            let arrow = if index == 0 { "" } else { " -> " };
            write!(f, "{arrow}{} {}", hop.blocks, hop.peer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_of_different_peers_tile_the_blocks() {
        let hop = |name, start, end| Hop {
            peer: PeerId::from_public_key([name; 32]),
            blocks: Span::new(start, end).unwrap(),
        };
        let gap = Span::new(2, 6).unwrap();
        let route = Route::new(vec![hop(1, 2, 3), hop(2, 3, 6)], gap).unwrap();
        assert_eq!(route.blocks(), gap);
        for hops in [
            vec![],
            vec![hop(1, 2, 5)],
            vec![hop(1, 0, 6)],
            vec![hop(1, 2, 4), hop(2, 5, 6)],
            vec![hop(1, 2, 3), hop(2, 3, 4), hop(1, 4, 6)],
        ] {
            assert_eq!(Route::new(hops, gap), None);
        }
    }
}
