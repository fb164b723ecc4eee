//! Where a server goes by itself, in swarms small enough to see why.

use proptest::prelude::*;

use std::time::Duration;

use umbel_protocol::ModelId;
use umbel_protocol::announcement::{Throughput, UnixTime};

use super::balance::throughput_bound;
use super::*;
use crate::swarm::flow::Supply;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn server(name: u8, start: u32, end: u32, rate: f64) -> ServedSpan {
    let peer = PeerId::from_public_key([name; 32]);
    let held_max = 2 * (end - start);
    let span = Some(span(start, end));
    ServedSpan { peer, span, moving_to: None, rate, held_max, joined: None }
}

fn own(block_limit: u32, rate: f64) -> Own<'static> {
    Own { rate, block_limit, missing_bytes: &[], bytes_per_second: 0.0 }
}

/// What a server of 12 blocks announces that has not measured itself.
fn announced(name: u8, start: u32, end: u32) -> Announcement {
    Announcement {
        peer: PeerId::from_public_key([name; 32]),
        model: ModelId::from_bytes([7; 32]),
        model_name: String::new(),
        span: span(start, end),
        block_count: 12,
        addresses: Vec::new(),
        version: String::new(),
        throughput: Throughput::default(),
        kv_tokens_free: 0,
        queue_depth: 0,
        draining: false,
        issued: UnixTime::default(),
        expires: UnixTime::after_epoch(Duration::from_secs(60)),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: true,
    }
}

/// The same of one that takes no sessions until it has loaded these blocks.
fn loading(name: u8, start: u32, end: u32) -> Announcement {
    let moving_to = Some(span(start, end));
    Announcement { draining: true, moving_to, ..announced(name, start, end) }
}

/// With a rate.
fn measured(announcement: Announcement, decode_tokens_per_second: f32) -> Announcement {
    let throughput = Throughput { decode_tokens_per_second, ..Throughput::default() };
    Announcement { throughput, ..announcement }
}

fn throughput(view: &View, own: Option<(Span, f64)>) -> f64 {
    let mut supply = Supply::new(view.block_count());
    for (span, rate) in view.will_serve().chain(own) {
        supply.add(span, rate);
    }
    supply.throughput()
}

#[test]
fn a_newcomer_fills_the_gap() {
    let view = View::new(8, [server(1, 0, 3, 90.0), server(2, 5, 8, 10.0)]);
    let chosen = choose_span(&view, &own(2, 10.0), &mut Random::new(1));
    assert_eq!(chosen, Some(span(3, 5)));
}

#[test]
fn a_newcomer_that_cannot_fill_the_gap_begins_at_an_end_of_it() {
    let view = View::new(8, [server(1, 0, 2, 90.0)]);
    for seed in 0..20 {
        let chosen = choose_span(&view, &own(3, 10.0), &mut Random::new(seed)).unwrap();
        assert!(chosen == span(2, 5) || chosen == span(5, 8), "{chosen}");
    }
}

#[test]
fn a_newcomer_takes_what_is_on_disk_among_equals() {
    let view = View::new(8, []);
    let missing = [1 << 30, 1 << 30, 1 << 30, 1 << 30, 1 << 30, 0, 0, 0];
    let own = Own { missing_bytes: &missing, bytes_per_second: 1e7, ..own(3, 10.0) };
    assert_eq!(choose_span(&view, &own, &mut Random::new(1)), Some(span(5, 8)));
}

#[test]
fn of_spans_that_are_as_good_as_each_other_each_is_as_likely() {
    let gaps = [server(1, 0, 2, 10.0), server(2, 4, 6, 10.0), server(3, 8, 10, 10.0)];
    let view = View::new(12, gaps);
    let mut chosen = std::collections::BTreeMap::new();
    for seed in 0..300 {
        let span = choose_span(&view, &own(2, 10.0), &mut Random::new(seed)).unwrap();
        *chosen.entry(span).or_insert(0) += 1;
    }
    let spans: Vec<_> = chosen.keys().copied().collect();
    assert_eq!(spans, [span(2, 4), span(6, 8), span(10, 12)]);
    // Of 300 a third is 100, give or take 8.
    assert!(chosen.values().all(|times| (75..125).contains(times)), "{chosen:?}");
}

#[test]
fn a_server_that_has_left_its_blocks_for_others_fills_their_gap_for_everybody() {
    let on_its_way = Announcement { span: span(0, 4), ..loading(1, 8, 12) };
    let leaving = Announcement { moving_to: None, ..on_its_way.clone() };
    let others = [announced(2, 0, 4), announced(3, 0, 4), announced(4, 4, 8)];
    let others = others.map(|server| measured(server, 50.0));
    let gap_of = |first: &Announcement| {
        let view = View::of(12, std::iter::once(first).chain(&others));
        consider_move(&view, &own(4, 50.0), span(0, 4)).filter(|found| found.newly_served > 0)
    };
    assert!(gap_of(&leaving).is_some(), "nobody goes there");
    assert_eq!(gap_of(&on_its_way), None);
}

#[test]
fn a_server_that_has_yet_to_measure_itself_is_as_fast_as_the_others() {
    let all = [
        measured(announced(1, 0, 4), 40.0),
        measured(announced(2, 4, 8), 60.0),
        measured(announced(3, 4, 8), 90.0),
        loading(4, 8, 12),
    ];
    let rates: Vec<_> =
        View::of(12, all.iter()).servers().iter().map(|server| server.rate).collect();
    assert_eq!(rates, [40.0, 60.0, 90.0, 60.0]);
    let alone: Vec<_> = View::of(12, all[3..].iter()).servers().to_vec();
    assert_eq!(alone[0].rate, RATE_UNKNOWN);
}

#[test]
fn servers_that_begin_without_news_of_each_other_do_not_all_begin_at_the_same_block() {
    let began: BTreeSet<_> = (1..20)
        .map(|name| thinnest_span(12, 4, PeerId::from_public_key([name; 32]), []).unwrap())
        .collect();
    assert_eq!(began, [span(0, 4), span(8, 12)].into());
}

#[test]
fn who_begins_chooses_beside_those_who_load_and_not_beside_its_own_last_run() {
    let me = PeerId::from_public_key([9; 32]);
    let known = [loading(1, 0, 4), loading(2, 8, 12), announced(9, 4, 8)];
    assert_eq!(thinnest_span(12, 4, me, &known), Some(span(4, 8)));
}

#[test]
fn of_those_who_choose_the_same_at_the_same_time_the_lower_id_keeps_it() {
    let peer = |name| PeerId::from_public_key([name; 32]);
    let (first, second) = (loading(3, 0, 4), loading(5, 0, 4));
    let both = [first.clone(), second.clone()];
    assert_eq!(choose_again(peer(3), span(0, 4), &[], &both), None);
    let counted = choose_again(peer(5), span(0, 4), &[], &both).unwrap();
    assert_eq!(counted, both[..1]);
    let given_way = thinnest_span(12, 4, peer(5), &counted).unwrap();
    assert_eq!(given_way.intersection(span(0, 4)), None);

    assert_eq!(choose_again(peer(5), span(0, 4), &both[..1], &both), None, "it has seen that");
    assert_eq!(choose_again(peer(5), span(6, 10), &[], &both), None, "nobody is in its way");
    let serving = announced(8, 0, 4);
    let now = [first, second, serving.clone()];
    let counted = choose_again(peer(3), span(0, 4), &[], &now).unwrap();
    assert_eq!(counted, [serving], "who serves already is not asked to choose");
}

#[test]
fn room_for_no_block_is_no_span() {
    let random = &mut Random::new(1);
    assert_eq!(choose_span(&View::new(8, []), &own(0, 1.0), random), None);
    assert_eq!(choose_span(&View::new(0, []), &own(3, 1.0), random), None);
    assert_eq!(choose_span(&View::new(2, []), &own(3, 1.0), random), Some(span(0, 2)));
}

#[test]
fn a_server_leaves_where_it_is_not_needed() {
    let others = [server(1, 0, 4, 100.0), server(2, 4, 8, 20.0)];
    let found = consider_move(&View::new(8, others), &own(4, 50.0), span(0, 4)).unwrap();
    assert!(found.to.covers(span(4, 7)), "{found:?}");
}

#[test]
fn a_server_stays_where_nobody_else_is() {
    let others = [server(1, 4, 8, 1.0)];
    assert_eq!(consider_move(&View::new(8, others), &own(4, 500.0), span(0, 4)), None);
}

#[test]
fn a_block_whose_other_server_is_leaving_is_not_left() {
    let leaving = ServedSpan { moving_to: Some(span(4, 8)), ..server(1, 0, 4, 100.0) };
    let view = View::new(8, [leaving, server(2, 4, 8, 1.0)]);
    assert_eq!(consider_move(&view, &own(4, 50.0), span(0, 4)), None);
}

#[test]
fn a_download_that_costs_more_than_the_gain_is_not_made() {
    let others = [server(1, 0, 4, 100.0), server(2, 4, 8, 20.0)];
    let missing = [1 << 30; 8];
    let own = Own { missing_bytes: &missing, bytes_per_second: 1e4, ..own(4, 50.0) };
    assert_eq!(consider_move(&View::new(8, others), &own, span(0, 4)), None);
}

proptest! {
    #[test]
    fn no_placement_is_above_the_bound(
        servers in prop::collection::vec((0u32..8, 1u32..9, 1u32..30), 1..7),
    ) {
        let spans: Vec<_> = servers
            .iter()
            .map(|(start, length, rate)| (span(*start, (start + length).min(8)), f64::from(*rate)))
            .collect();
        let mut supply = Supply::new(8);
        for (span, rate) in &spans {
            supply.add(*span, *rate);
        }
        let held = spans.iter().map(|(span, rate)| (span.block_count(), *rate));
        prop_assert!(supply.throughput() <= throughput_bound(8, held) * (1.0 + 1e-9));
    }

    #[test]
    fn a_move_alone_never_lowers_the_throughput_by_much_or_leaves_a_block(
        servers in prop::collection::vec((0u32..12, 1u32..7, 1u32..30), 1..9),
        start in 0u32..12,
        limit in 1u32..7,
    ) {
        let servers = (1u8..).zip(&servers).map(|(name, (start, length, rate))| {
            server(name, *start, (start + length).min(12), f64::from(*rate))
        });
        let view = View::new(12, servers);
        let current = span(start, (start + limit).min(12));
        if let Some(found) = consider_move(&view, &own(limit, 10.0), current) {
            prop_assert!(view.keeps_what_is_left(current, found.to));
            let before = throughput(&view, Some((current, 10.0)));
            let after = throughput(&view, Some((found.to, 10.0)));
            prop_assert!(after >= before * 0.49, "{before} {after}");
        }
    }
}
