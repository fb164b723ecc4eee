//! Microbatches as large as a message.

use umbel_protocol::frame::{FrameError, encode_prefix};
use umbel_protocol::training::{ForwardMicrobatch, TrainerMessage};
use umbel_protocol::{DType, Tensor};

use super::*;

/// Values of a token.
const HIDDEN: u32 = 4_096;

fn sequence(tokens: u32) -> TrainingSequence {
    TrainingSequence { tokens, dropout_seed: u64::MAX }
}

/// What a link says of a message with these sequences.
fn sent(sequences: &[TrainingSequence]) -> Result<(), FrameError> {
    let tokens: u32 = sequences.iter().map(|sequence| sequence.tokens).sum();
    let values = vec![0; (tokens * HIDDEN) as usize * size_of::<f32>()];
    let hidden = Tensor::new(DType::F32, vec![tokens, HIDDEN], values.into()).unwrap();
    let sequences = sequences.to_vec();
    let forward = ForwardMicrobatch { microbatch: u64::MAX, sequences, evaluate: true, hidden };
    let frame = TrainerMessage::Forward(forward).encode();
    encode_prefix(&frame, LinkProtocol::Training.limits(Side::Opener))?;
    assert!(TrainerMessage::decode(frame).is_ok(), "who reads it takes it");
    Ok(())
}

#[test]
fn the_largest_microbatch_is_a_message_that_a_server_takes_and_a_token_more_is_none() {
    let tokens_max = message_tokens_max(HIDDEN as usize);
    assert_eq!(tokens_max, 4_096);
    let mut microbatch = Microbatch::new(1);
    // Many short texts, and a long one for the rest.
    for _ in 1..SEQUENCES_MAX {
        assert!(microbatch.has_room(1, tokens_max));
        microbatch.sequences.push(sequence(1));
    }
    let left = tokens_max - microbatch.tokens();
    assert!(microbatch.has_room(left, tokens_max) && !microbatch.has_room(left + 1, tokens_max));
    microbatch.sequences.push(sequence(left));
    assert_eq!(sent(&microbatch.sequences), Ok(()));
    assert!(!microbatch.has_room(1, u32::MAX), "no message has more sequences");
    assert!(matches!(sent(&[sequence(tokens_max + 1)]), Err(FrameError::Payload { .. })));
}
