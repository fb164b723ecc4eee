//! Rings and chains of servers that change places.

use proptest::prelude::*;

use super::super::ServedSpan;
use super::*;
use umbel_protocol::PeerId;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

/// A server at `home` that is to be at `at`.
fn placed(home: Span, at: Span, held_max: u32) -> Placed {
    let peer = PeerId::from_public_key([0; 32]);
    let server =
        ServedSpan { peer, span: Some(home), moving_to: None, rate: 1.0, held_max, joined: None };
    Placed { at, ..Placed::new(&server).unwrap() }
}

fn stays(home: Span) -> Placed {
    placed(home, home, 0)
}

fn part(server: usize, via: Option<Span>) -> Part {
    Part { server, via }
}

#[test]
fn in_a_chain_whoever_is_replaced_goes_next() {
    // The first follows the second, whose place is taken by nobody, into a hole.
    let servers =
        [placed(span(0, 4), span(2, 6), 4), placed(span(4, 6), span(6, 8), 2), stays(span(0, 2))];
    assert_eq!(arrange(8, &servers), Some(vec![part(0, None), part(1, None)]));
}

#[test]
fn in_a_ring_one_serves_more_for_a_while() {
    let servers = [placed(span(0, 4), span(2, 6), 6), placed(span(4, 6), span(0, 2), 2)];
    assert_eq!(arrange(6, &servers), Some(vec![part(0, Some(span(0, 6))), part(1, None)]));
}

#[test]
fn a_neighbour_helps_those_who_have_no_room() {
    let servers = [
        placed(span(0, 3), span(6, 9), 3),
        stays(span(3, 4)),
        placed(span(4, 6), span(4, 6), 4),
        placed(span(6, 9), span(0, 3), 3),
    ];
    assert_eq!(arrange(9, &servers), None);
    let mut servers = servers;
    servers[2].held_max = 6;
    let helped = arrange(9, &servers).unwrap();
    assert_eq!(helped[0], part(2, Some(span(4, 9))));
    assert_eq!(helped.len(), 3);
}

#[test]
fn who_is_needed_and_alone_cannot_go() {
    assert_eq!(arrange(6, &[placed(span(0, 3), span(3, 6), 3)]), None);
}

proptest! {
    /// Plays every arrangement, in its order: no block is left on the way.
    #[test]
    fn no_block_is_left_on_the_way(
        servers in prop::collection::vec((0u32..12, 0u32..12, 1u32..6, any::<bool>()), 1..9),
    ) {
        let at = |start: u32, length: u32| span(start.min(12 - length), start.min(12 - length) + length);
        let servers: Vec<Placed> = servers
            .iter()
            .map(|&(home, to, length, both)| {
                placed(at(home, length), at(to, length), if both { 2 * length } else { length })
            })
            .collect();
        let Some(parts) = arrange(12, &servers) else { return Ok(()) };
        let served = |spans: &[Span]| -> Vec<bool> {
            (0..12).map(|block| spans.iter().any(|span| span.contains(block))).collect()
        };
        let keeps = |before: &[Span], after: &[Span]| {
            served(before).iter().zip(served(after)).all(|(before, after)| after || !before)
        };
        let mut spans: Vec<Span> = servers.iter().map(|server| server.home).collect();
        // Nobody waits for the last step of a server that served more, unless others need it.
        for part in &parts {
            let before = spans.clone();
            spans[part.server] = part.via.unwrap_or(servers[part.server].at);
            prop_assert!(part.via.is_none_or(|via| via.covers(servers[part.server].home)));
            prop_assert!(keeps(&before, &spans), "{parts:?}");
        }
        for (server, span) in servers.iter().zip(&spans) {
            let via = parts.iter().any(|part| part.via == Some(*span));
            prop_assert!(*span == server.at || via);
            prop_assert!(span.block_count() <= server.held_max.max(server.at.block_count()));
        }
    }
}
