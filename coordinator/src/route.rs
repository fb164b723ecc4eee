//! Routes: ordered (peer, span) hops that tile the model.

pub mod cost;
pub mod plan;

use std::fmt;

use umbel_protocol::{PeerId, Span};

pub use plan::{NoRoute, RouteRequest, plan_route};

/// A peer and the blocks that it computes on a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// Who computes.
    pub peer: PeerId,
    /// What it computes: part or all of what it serves.
    pub blocks: Span,
}

/// Hops whose spans tile the blocks of a model in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route(Vec<Hop>);

impl Route {
    /// The route of these hops, if they tile `[0, block_count)` in order.
    #[must_use]
    pub fn new(hops: Vec<Hop>, block_count: u32) -> Option<Self> {
        let mut covered = 0;
        for hop in &hops {
            if hop.blocks.start() != covered {
                return None;
            }
            covered = hop.blocks.end();
        }
        (covered == block_count && !hops.is_empty()).then_some(Self(hops))
    }

    /// The hops in order; at least one.
    #[must_use]
    pub fn hops(&self) -> &[Hop] {
        &self.0
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
