//! How servers change places without leaving a block.
//!
//! A server leaves a block only when another holds it. A chain of moves sorts itself out by that
//! rule: whoever is replaced goes next. In a ring nobody can begin, so one of its servers, or a
//! neighbour, serves more than usual for a while: its own blocks and those of a server that can
//! then leave. Every state on the way is one span for each server, so there is a route all along.

use umbel_protocol::Span;

use super::plan::Placed;

/// What one server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Which one.
    pub(super) server: usize,
    /// More blocks, its own among them, that it serves until the others have come.
    pub(super) via: Option<Span>,
}

/// How everybody gets from its home to where it is to be: who moves, and who helps meanwhile.
/// `None` where it cannot be done.
pub(super) fn arrange(block_count: u32, servers: &[Placed]) -> Option<Vec<Part>> {
    let mut transit = Transit::new(block_count, servers);
    while !transit.pending.is_empty() {
        if !transit.one_arrives() && !transit.one_helps() {
            return None;
        }
    }
    Some(transit.parts)
}

struct Transit<'a> {
    servers: &'a [Placed],
    /// How many servers hold each block until another has come.
    held: Vec<u32>,
    /// Servers that have not left their homes.
    pending: Vec<usize>,
    parts: Vec<Part>,
}

/// A server that could serve more for a while, and at what cost.
struct Help {
    server: usize,
    via: Span,
    /// Blocks that it loads for nothing else.
    extra: u32,
}

impl<'a> Transit<'a> {
    fn new(block_count: u32, servers: &'a [Placed]) -> Self {
        let pending: Vec<usize> = (0..servers.len()).filter(|of| servers[*of].moves()).collect();
        let mut transit =
            Self { servers, held: vec![0; block_count as usize], pending, parts: Vec::new() };
        for server in servers {
            let held =
                if server.moves() { server.home.intersection(server.at) } else { server.kept };
            transit.hold(held);
        }
        transit
    }

    fn hold(&mut self, span: Option<Span>) {
        for block in span.into_iter().flat_map(Span::blocks) {
            self.held[block as usize] += 1;
        }
    }

    /// The blocks that a server would leave without anybody to hold them, and what is between.
    fn missing(&self, server: usize) -> Option<Span> {
        let Placed { home, at, .. } = self.servers[server];
        let alone = |block: &u32| !at.contains(*block) && self.held[*block as usize] == 0;
        let (first, last) = (home.blocks().find(alone)?, home.blocks().rev().find(alone)?);
        Span::new(first, last + 1).ok()
    }

    /// Lets a server go that nobody needs at home.
    fn one_arrives(&mut self) -> bool {
        let free = (0..self.pending.len()).find(|of| self.missing(self.pending[*of]).is_none());
        let Some(free) = free else { return false };
        let server = self.pending.remove(free);
        self.parts.push(Part { server, via: None });
        let Placed { home, at, .. } = self.servers[server];
        for block in at.blocks().filter(|block| !home.contains(*block)) {
            self.held[block as usize] += 1;
        }
        true
    }

    /// Lets the one for which it is least work serve more for a while, so that another can leave.
    fn one_helps(&mut self) -> bool {
        let helps = self.pending.iter().flat_map(|stuck| {
            (0..self.servers.len()).filter_map(|server| self.help(server, *stuck))
        });
        let Some(Help { server, via, .. }) = helps.min_by_key(|help| (help.extra, help.server))
        else {
            return false;
        };
        self.pending.retain(|of| *of != server);
        self.parts.push(Part { server, via: Some(via) });
        let Placed { home, at, .. } = self.servers[server];
        let before = home.intersection(at);
        for block in via.blocks().filter(|block| before.is_none_or(|of| !of.contains(*block))) {
            self.held[block as usize] += 1;
        }
        true
    }

    /// What this server would have to serve for the stuck one to leave; the stuck one itself would
    /// serve its old blocks and its new ones.
    fn help(&self, server: usize, stuck: usize) -> Option<Help> {
        let Placed { home, at, held_max, .. } = self.servers[server];
        if self.parts.iter().any(|part| part.server == server) {
            return None;
        }
        let needed = if server == stuck { at } else { self.missing(stuck)? };
        let via = hull(home, needed);
        let loaded = via.block_count() + at.block_count() - shared(via, at);
        let known = home.block_count() + at.block_count() - shared(home, at);
        (loaded <= held_max).then_some(Help { server, via, extra: loaded - known })
    }
}

fn hull(a: Span, b: Span) -> Span {
    Span::new(a.start().min(b.start()), a.end().max(b.end())).expect("it has the blocks of both")
}

fn shared(a: Span, b: Span) -> u32 {
    a.intersection(b).map_or(0, Span::block_count)
}

#[cfg(test)]
mod tests;
