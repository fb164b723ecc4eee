//! Announcements that are believed, and many that are not.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NOW: UnixTime = UnixTime::after_epoch(Duration::from_secs(1_800_000_000));

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn announcement() -> Announcement {
    Announcement {
        peer: PeerId::of(&key()),
        model: ModelId::from_bytes([5; 32]),
        model_name: "SmolLM2-135M-Instruct".to_owned(),
        span: Span::new(10, 20).unwrap(),
        block_count: 30,
        addresses: vec!["/ip4/10.0.0.7/udp/4001/quic-v1".to_owned()],
        version: crate::version::SOFTWARE.to_owned(),
        throughput: Throughput { decode_tokens_per_second: 900.5, ..Throughput::default() },
        kv_tokens_free: 8_192,
        queue_depth: 1,
        draining: false,
        issued: NOW,
        expires: NOW + Duration::from_secs(60),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: false,
    }
}

/// As the server says it that has everything to say.
fn full() -> Announcement {
    let mut full = announcement();
    full.throughput.decode_batch_tokens_per_second = 3_600.0;
    full.throughput.network_bytes_per_second = 12_500_000;
    full.next_hops = (0..16).map(next_hop).collect();
    full.adapters = (0..16).map(|number| format!("umbel/adapter-{number}")).collect();
    full.moving_to = Some(Span::new(20, 30).unwrap());
    full.held_blocks_max = 20;
    full.proposal = Some(proposal(16));
    full.joined = Some(PeerId::from_public_key([7; 32]));
    full.holds_ends = true;
    full
}

fn proposal(moves: u8) -> Proposal {
    let span = |start: u32, end: u32| Span::new(start, end).unwrap();
    let asked = |name: u8| ProposedMove {
        peer: PeerId::from_public_key([name; 32]),
        via: (name.is_multiple_of(2)).then_some(span(5, 20)),
        to: span(5, 15),
    };
    Proposal { moves: (0..moves).map(asked).collect(), agreed: true }
}

fn next_hop(name: u8) -> NextHopLatency {
    let round_trip = Duration::from_millis(300) * u32::from(name);
    NextHopLatency { peer: PeerId::from_public_key([name; 32]), round_trip }
}

/// What a server signs that keeps to no limits.
fn unchecked(change: impl FnOnce(&mut v1::Announcement)) -> SignedAnnouncement {
    let mut wire = v1::Announcement::decode(full().sign(&key()).bytes().clone()).unwrap();
    change(&mut wire);
    let bytes = Bytes::from(wire.encode_to_vec());
    let signature = key().sign(&signed::signed_message(&bytes)).to_bytes();
    SignedAnnouncement::new(bytes, signature)
}

fn refused(change: impl FnOnce(&mut Announcement)) -> AnnouncementError {
    let mut announcement = announcement();
    change(&mut announcement);
    announcement.sign(&key()).verify(NOW).unwrap_err()
}

#[test]
fn what_was_signed_is_what_is_read() {
    let signed = announcement().sign(&key());
    assert_eq!(signed.verify(NOW), Ok(announcement()));
    assert!(signed.bytes().len() < 500);
    let signed = full().sign(&key());
    assert_eq!(signed.verify(NOW), Ok(full()));
    assert!(signed.bytes().len() < 2_400);
}

#[test]
fn a_server_that_has_measured_less_says_less() {
    let read = announcement().sign(&key()).verify(NOW).unwrap();
    assert_eq!(read.throughput.decode_batch_tokens_per_second.to_bits(), 0);
    assert_eq!(read.throughput.network_bytes_per_second, 0);
    assert!(read.next_hops.is_empty() && read.adapters.is_empty() && read.moving_to.is_none());
    assert!(read.held_blocks_max == 0 && read.proposal.is_none() && read.joined.is_none());
}

#[test]
fn nobody_speaks_for_another() {
    let forged = announcement().sign(&SigningKey::from_bytes(&[4; 32]));
    let peer = PeerId::of(&key());
    assert_eq!(forged.verify(NOW), Err(AnnouncementError::WrongSignature { peer }));
}

#[test]
fn no_changed_bit_passes() {
    let signed = announcement().sign(&key());
    for bit in 0..signed.bytes().len() * 8 {
        let mut bytes = signed.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let changed = SignedAnnouncement::new(bytes.into(), *signed.signature());
        assert!(changed.verify(NOW).is_err(), "bit {bit}");
    }
    for bit in 0..512 {
        let mut signature = *signed.signature();
        signature[bit / 8] ^= 1 << (bit % 8);
        let changed = SignedAnnouncement::new(signed.bytes().clone(), signature);
        assert!(changed.verify(NOW).is_err(), "bit {bit}");
    }
}

#[test]
fn a_signature_for_another_purpose_does_not_pass() {
    let signed = announcement().sign(&key());
    let bare = key().sign(signed.bytes()).to_bytes();
    let error = SignedAnnouncement::new(signed.bytes().clone(), bare).verify(NOW).unwrap_err();
    assert!(matches!(error, AnnouncementError::WrongSignature { .. }), "{error}");
}

#[test]
fn a_key_that_is_no_point_signs_nothing() {
    let mut announcement = announcement();
    announcement.peer = PeerId::from_public_key([0xff; 32]);
    let error = announcement.sign(&key()).verify(NOW).unwrap_err();
    assert!(matches!(error, AnnouncementError::WrongSignature { .. }), "{error}");
}

#[test]
fn an_announcement_holds_for_its_time() {
    let (signed, second) = (announcement().sign(&key()), Duration::from_secs(1));
    let peer = PeerId::of(&key());
    let last = NOW + Duration::from_secs(59);
    assert!(signed.verify(last).is_ok());
    let expired = AnnouncementError::Expired { peer, ago: second };
    assert_eq!(signed.verify(last + 2 * second), Err(expired));

    let ahead = AHEAD_MAX + second;
    assert_eq!(
        refused(|a| (a.issued, a.expires) = (NOW + ahead, NOW + ahead + second)),
        AnnouncementError::FromTheFuture { peer, ahead }
    );
    let lifetime = LIFETIME_MAX + second;
    assert_eq!(
        refused(|a| a.expires = a.issued + lifetime),
        AnnouncementError::LifetimeTooLong { peer, lifetime }
    );
}

#[test]
fn claims_that_cannot_be_are_refused() {
    let peer = PeerId::of(&key());
    let span = Span::new(10, 20).unwrap();
    assert_eq!(
        refused(|a| a.block_count = 19),
        AnnouncementError::WrongBlocks { peer, span, block_count: 19 }
    );
    assert_eq!(
        refused(|a| a.block_count = BLOCK_COUNT_MAX + 1),
        AnnouncementError::WrongBlocks { peer, span, block_count: BLOCK_COUNT_MAX + 1 }
    );
    // One that does not cut what it signs to the limits.
    for (decode, name) in [(f32::NAN, "a"), (f32::INFINITY, "a"), (-1.0, "a"), (1.0, "a\u{1b}[2J")]
    {
        let signed = unchecked(|wire| {
            wire.decode_batch_tokens_per_second = decode;
            name.clone_into(&mut wire.model_name);
        });
        let error = signed.verify(NOW).unwrap_err();
        let expected = match name {
            "a" => AnnouncementError::WrongThroughput { peer },
            _ => AnnouncementError::ControlCharacters { peer, field: "its model's name" },
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn a_server_cannot_move_beyond_the_model() {
    let span = Span::new(25, 31).unwrap();
    assert_eq!(
        refused(|a| a.moving_to = Some(span)),
        AnnouncementError::WrongBlocks { peer: PeerId::of(&key()), span, block_count: 30 }
    );
    let empty = unchecked(|wire| wire.moving_to = Some(v1::Span { start: 7, end: 7 }));
    assert!(matches!(empty.verify(NOW), Err(AnnouncementError::Malformed(_))));
}

#[test]
fn nobody_can_be_asked_to_move_beyond_the_model() {
    let (span, peer) = (Span::new(25, 31).unwrap(), PeerId::of(&key()));
    let wrong = AnnouncementError::WrongBlocks { peer, span, block_count: 30 };
    let ask = |change: fn(&mut ProposedMove, Span)| {
        let mut proposal = proposal(2);
        change(&mut proposal.moves[1], span);
        refused(|a| a.proposal = Some(proposal))
    };
    assert_eq!(ask(|asked, span| asked.to = span), wrong);
    assert_eq!(ask(|asked, span| asked.via = Some(span)), wrong);
    let empty = unchecked(|wire| wire.proposal.as_mut().unwrap().moves[3].to = None);
    assert!(matches!(empty.verify(NOW), Err(AnnouncementError::Malformed(_))));
    let nobody = unchecked(|wire| wire.joined = Bytes::from_static(&[1; 31]));
    assert!(matches!(nobody.verify(NOW), Err(AnnouncementError::Malformed(_))));
}

#[test]
fn lists_beyond_their_limits_are_refused() {
    let malformed = |change: fn(&mut v1::Announcement)| {
        let read = unchecked(change).verify(NOW);
        assert!(matches!(read, Err(AnnouncementError::Malformed(_))), "{read:?}");
    };
    malformed(|wire| wire.next_hops.push(wire.next_hops[0].clone()));
    malformed(|wire| wire.next_hops[3].peer = Bytes::from_static(&[1; 31]));
    malformed(|wire| wire.adapters.push("one-too-many".to_owned()));
    malformed(|wire| wire.adapters[3] = "a".repeat(ADAPTER_BYTES_MAX + 1));
    malformed(|wire| wire.adapters[3] = String::new());
    let garbled = unchecked(|wire| wire.adapters[3] = "a\u{7}".to_owned()).verify(NOW);
    let (peer, field) = (PeerId::of(&key()), "an adapter's name");
    assert_eq!(garbled, Err(AnnouncementError::ControlCharacters { peer, field }));
}

#[test]
fn what_is_too_long_is_cut_when_it_is_signed() {
    let mut long = announcement();
    long.model_name = "é".repeat(100) + "\n";
    long.version = "1".repeat(100);
    long.addresses = (0..40).map(|port| format!("/ip4/10.0.0.7/tcp/{port}")).collect();
    long.throughput.decode_tokens_per_second = f32::NAN;
    let read = long.sign(&key()).verify(NOW).unwrap();
    assert_eq!(read.model_name, "é".repeat(48));
    assert_eq!(read.version, "1".repeat(VERSION_BYTES_MAX));
    assert_eq!(read.addresses, long.addresses[..16]);
    assert_eq!(read.throughput, Throughput::default());
}

#[test]
fn lists_are_cut_to_their_limits_when_they_are_signed() {
    let mut long = full();
    long.next_hops = (0..40).map(next_hop).collect();
    long.adapters = (0..40).map(|number| format!("umbel/adapter-{number}")).collect();
    long.adapters[1] = "a".repeat(ADAPTER_BYTES_MAX + 1);
    long.adapters[2] = "a\n".to_owned();
    long.adapters[3] = String::new();
    long.throughput.decode_batch_tokens_per_second = f32::INFINITY;
    let read = long.sign(&key()).verify(NOW).unwrap();
    assert_eq!(read.next_hops, long.next_hops[..NEXT_HOPS_MAX]);
    assert_eq!(read.adapters[0], long.adapters[0]);
    assert_eq!(read.adapters[1..], long.adapters[4..19]);
    assert_eq!(read.throughput.decode_batch_tokens_per_second.to_bits(), 0);
}

#[test]
fn what_does_not_fit_is_cut_in_the_order_of_its_use() {
    let mut large = full();
    large.addresses = (0..16).map(|name| format!("{name:0>256}")).collect();
    large.adapters = (0..16).map(|name| format!("{name:0>64}")).collect();
    let signed = large.sign(&key());
    let read = signed.verify(NOW).unwrap();
    let bytes = signed.bytes().len();
    assert!((ANNOUNCEMENT_BYTES_MAX - 260..=ANNOUNCEMENT_BYTES_MAX).contains(&bytes), "{bytes}");
    assert!(read.next_hops.is_empty());
    assert_eq!(read.addresses, large.addresses[..read.addresses.len()]);
    assert!((8..16).contains(&read.addresses.len()), "{}", read.addresses.len());
    assert_eq!(read.adapters, large.adapters);
}

#[test]
fn the_largest_announcement_is_refused_by_its_size() {
    let bytes = Bytes::from(vec![0; ANNOUNCEMENT_BYTES_MAX + 1]);
    let error = SignedAnnouncement::new(bytes, [0; 64]).verify(NOW);
    assert_eq!(error, Err(AnnouncementError::TooLarge { bytes: ANNOUNCEMENT_BYTES_MAX + 1 }));
}

#[test]
fn a_field_of_a_newer_version_keeps_the_signature() {
    // Field 900, a varint of 1: this version does not know it.
    let newer = [0xa0, 0x38, 0x01];
    let bytes = Bytes::from([announcement().sign(&key()).bytes().as_ref(), &newer].concat());
    let signature = key().sign(&signed::signed_message(&bytes)).to_bytes();
    assert_eq!(SignedAnnouncement::new(bytes, signature).verify(NOW), Ok(announcement()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_a_server_says_is_what_is_read(
        hops in vec((any::<[u8; 32]>(), any::<u64>()), 0..=NEXT_HOPS_MAX),
        adapters in vec("[a-zäß/-]{1,32}", 0..=ADAPTERS_MAX),
        (batch, network) in (0.0f32..1e9, any::<u64>()),
        moving_to in proptest::option::of((0u32..20, 1u32..10)),
        (held_blocks_max, moves) in (any::<u32>(), 0u8..=16),
        joined in proptest::option::of(any::<[u8; 32]>()),
    ) {
        let mut said = announcement();
        said.throughput.decode_batch_tokens_per_second = batch;
        said.throughput.network_bytes_per_second = network;
        said.next_hops = hops
            .into_iter()
            .map(|(peer, round_trip)| NextHopLatency {
                peer: PeerId::from_public_key(peer),
                round_trip: Duration::from_nanos(round_trip),
            })
            .collect();
        said.adapters = adapters;
        said.moving_to =
            moving_to.map(|(start, count)| Span::new(start, start + count).unwrap());
        said.held_blocks_max = held_blocks_max;
        said.proposal = (moves > 0).then(|| proposal(moves));
        said.joined = joined.map(PeerId::from_public_key);
        prop_assert_eq!(said.sign(&key()).verify(NOW), Ok(said));
    }

    /// A server may sign whatever it likes.
    #[test]
    fn perturbed_bytes_that_are_signed_never_panic(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = full().sign(&key()).bytes().to_vec();
        // Past the peer, without which the signature would be wrong.
        for (index, byte) in changes {
            let index = 34 + index.index(bytes.len() - 34);
            bytes[index] = byte;
        }
        let signature = key().sign(&signed::signed_message(&bytes)).to_bytes();
        if let Ok(read) = SignedAnnouncement::new(bytes.into(), signature).verify(NOW) {
            prop_assert!(read.span.end() <= read.block_count);
            prop_assert!(read.moving_to.is_none_or(|span| span.end() <= read.block_count));
        }
    }
}
