//! Answers that claim too much, and answers that would.

use bytes::Bytes;

use super::*;

fn signed(bytes: usize) -> SignedAnnouncement {
    SignedAnnouncement::new(Bytes::from(vec![7; bytes]), [1; 64])
}

#[test]
fn too_many_announcements_are_counted_before_room_is_made_for_them() {
    let announcements = vec![v1::SignedAnnouncement::default(); ANNOUNCEMENTS_MAX + 1];
    let message = directory_answer::Message::Found(v1::Found { announcements });
    let frame = wire::header_only(&v1::DirectoryAnswer { message: Some(message) });
    let violation = ProtocolViolation::TooMany {
        field: "announcements",
        max: ANNOUNCEMENTS_MAX,
        found: ANNOUNCEMENTS_MAX + 1,
    };
    assert_eq!(DirectoryAnswer::decode(frame), Err(violation));
}

#[test]
fn an_answer_holds_what_its_frame_has_room_for() {
    let limit = crate::LinkProtocol::Directory.limits(crate::version::Side::Acceptor);
    let frame = DirectoryAnswer::Found(vec![signed(4_096); ANNOUNCEMENTS_MAX]).encode();
    assert!(frame.header.len() <= limit.header_bytes_max as usize);
    let Ok(DirectoryAnswer::Found(found)) = DirectoryAnswer::decode(frame) else { panic!() };
    assert!((450..ANNOUNCEMENTS_MAX).contains(&found.len()), "{}", found.len());
    let frame = DirectoryAnswer::Found(vec![signed(500); ANNOUNCEMENTS_MAX + 3]).encode();
    let Ok(DirectoryAnswer::Found(found)) = DirectoryAnswer::decode(frame) else { panic!() };
    assert_eq!(found.len(), ANNOUNCEMENTS_MAX);
}

#[test]
fn a_question_has_room_for_the_largest_announcement() {
    let limit = crate::LinkProtocol::Directory.limits(crate::version::Side::Opener);
    let largest = signed(crate::announcement::ANNOUNCEMENT_BYTES_MAX);
    let frame = DirectoryRequest::Announce(largest.clone()).encode();
    assert!(frame.header.len() <= limit.header_bytes_max as usize);
    assert_eq!(DirectoryRequest::decode(frame), Ok(DirectoryRequest::Announce(largest)));
    let frame = DirectoryRequest::Announce(signed(4_097)).encode();
    assert!(matches!(DirectoryRequest::decode(frame), Err(ProtocolViolation::TooMany { .. })));
}

#[test]
fn an_announcement_without_a_whole_signature_is_refused() {
    let announce = v1::SignedAnnouncement { signature: vec![0; 63].into(), ..Default::default() };
    let message = Some(directory_request::Message::Announce(announce));
    let frame = wire::header_only(&v1::DirectoryRequest { message });
    let violation =
        ProtocolViolation::WrongLength { field: "the signature", expected: 64, found: 63 };
    assert_eq!(DirectoryRequest::decode(frame), Err(violation));
}
