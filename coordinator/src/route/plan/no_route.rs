//! Why there is no route.

use std::fmt;

use umbel_protocol::Span;
use umbel_protocol::announcement::Announcement;

use super::RouteRequest;
use crate::route::graph;

/// No route tiles the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoute {
    /// The blocks that were to be covered.
    pub blocks: Span,
    /// Those of them that no usable server serves, in order. None where all are served, but
    /// servers that would have to follow each other cannot reach each other.
    pub missing: Vec<Span>,
}

impl NoRoute {
    pub(in crate::route) fn of(request: &RouteRequest, servers: &[&Announcement]) -> Self {
        let usable = graph::usable(request, servers);
        let mut missing: Vec<Span> = Vec::new();
        for block in request.blocks.blocks() {
            if usable.iter().any(|(_, span)| span.contains(block)) {
                continue;
            }
            match missing.last_mut() {
                Some(last) if last.end() == block => {
                    *last = Span::new(last.start(), block + 1).expect("it grows");
                }
                Some(_) | None => missing.push(Span::new(block, block + 1).expect("one block")),
            }
        }
        Self { blocks: request.blocks, missing }
    }
}

impl fmt::Display for NoRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing.as_slice() {
            [] => {
                return write!(f, "the servers of blocks {} cannot reach each other", self.blocks);
            }
            [one] if one.block_count() == 1 => {
                write!(f, "no server of the swarm serves block {}", one.start())?;
            }
            spans => {
                f.write_str("no server of the swarm serves blocks ")?;
                for (index, span) in spans.iter().enumerate() {
                    write!(f, "{}{span}", if index == 0 { "" } else { ", " })?;
                }
            }
        }
        write!(f, " (of {})", self.blocks)
    }
}

impl std::error::Error for NoRoute {}
