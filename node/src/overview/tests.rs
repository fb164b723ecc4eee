//! Tests of the picture, and servers for those of its parts.

use std::time::Duration;

use umbel_protocol::announcement::{Announcement, Throughput, UnixTime};
use umbel_protocol::{ModelId, PeerId, Span};

use super::Overview;

pub(super) fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

pub(super) fn server(number: u8, start: u32, end: u32) -> Announcement {
    Announcement {
        peer: peer(number),
        model: ModelId::from_bytes([7; 32]),
        model_name: "a-model".to_owned(),
        span: Span::new(start, end).unwrap(),
        block_count: 4,
        addresses: Vec::new(),
        version: "0.1.0".to_owned(),
        throughput: Throughput {
            decode_tokens_per_second: 100.0,
            prefill_tokens_per_second: 1_000.0,
            ..Throughput::default()
        },
        kv_tokens_free: 512,
        queue_depth: 3,
        draining: false,
        issued: UnixTime::after_epoch(Duration::from_secs(1)),
        expires: UnixTime::after_epoch(Duration::from_secs(61)),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: true,
    }
}

pub(super) fn overview(servers: &[Announcement]) -> Overview {
    let near = peer(1);
    Overview::new(servers, |peer| (peer == near).then_some(Duration::from_micros(1_500)))
}

#[test]
fn servers_stand_with_their_model_in_the_order_of_their_blocks() {
    let mut other = server(3, 0, 1);
    (other.model, other.block_count) = (ModelId::from_bytes([1; 32]), 1);
    let overview = overview(&[server(2, 2, 4), server(1, 0, 2), other]);
    let spans = |index: usize| -> Vec<_> {
        overview.models[index].servers.iter().map(|server| server.span.to_string()).collect()
    };
    assert_eq!(
        (spans(0), spans(1)),
        (vec!["0..1".to_owned()], vec!["0..2".to_owned(), "2..4".to_owned()])
    );
    assert_eq!(overview.server_count(), 3);
    let first = &overview.models[1].servers[0];
    assert!((first.decode_tokens_per_second - 50.0).abs() < 1e-9, "through both of its blocks");
}

#[test]
fn a_server_that_leaves_serves_its_blocks_no_more() {
    let mut leaving = server(2, 1, 4);
    leaving.draining = true;
    let loading = Announcement { moving_to: Span::new(2, 4).ok(), ..leaving.clone() };
    for (draining, state) in [(leaving, "leaving"), (loading, "to 2..4")] {
        let overview = overview(&[server(1, 0, 2), draining]);
        assert_eq!(overview.models[0].replicas(), [1, 1, 0, 0]);
        assert_eq!(overview.models[0].unserved(), [2, 3]);
        assert_eq!(overview.models[0].servers[1].state(), state);
    }
}

#[test]
fn a_server_that_makes_up_blocks_adds_none_to_a_model_that_is_known() {
    let lying = Announcement { block_count: 4_096, ..server(3, 0, 1) };
    let overview = Overview::of_blocks(&[server(1, 0, 2), lying, server(2, 1, 4)], 4, |_| None);
    assert_eq!(overview.models[0].replicas(), [1, 2, 1, 1]);
    assert_eq!(overview.models[0].unserved(), [0; 0]);
    assert_eq!(overview.server_count(), 2);
}

#[test]
fn who_is_reached_by_a_relay_is_shown_as_such() {
    let mut hidden = server(2, 0, 4);
    let relay = "/ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3KooW/p2p-circuit";
    hidden.addresses = vec!["/ip4/192.168.1.5/tcp/4001".to_owned(), relay.to_owned()];
    let state = |servers: &[Announcement]| overview(servers).models[0].servers[0].state();
    assert_eq!(state(&[hidden.clone()]), "by a relay");
    hidden.draining = true;
    assert_eq!(state(&[hidden]), "leaving, by a relay");
    assert_eq!(state(&[server(1, 0, 4)]), "");
}

#[test]
fn what_would_move_the_cursor_or_turn_the_text_is_left_out() {
    let named = Announcement { model_name: "a\u{1b}[2Jb\u{202e}c".to_owned(), ..server(1, 0, 4) };
    assert_eq!(overview(&[named]).models[0].name, "a[2Jbc");
}
