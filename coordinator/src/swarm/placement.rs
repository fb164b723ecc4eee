//! Which span a server should take.

use umbel_protocol::Span;
use umbel_protocol::announcement::Announcement;

/// The throughput, in tokens a second, that an announcement without a measurement counts for.
const THROUGHPUT_UNKNOWN: f32 = 1.0;

/// The `count` consecutive blocks of `block_count` where the swarm is thinnest.
///
/// Of all windows, the one whose throughputs per block, sorted, are lexicographically least: it
/// holds the weakest block, then the second weakest, and so on (the rule of Petals,
/// `block_selection.py`). Among equals the first wins. Servers that are draining do not count.
///
/// `None` where `count` or `block_count` is 0. More blocks than there are means all of them.
#[must_use]
pub fn thinnest_span<'a>(
    block_count: u32,
    count: u32,
    servers: impl IntoIterator<Item = &'a Announcement>,
) -> Option<Span> {
    let count = count.min(block_count);
    let throughputs = throughput_per_block(block_count, servers);
    let window = |start: u32| {
        let mut window = throughputs[start as usize..(start + count) as usize].to_vec();
        window.sort_by(f32::total_cmp);
        window
    };
    let start = (0..=block_count - count).min_by(|&a, &b| {
        window(a).iter().map(|v| v.to_bits()).cmp(window(b).iter().map(|v| v.to_bits()))
    })?;
    Span::new(start, start + count).ok()
}

/// Tokens a second that pass through each block, summed over its servers.
#[must_use]
pub fn throughput_per_block<'a>(
    block_count: u32,
    servers: impl IntoIterator<Item = &'a Announcement>,
) -> Vec<f32> {
    let mut throughputs = vec![0.0; block_count as usize];
    for server in servers.into_iter().filter(|server| !server.draining) {
        let decode = server.throughput.decode_tokens_per_second;
        let decode = if decode > 0.0 { decode } else { THROUGHPUT_UNKNOWN };
        for block in server.span.blocks() {
            if let Some(throughput) = throughputs.get_mut(block as usize) {
                *throughput += decode;
            }
        }
    }
    throughputs
}
