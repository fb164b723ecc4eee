//! What counts as a return, and whom a route may use.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use umbel_protocol::Span;
use umbel_protocol::announcement::{LIFETIME_MAX, Throughput};

use super::*;
use crate::random::Random;

const MODEL: ModelId = ModelId::from_bytes([9; 32]);

fn unix(seconds: u64) -> UnixTime {
    UnixTime::after_epoch(Duration::from_secs(1_800_000_000 + seconds))
}

/// Of the server with this seed, said at `seconds` and holding for a minute.
fn announcement(seed: u8, seconds: u64) -> Announcement {
    Announcement {
        peer: PeerId::of(&SigningKey::from_bytes(&[seed; 32])),
        model: MODEL,
        model_name: String::new(),
        span: Span::new(0, 4).unwrap(),
        block_count: 8,
        addresses: vec!["/ip4/10.0.0.7/tcp/4001".to_owned()],
        version: String::new(),
        throughput: Throughput::default(),
        kv_tokens_free: 0,
        queue_depth: 0,
        draining: false,
        issued: unix(seconds),
        expires: unix(seconds + 60),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: false,
    }
}

fn insert(directory: &mut Directory, announcement: &Announcement) -> Inserted {
    let signed = announcement.sign(&SigningKey::from_bytes(&[1; 32]));
    directory.insert(signed, announcement.issued).unwrap()
}

/// What comes of an announcement at 20 s, after one at 0 s.
fn after(before: impl FnOnce(&mut Announcement), now: impl FnOnce(&mut Announcement)) -> Inserted {
    let (mut first, mut second) = (announcement(1, 0), announcement(1, 20));
    before(&mut first);
    now(&mut second);
    let mut directory = Directory::new();
    assert_eq!(insert(&mut directory, &first), Inserted::Returned(announcement(1, 0).peer));
    assert_eq!(insert(&mut directory, &first), Inserted::Known);
    insert(&mut directory, &second)
}

#[test]
fn a_server_that_goes_on_has_not_returned() {
    assert_eq!(after(|_| {}, |_| {}), Inserted::News);
    assert_eq!(after(|_| {}, |a| a.draining = true), Inserted::News);
    assert_eq!(after(|_| {}, |a| a.queue_depth = 7), Inserted::News);
}

#[test]
fn a_server_that_was_leaving_or_gone_or_elsewhere_has_returned() {
    assert_eq!(after(|a| a.draining = true, |_| {}), Inserted::Returned(announcement(1, 0).peer));
    assert_eq!(
        after(|a| a.expires = unix(19), |_| {}),
        Inserted::Returned(announcement(1, 0).peer)
    );
    assert_eq!(after(|_| {}, |a| a.addresses.clear()), Inserted::Returned(announcement(1, 0).peer));
    assert_eq!(
        after(|_| {}, |a| a.span = Span::new(4, 8).unwrap()),
        Inserted::Returned(announcement(1, 0).peer)
    );
}

/// Of a server of many, said at `seconds` and holding for as long as it may.
fn one_of_many(number: u16, seconds: u64) -> SignedAnnouncement {
    let mut seed = [0xff; 32];
    seed[..2].copy_from_slice(&number.to_le_bytes());
    let key = SigningKey::from_bytes(&seed);
    let mut announcement = announcement(1, seconds);
    announcement.peer = PeerId::of(&key);
    announcement.expires = announcement.issued + LIFETIME_MAX;
    announcement.sign(&key)
}

#[test]
fn as_many_names_as_fill_a_directory_drive_out_nobody() {
    let own = announcement(3, 0).peer;
    let mut directory = Directory::of_server(own);
    insert(&mut directory, &announcement(1, 0));
    let filling = (0..=u16::try_from(ANNOUNCEMENTS_MAX).unwrap()).map(|number| {
        let refused = directory.insert(one_of_many(number, 1), unix(1)).err();
        refused.is_some_and(|error| matches!(error, RefusedAnnouncement::Full { .. }))
    });
    assert_eq!(filling.filter(|is_full| *is_full).count(), 2);
    assert_eq!(insert(&mut directory, &announcement(1, 10)), Inserted::News);
    // Its own server is known too, and whoever comes once others are gone.
    let signed = announcement(3, 10).sign(&SigningKey::from_bytes(&[3; 32]));
    assert!(directory.insert(signed, unix(10)).is_ok());
    let late = || announcement(2, 600).sign(&SigningKey::from_bytes(&[2; 32]));
    assert!(directory.insert(late(), unix(600)).is_ok());
}

#[test]
fn a_route_may_use_whom_nothing_speaks_against() {
    let mut directory = Directory::new();
    for seed in 1..=4 {
        let mut server = announcement(seed, 0);
        server.draining = seed == 2;
        server.expires = unix(if seed == 3 { 10 } else { 60 });
        let signed = server.sign(&SigningKey::from_bytes(&[seed; 32]));
        directory.insert(signed, unix(0)).unwrap();
    }
    let peer = |seed| announcement(seed, 0).peer;
    let (mut health, now) = (Health::new(), Time::START + Duration::from_secs(5));
    health.failed(peer(4), now, &mut Random::new(1));
    let usable = |health: &Health, now| -> Vec<PeerId> {
        directory.candidates(health, MODEL, now, unix(10)).map(|server| server.peer).collect()
    };
    assert_eq!(usable(&health, now), [peer(1)]);
    assert_eq!(usable(&health, now + Duration::from_secs(2)).len(), 2);
    assert_eq!(
        directory.candidates(&health, ModelId::from_bytes([1; 32]), now, unix(0)).count(),
        0
    );
}

#[test]
fn a_server_that_leaves_and_waits_is_a_candidate_for_whom_it_waits_for() {
    let mut directory = Directory::new();
    for seed in 1..=2 {
        let mut server = announcement(seed, 0);
        server.draining = true;
        let signed = server.sign(&SigningKey::from_bytes(&[seed; 32]));
        directory.insert(signed, unix(0)).unwrap();
    }
    let usable = |directory: &Directory| -> Vec<PeerId> {
        let health = Health::new();
        let candidates = directory.candidates(&health, MODEL, Time::START, unix(10));
        candidates.map(|server| server.peer).collect()
    };
    assert_eq!(usable(&directory), []);
    directory.stay_with(announcement(1, 0).peer);
    assert_eq!(usable(&directory), [announcement(1, 0).peer]);
}
