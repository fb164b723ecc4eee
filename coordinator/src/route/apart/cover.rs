//! Servers divided into groups each of which serves every block.

use std::collections::BTreeSet;

use umbel_protocol::PeerId;
use umbel_protocol::announcement::Announcement;

use super::super::graph::usable;
use super::super::plan::RouteRequest;

/// Up to `count` groups: as many as the block has servers that has the fewest.
///
/// The group that has come least far is given the server that can be entered there and reaches furthest,
/// until all are through. Of any other group only the last server serves the block where it stands, and
/// of its own none does, so that with as many servers of each block as there are groups one is left.
pub(super) fn covers(
    request: &RouteRequest,
    servers: &[&Announcement],
    count: usize,
) -> Vec<BTreeSet<PeerId>> {
    let mut unused = usable(request, servers);
    let serving = |block: u32| unused.iter().filter(move |(_, span)| span.contains(block)).count();
    let depth = request.blocks.blocks().map(serving).min().unwrap_or_default();
    let mut groups = vec![(request.blocks.start(), BTreeSet::new()); depth.min(count)];
    while let Some((end, group)) = groups.iter_mut().min_by_key(|(end, _)| *end)
        && *end < request.blocks.end()
    {
        let entered = unused.iter().enumerate().filter(|(_, (_, span))| span.contains(*end));
        let furthest = entered.max_by_key(|(_, (_, span))| span.end()).map(|(index, _)| index);
        let (server, span) =
            unused.swap_remove(furthest.expect("each block has a server for each group"));
        group.insert(server.peer);
        *end = span.end();
    }
    groups.into_iter().map(|(_, group)| group).collect()
}
