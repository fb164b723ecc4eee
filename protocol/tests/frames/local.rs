//! What is refused in messages about links that stay on a machine.

use bytes::Bytes;
use umbel_protocol::LinkProtocol;
use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::frame::Frame;
use umbel_protocol::local::{LocalAnswer, LocalRequest};

#[test]
fn every_protocol_is_known_by_its_name() {
    for protocol in LinkProtocol::ALL {
        assert_eq!(LinkProtocol::named(protocol.name()), Some(protocol));
        let request = LocalRequest { protocol, port: u16::MAX };
        assert_eq!(LocalRequest::decode(request.encode()), Ok(request));
    }
    assert_eq!(LinkProtocol::named("/umbel/session/2"), None);
}

#[test]
fn other_protocols_and_ports_and_secrets_of_another_length_are_violations() {
    let frame =
        |header: &[u8]| Frame { header: Bytes::copy_from_slice(header), ..Frame::default() };
    let request = |header: &[u8]| LocalRequest::decode(frame(header)).unwrap_err();
    let out_of_bounds = |field| ProtocolViolation::OutOfBounds { field };
    assert_eq!(request(&[]), out_of_bounds("the protocol"));
    assert_eq!(request(b"\x0a\x03abc\x10\x01"), out_of_bounds("the protocol"));
    // 65,536 behind the name of a protocol.
    assert_eq!(request(b"\x0a\x0d/umbel/push/1\x10\x80\x80\x04"), out_of_bounds("the port"));
    let answer = |header: &[u8]| LocalAnswer::decode(frame(header)).unwrap_err();
    let short = [b"\x0a\x03abc\x12\x20".as_slice(), &[7; 32]].concat();
    assert!(matches!(answer(&short), ProtocolViolation::WrongLength { .. }));
    let nameless = [b"\x12\x20".as_slice(), &[7; 32]].concat();
    assert_eq!(answer(&nameless), ProtocolViolation::Missing { field: "the socket" });
    let open = [b"\x0a\x10".as_slice(), &[7; 16]].concat();
    assert_eq!(answer(&open), ProtocolViolation::Missing { field: "the token" });
}
