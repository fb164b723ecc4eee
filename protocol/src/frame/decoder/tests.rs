//! Frames in pieces, and claims above the limits.

use proptest::prelude::*;

use super::*;
use crate::frame::encode_prefix;

const LIMITS: Limits = Limits { header_bytes_max: 300, payload_bytes_max: 1 << 20 };

fn frame(header: Vec<u8>, payload: Vec<u8>) -> Frame {
    Frame { header: header.into(), payload: payload.into() }
}

fn on_the_link(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        let from = bytes.len();
        bytes.extend(encode_prefix(frame, LIMITS).unwrap());
        bytes.extend(&frame.header);
        bytes.extend(&frame.payload);
        assert_eq!(bytes.len() - from, frame.wire_bytes(), "the claimed length is the real one");
    }
    bytes
}

#[test]
fn a_claim_above_the_limit_is_refused_before_anything_is_allocated() {
    let mut decoder = FrameDecoder::new(LIMITS);
    let claim = [[44, 1, 0, 0], [1, 0, 16, 0]].concat();
    let refused = Err(FrameError::Payload { bytes: (1 << 20) + 1, max: 1 << 20 });
    assert_eq!(decoder.push(&claim), refused);
    assert!(matches!(decoder.part, Part::Refused(_)), "there is no buffer");
    assert!(decoder.space().is_empty());
    assert_eq!(decoder.push(&[0; 8]), refused, "nobody knows where the next frame begins");
    assert!(decoder.is_within_frame());
}

#[test]
fn the_writer_is_held_to_the_limits_of_the_reader() {
    let large = frame(vec![0; 301], Vec::new());
    let refused = FrameError::Header { bytes: 301, max: 300 };
    assert_eq!(encode_prefix(&large, LIMITS), Err(refused));
}

#[test]
fn a_large_claim_takes_memory_only_as_it_is_made_good() {
    let limits = Limits { header_bytes_max: 8, payload_bytes_max: u32::MAX };
    let mut decoder = FrameDecoder::new(limits);
    decoder.push(&[0, 0, 0, 0, 255, 255, 255, 255]).unwrap();
    assert_eq!(decoder.space().len(), FIRST_BYTES_MAX);
    decoder.filled(FIRST_BYTES_MAX).unwrap();
    assert_eq!(decoder.space().len(), FIRST_BYTES_MAX, "doubled");
}

#[test]
fn a_reader_that_knows_more_takes_less() {
    let mut decoder = FrameDecoder::new(LIMITS);
    decoder.limit_payload(1 << 21);
    decoder.limit_payload(100);
    let bytes = on_the_link(&[frame(vec![1; 3], vec![2; 100])]);
    let (most, last) = bytes.split_at(bytes.len() - 1);
    assert_eq!(decoder.unfinished_bytes(), 0);
    for (count, byte) in (1..).zip(most) {
        assert_eq!(decoder.push(&[*byte]), Ok(Vec::new()));
        assert_eq!(decoder.unfinished_bytes(), count);
    }
    assert_eq!(decoder.push(last).unwrap().len(), 1);
    assert_eq!(decoder.unfinished_bytes(), 0);
    let refused = Err(FrameError::Payload { bytes: 101, max: 100 });
    assert_eq!(decoder.push(&[1, 0, 0, 0, 101, 0, 0, 0]), refused);
}

#[test]
fn an_empty_frame_is_a_frame() {
    let mut decoder = FrameDecoder::new(Limits { header_bytes_max: 0, payload_bytes_max: 0 });
    assert_eq!(decoder.push(&[0; 16]), Ok(vec![Frame::default(); 2]));
    assert!(!decoder.is_within_frame());
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        parts in proptest::collection::vec((0usize..300, 0usize..2_000, any::<u8>()), 0..5),
        cuts in proptest::collection::vec(1usize..3_000, 1..40),
    ) {
        let frames: Vec<_> =
            parts.iter().map(|&(h, p, byte)| frame(vec![byte; h], vec![!byte; p])).collect();
        let bytes = on_the_link(&frames);
        let mut decoder = FrameDecoder::new(LIMITS);
        let (mut rest, mut read) = (bytes.as_slice(), Vec::new());
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at(cut.min(rest.len()));
            read.extend(decoder.push(piece).unwrap());
            rest = later;
        }
        prop_assert_eq!(read, frames);
        prop_assert!(!decoder.is_within_frame());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4_000)) {
        let _refused = FrameDecoder::new(LIMITS).push(&bytes);
    }
}
