//! Announcements that are believed, and many that are not.

use std::time::Duration;

use bytes::Bytes;

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
        throughput: Throughput { decode_tokens_per_second: 900.5, prefill_tokens_per_second: 0.0 },
        kv_tokens_free: 8_192,
        queue_depth: 1,
        draining: false,
        issued: NOW,
        expires: NOW + Duration::from_secs(60),
    }
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
        let mut wire =
            v1::Announcement::decode(announcement().sign(&key()).bytes().clone()).unwrap();
        wire.decode_tokens_per_second = decode;
        name.clone_into(&mut wire.model_name);
        let bytes = Bytes::from(wire.encode_to_vec());
        let signature = key().sign(&signed::signed_message(&bytes)).to_bytes();
        let error = SignedAnnouncement::new(bytes, signature).verify(NOW).unwrap_err();
        let expected = match name {
            "a" => AnnouncementError::WrongThroughput { peer },
            _ => AnnouncementError::ControlCharacters { peer, field: "its model's name" },
        };
        assert_eq!(error, expected);
    }
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
