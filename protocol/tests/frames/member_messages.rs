//! One value of each message of a run's members, and any of them.

use std::collections::BTreeMap;

use umbel_protocol::PeerId;
use umbel_protocol::averaging::{MemberMessage, Stand};

use super::{Message, Sample};

const START: Stand = Stand { round: 7, digest: [0xcd; 32] };

/// The messages whose frames are kept.
pub(crate) fn samples() -> Vec<Sample> {
    let peer = |name| PeerId::from_public_key([name; 32]);
    let sample = |name, message| Sample { name, message: Message::Member(message) };
    let contribution = |author| MemberMessage::Contribution {
        start: START,
        author,
        scales: vec![0.5],
        steps: vec![-127, 0, 127],
    };
    let addresses = vec!["/ip4/127.0.0.1/udp/4001/quic-v1".to_owned()];
    vec![
        sample(
            "member_hello",
            MemberMessage::Hello {
                run: [0xab; 32],
                addresses: addresses.clone(),
                members: BTreeMap::from([(peer(1), addresses), (peer(2), Vec::new())]),
            },
        ),
        sample("member_stand", MemberMessage::Stand(Some(START))),
        sample("member_stand_nowhere", MemberMessage::Stand(None)),
        sample("member_contribution", contribution(None)),
        sample("member_contribution_of_another", contribution(Some(peer(3)))),
        sample(
            "member_proposal",
            MemberMessage::Proposal {
                start: START,
                deltas: BTreeMap::from([(peer(1), [1; 32]), (peer(2), [2; 32])]),
            },
        ),
        sample("member_want_delta", MemberMessage::WantDelta { start: START, author: peer(3) }),
        sample("member_want_state", MemberMessage::WantState(START)),
        sample(
            "member_state",
            MemberMessage::State { round: 8, values: vec![1.0, -2.0], momentum: vec![0.0, 0.25] },
        ),
    ]
}

#[test]
fn values_that_are_no_numbers_and_payloads_of_another_length_are_violations() {
    for message in samples().into_iter().map(|sample| sample.message) {
        let mut frame = message.encode();
        frame.payload = [&frame.payload[..], &[0]].concat().into();
        assert!(message.decode_like(frame).is_err(), "{message:?} is a byte longer");
    }
    for value in [f32::NAN, f32::INFINITY] {
        let state = MemberMessage::State { round: 8, values: vec![value], momentum: vec![0.0] };
        assert!(MemberMessage::decode(state.encode()).is_err());
    }
}

#[test]
fn the_largest_hello_fits_its_link() {
    let hello = |addresses: &[String]| {
        let peer = |name| PeerId::from_public_key([name; 32]);
        let members = (0..200).map(|name| (peer(name), addresses.to_vec())).collect();
        let frame =
            MemberMessage::Hello { run: [0xab; 32], addresses: addresses.to_vec(), members }
                .encode();
        let limits =
            umbel_protocol::LinkProtocol::Averaging.limits(umbel_protocol::version::Side::Opener);
        umbel_protocol::frame::encode_prefix(&frame, limits).unwrap();
        let MemberMessage::Hello { addresses, members, .. } = MemberMessage::decode(frame).unwrap()
        else {
            panic!("a hello is read as one")
        };
        (addresses.len(), members.len())
    };
    // 16 addresses of 259 bytes with what is around them, and 34 of a key: of such members, and the
    // sender itself, a header has room for 15.
    assert_eq!(hello(&vec!["/".repeat(256); 20]), (16, 14));
    assert_eq!(hello(&["/ip4/127.0.0.1/udp/4001/quic-v1".to_owned()]), (1, 64));
}
